"""The catalogue answers what looking at every entry would, on both databases, and makes nothing up."""

import json
import random
from dataclasses import replace

import pytest

from api.catalogue import Catalogue
from api.catalogue_sources import checkpoints, fill, of_checkpoint, presets, published, told
from api.catalogue_values import Accuracy, CatalogueError, Entry, Question, dominates
from api.db import Database, normal_url
from latency.analytic import MacsModel
from latency.estimate import estimate
from tests.api.factories import IMAGENET_GRID, TINY, V100, affine_table, model_ms, save_model
from tests.api.factories import fill as fill_library
from vit.architecture import BlockShape
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.compare import compare
from vit.cost import macs, params
from vit.errors import UnknownNameError
from vit.model import VisionTransformer
from vit.presets import PRESETS, PUBLISHED, preset

DATA, OTHER = "digits:abc", "gratings:def"
TEMPLATE = preset("deit-s")
MACS = MacsModel(TEMPLATE)


@pytest.fixture
def catalogue(database_url):
    database = Database(normal_url(database_url))
    yield Catalogue(database)
    database.close()


def made_up(count, seed=0):
    """Entries with and without accuracies, parents and shapes."""
    rng, found = random.Random(seed), []
    for index in range(count):
        arch = TEMPLATE.replace(
            embed_dim=8 * rng.randint(8, 90),
            blocks=tuple(BlockShape(rng.randint(1, 12), 8, 64, 64 * rng.randint(1, 40)) for _ in range(12)),
        )
        figures = tuple(
            Accuracy(data, round(rng.random(), 3), "measured", f"recipe {run}", (run,))
            for data in (DATA, OTHER)
            for run in range(rng.randint(0, 2))
        )
        kind = rng.choice(["told", "study", "pruned"])
        parent = rng.choice(found).arch.id if found and rng.random() < 0.6 else None
        found.append(Entry(f"k{index}", f"model {index}", kind, arch, "made up", parent, accuracies=figures))
    return found


def best(entry, data):
    return max((one.value for one in entry.accuracies if one.data == data), default=None)


@pytest.fixture
def filled(catalogue):
    given = made_up(60)
    assert catalogue.add(given) == 60
    catalogue.price(MACS)
    return catalogue, given


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("kind", [None, "study"])
@pytest.mark.parametrize("data", [None, DATA])
def test_a_budget_is_answered_as_by_looking_at_every_entry(filled, share, kind, data):
    catalogue, given = filled
    budget = sorted(macs(entry.arch) for entry in given)[int(share * 59)] / 1e6
    found = catalogue.find(Question("macs", budget, kind=kind, data=data, limit=1000))
    fitting = [e for e in given if macs(e.arch) / 1e6 <= budget and kind in (None, e.kind)]
    assert sorted(one.name for one in found) == sorted(e.name for e in fitting)
    for one in found:
        (entry,) = [e for e in given if e.name == one.name]
        assert one.latency_ms == pytest.approx(macs(entry.arch) / 1e6)
        assert one.accuracies == entry.accuracies
    known = [one.accuracy_on(data) for one in found] if data else []
    with_figures = [value for value in known if value is not None]
    assert with_figures == sorted(with_figures, reverse=True)
    assert known[: len(with_figures)] == with_figures  # what is not known goes last
    if data is None:
        times = [one.latency_ms for one in found]
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("kind", [None, "told"])
def test_the_front_is_what_comparing_all_pairs_finds(filled, kind):
    catalogue, given = filled
    points = {
        e.name: (macs(e.arch) / 1e6, -best(e, DATA))
        for e in given
        if best(e, DATA) is not None and kind in (None, e.kind)
    }
    expected = {name for name, mine in points.items() if not any(dominates(other, mine) for other in points.values())}
    found = catalogue.pareto("macs", DATA, kind)
    assert {one.name for one in found} == expected
    times = [one.latency_ms for one in found]
    assert times == sorted(times)
    assert catalogue.pareto("macs", "no such data") == []


def test_lineage_is_followed_over_any_number_of_steps(filled):
    catalogue, given = filled

    def descendants(id_):
        children = [e for e in given if e.parent == id_]
        return {e.name for e in children} | {name for e in children for name in descendants(e.arch.id)}

    for entry in given[:10]:
        found = catalogue.find(Question(ancestor=entry.arch.id, limit=1000))
        assert {one.name for one in found} == descendants(entry.arch.id)


@pytest.mark.parametrize(
    ("question", "of"),
    [
        (Question(max_params=10**7, limit=1000), lambda e: params(e.arch) <= 10**7),
        (Question("macs", max_macs=10**9, limit=1000), lambda e: macs(e.arch) <= 10**9),
        (Question(name="el 1", limit=1000), lambda e: "el 1" in e.name),
        (Question(name="%", limit=1000), lambda e: False),
        (Question(kind="told", limit=1000), lambda e: e.kind == "told"),
        (Question(data=OTHER, known=True, limit=1000), lambda e: best(e, OTHER) is not None),
        (Question("macs", data=OTHER, known=True, name="3", limit=1000), lambda e: best(e, OTHER) and "3" in e.name),
        (Question(data=DATA, limit=1000), lambda e: True),
    ],
)
def test_every_other_filter(filled, question, of):
    catalogue, given = filled
    assert {one.name for one in catalogue.find(question)} == {e.name for e in given if of(e)}


@pytest.mark.parametrize("order", ["params", "macs", "latency", "newest"])
def test_orders(filled, order):
    catalogue, _ = filled
    found = catalogue.find(Question("macs", order=order, limit=7))
    attribute = {"latency": "latency_ms", "newest": "serial"}.get(order, order)
    values = [getattr(one, attribute) for one in found]
    assert values == sorted(values, reverse=order == "newest")
    assert len(values) == 7


def test_adding_again_changes_nothing_but_new_accuracies(filled):
    catalogue, given = filled
    assert catalogue.add(given) == 0
    before = catalogue.find(Question("macs", data=DATA, limit=1000))
    assert len(before) == 60
    entry = Entry(
        given[0].key,
        "another name",
        "told",
        given[0].arch,
        "",
        accuracies=(Accuracy(DATA, 1.0, "measured", "new", (5,)),),
    )
    assert catalogue.add([entry]) == 0
    first = catalogue.find(Question("macs", data=DATA, limit=1))[0]
    assert (first.name, first.accuracy_on(DATA)) == (given[0].name, 1.0)  # also where latencies were known before
    assert catalogue.count() == 60


def test_latencies_are_those_of_the_target_and_new_after_a_new_table(catalogue):
    catalogue.add([*presets(), told("small", TINY, "")])
    table = affine_table(IMAGENET_GRID, V100, preset("deit-s"))
    catalogue.price(table)
    found = {one.name: one.latency_ms for one in catalogue.find(Question(V100.slug, limit=1000))}
    assert found["deit-s"] == pytest.approx(model_ms(preset("deit-s")))
    assert "small" not in found  # another number of tokens
    assert "vit-l" not in found  # wider than the table
    assert catalogue.price(table) == 0
    catalogue.add([told("half", preset("deit-s").replace(embed_dim=192, softmax_scale=None), "")])
    assert catalogue.price(table) == 1
    slower = replace(table, block_ms=2 * table.block_ms)
    assert catalogue.price(slower) > 1
    (found,) = catalogue.find(Question(V100.slug, name="deit-s", kind="preset", order="params", limit=1))
    assert found.latency_ms == pytest.approx(estimate(slower, preset("deit-s")).latency_ms)


def test_published_figures_are_as_printed_and_nvit_has_no_shape(catalogue):
    catalogue.add([*presets(), *published()])
    found = {one.name: one for one in catalogue.find(Question(kind="published", limit=1000))}
    assert set(found) == {row.name for row in PUBLISHED}
    for row in PUBLISHED:
        (figure,) = found[row.name].accuracies
        assert (figure.value, figure.evidence, figure.seeds) == (row.top1 / 100, "published", ())
        assert found[row.name].figures["params_m"] == row.params_m
        assert (found[row.name].architecture is None) == (row.preset is None)
    assert found["NViT-B"].architecture is None
    assert found["ReViT-T"].params == 5_339_136  # counted; printed are 5.9 million
    for one in catalogue.find(Question(kind="preset", limit=1000)):
        assert one.accuracies == ()  # a shape alone has none
    assert catalogue.architecture("deit-s") == preset("deit-s")
    assert catalogue.architecture(preset("revit-t").id) == preset("revit-t")
    with pytest.raises(CatalogueError, match="the shape of NViT-B was never published"):
        catalogue.architecture("NViT-B")
    with pytest.raises(UnknownNameError, match="unknown entry of the catalogue 'x'"):
        catalogue.architecture("x")


def test_checkpoints_come_in_with_their_lineage_and_broken_ones_are_named(catalogue, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    save_model(TINY, models / "dense.safetensors")
    small = TINY.replace(embed_dim=8, softmax_scale=TINY.scales)
    lineage = ({"step": "import"}, {"step": "compress", "from_architecture": TINY.id})
    save_checkpoint(Checkpoint.of(VisionTransformer(small), lineage), models / "small.safetensors")
    (models / "broken.safetensors").write_bytes(b"x")
    count, broken = fill(catalogue, models)
    assert count == len(PRESETS) + len(PUBLISHED) + 2
    assert len(broken) == 1
    assert broken[0].startswith("broken.safetensors: ")
    (found,) = catalogue.find(Question(ancestor=TINY.id))
    assert (found.name, found.kind, found.parent) == ("small", "compressed", TINY.id)
    assert [path.name for path, entry, _ in checkpoints(models) if entry] == ["dense.safetensors", "small.safetensors"]
    assert of_checkpoint(models / "dense.safetensors").parent is None


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Accuracy(DATA, 1.5, "measured", "r", (0,)), "value"),
        (lambda: Accuracy(DATA, float("nan"), "measured", "r", (0,)), "value"),
        (lambda: Accuracy(DATA, 0.5, "guessed", "r", (0,)), "evidence"),
        (lambda: Accuracy(DATA, 0.5, "measured", "", (0,)), "recipe"),
        (lambda: Accuracy(DATA, 0.5, "measured", "r"), "seeds"),
        (lambda: Accuracy("", 0.5, "measured", "r", (0,)), "data"),
        (lambda: Entry("k", "n", "rumour", None, ""), "kind"),
        (lambda: Entry("k", "", "told", None, ""), "name"),
        (lambda: Question(budget_ms=3.0), "budget_ms"),
        (lambda: Question("macs", -1.0), "budget_ms"),
        (lambda: Question(order="accuracy"), "order"),
        (lambda: Question(order="latency"), "order"),
        (lambda: Question(known=True), "known"),
        (lambda: Question(limit=0), "limit"),
    ],
)
def test_what_is_no_figure_no_entry_and_no_question_is_refused(make, field):
    with pytest.raises(CatalogueError) as caught:
        make()
    assert caught.value.field == field


def test_dominance_compares_what_is_known_of_both():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 4), (2, 3))
    assert dominates((1, None), (2, 5))
    assert not dominates((None, None), (1, 2))


def test_two_architectures_differ_where_they_do():
    a, b = preset("deit-s"), preset("revit-s")
    rows = {row.dimension: row for row in compare(a, b)}
    assert (rows["params"].a, rows["params"].b) == (params(a), params(b))
    assert rows["embed_dim"].same
    assert rows["dist_token"].b is True
    assert rows["blocks[0].num_heads"].a == 6
    assert rows["blocks[0].num_heads"].b == 10
    assert all(row.same for row in compare(a, a))
    short = a.replace(blocks=a.blocks[:2])
    assert {row.dimension: row.b for row in compare(a, short)}["blocks[2].mlp_dim"] is None


# --- over REST and on the command line ---------------------------------------------------------------------------


def ask(client, what, **body):
    response = client.post(f"/v1/catalogue/{what}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_service_finds_what_the_catalogue_does(client):
    found = ask(client, "find", target="macs", budget_ms=3000.0, data="imagenet-1k", limit=3)
    assert found["unit"] == "million MACs"
    values = [entry["accuracies"][0]["value"] for entry in found["entries"]]
    assert values == sorted(values, reverse=True)
    assert all(entry["latency_ms"] <= 3000 for entry in found["entries"])
    front = ask(client, "pareto", target="macs", data="imagenet-1k")["entries"]
    assert [entry["latency_ms"] for entry in front] == sorted(entry["latency_ms"] for entry in front)
    compared = ask(client, "compare", a={"preset": "deit-s"}, b={"preset": "deit-b"}, target="macs")
    assert compared["cheaper"] == "a"


def test_a_budget_is_answered_by_the_frontier_where_there_is_a_saliency_and_says_so(client, data_dir):
    full = estimate(MacsModel(TINY), TINY).latency_ms
    found = ask(client, "search", target="macs", budget_ms=0.7 * full, saliency="tiny")
    (answer,) = found["answers"]
    assert (answer["answered_by"], answer["detail"]) == ("frontier", "tiny")
    assert answer["kept"] <= answer["bound"]
    by_model = ask(client, "search", target="macs", budget_ms=0.7 * full, model=TINY.to_dict())
    assert by_model["answers"] == found["answers"]


def test_without_a_saliency_revit_and_the_catalogue_answer_and_say_so(client):
    found = ask(client, "search", target="macs", budget_ms=3000.0)["answers"]
    assert found[0]["answered_by"] == "redistributed"
    assert {one["answered_by"] for one in found[1:]} == {"catalogue"}
    known = ask(client, "search", target="macs", budget_ms=3000.0, data="imagenet-1k")["answers"]
    assert known[0]["answered_by"] == "catalogue"
    assert known[0]["entry"]["accuracies"][0]["evidence"] == "published"
    assert "redistributed" in {one["answered_by"] for one in known}


@pytest.mark.parametrize(
    ("what", "body", "kind", "field", "says"),
    [
        ("find", {"budget_ms": 3.0}, "invalid-request", "budget_ms", "needs a target"),
        ("find", {"target": "x"}, "unknown-name", "target", "known: macs"),
        ("find", {"made_from": "x"}, "unknown-name", "made_from", "catalogue"),
        ("find", {"order": "accuracy"}, "invalid-request", "order", "add data"),
        ("find", {"limit": 0}, "invalid-request", "limit", "at least 1"),
        ("pareto", {"target": "macs"}, "invalid-request", "data", "data"),
        ("search", {"target": "macs", "budget_ms": 0.001}, "budget-out-of-range", "budget_ms", "catalogue has nothing"),
        ("search", {"target": "macs", "budget_ms": 1.0, "profile": "x"}, "unknown-name", "profile", "known: nvidia"),
        ("search", {"target": "macs", "budget_ms": 1.0, "saliency": "x"}, "unknown-name", "saliency", "known: "),
        ("compare", {"a": {"preset": "x"}, "b": {"preset": "deit-s"}}, "unknown-name", "a", "unknown preset"),
    ],
)
def test_a_bad_question_is_one_clear_problem(refused, what, body, kind, field, says):
    refused("POST", f"/v1/catalogue/{what}", 422, kind, field=field, says=(says,), json=body)


def test_a_database_of_another_version_makes_the_service_not_ready(refused, data_dir):
    import sqlalchemy as sa

    from api.db import VERSION_TABLE

    database = Database(f"sqlite:///{data_dir / 'vitfit.sqlite'}")
    with database.writing() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '7777'"))
    database.close()
    refused("POST", "/v1/catalogue/find", 503, "not-ready", says=("newer than this vitfit",), json={})


@pytest.fixture
def cli(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("VITFIT_DATA_DIR", str(fill_library(tmp_path / "library")))
    monkeypatch.setenv("VITFIT_SHIPPED_TABLES", "0")

    def run(*arguments):
        status, out, err = run_cli("catalogue", *arguments)
        return (json.loads(out) if "--json" in arguments else out) if status == 0 else (status, err)

    return run


def test_the_command_line_adds_lists_and_compares(cli, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(TINY.to_json())
    added = cli("add", path, "--accuracy", 0.9, "-d", DATA, "--recipe", "by hand", "--seed", 0, "--seed", 1, "--json")
    assert added == {"new": True, "name": "mine", "kind": "told"}
    (found,) = cli("list", "-d", DATA, "--known", "--json")
    assert found["accuracies"][0]["seeds"] == [0, 1]
    assert found["architecture_id"] == TINY.id
    assert cli("show", "mine", "--json")["architecture"] == TINY.to_dict()
    assert cli("compare", "mine", "deit-s", "--json")["cheaper"] == "mine costs less or as much in everything"
    assert "blocks[0].num_heads" in cli("compare", "mine", "deit-s")
    assert [one["name"] for one in cli("pareto", "-t", "macs", "-d", DATA, "--json")] == ["mine"]
    assert cli("sync", "--json")["unreadable"] == []
    answers = cli("search", "-t", "macs", "--budget-ms", 3000, "--json")
    assert answers[0]["answered_by"] == "redistributed"
    assert "redistributed" in cli("search", "-t", "macs", "--budget-ms", 3000)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["add", "deit-s", "--accuracy", 0.9], 2, "give both or neither"),
        (["add", "deit-s", "--accuracy", 0.9, "-d", "x"], 1, "needs its recipe"),
        (["add", "deit-s", "--accuracy", 0.9, "-d", "x", "--recipe", "r"], 1, "names its seeds"),
        (["list", "--budget-ms", 3], 1, "needs a target"),
        (["list", "--kind", "rumour"], 1, "kind is one of preset"),
        (["show", "NViT-B"], 1, "was never published"),
        (["search", "-t", "macs", "--budget-ms", 0.001], 1, "the nearest above takes"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(cli, arguments, status, says):
    found = cli(*arguments)
    assert found[0] == status, found
    assert says in " ".join(found[1].replace("│", " ").split())
