"""What comes with vitfit answers beside a library's own tables, gives way to them, and is never written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import lut_data
from api.app import create_app
from api.library import Library
from api.queries import resolve_target, template_of
from api.settings import Settings
from latency.devices import Traits, calibrations, device_model
from latency.errors import TargetError
from latency.estimate import estimate
from latency.storage import load_table, save_table
from latency.target import Target, split_slug
from search.frontier import Frontier
from search.saliency import save_saliency
from tests.api.factories import IMAGENET_GRID, MEASURED, MODELLED, affine_table
from tests.reference import random_saliency
from vit.architecture import Architecture
from vit.errors import UnknownNameError
from vit.presets import PRESETS, preset

NAMES = sorted(calibrations())
RTX = "rtx-4090-eager-pt2.9-amp"
V100 = Target("v100", "eager", "amp", 256, 197)
SHIPPED = {f"shipped/{path.name}" for path in lut_data.tables()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "library"


@pytest.fixture
def library(root: Path) -> Library:
    return Library.of(Settings(data_dir=root))


@pytest.fixture
def client(root: Path) -> TestClient:
    return TestClient(create_app(Settings(data_dir=root)))


@pytest.fixture
def cli(run_cli, monkeypatch, root):
    monkeypatch.setenv("VITFIT_DATA_DIR", str(root))
    return run_cli


def user_table(root: Path, provenance=MEASURED, file="mine.parquet") -> None:
    save_table(affine_table(IMAGENET_GRID, V100, preset("deit-s"), provenance), root / "tables" / file)


# Shipped tables -----------------------------------------------------------------------------------------------------


def test_every_shipped_table_answers_in_an_empty_library(library, client):
    assert {entry.file for entry in library.targets()} == SHIPPED
    assert all(entry.error is None and entry.shipped for entry in library.targets())
    document = client.get("/v1/targets").json()
    assert {target["file"] for target in document["targets"]} == SHIPPED | {None}
    assert document["modelled_devices"] == NAMES
    for target in document["targets"]:
        assert client.get(f"/v1/targets/{target['target']}").json() == target
        assert (target["kind"] == "modelled") <= (target["provenance"]["interval"] is not None)


def test_the_command_line_lists_them_with_kind_interval_and_where_they_are_from(cli, root):
    user_table(root)
    _, out, err = cli("targets")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [V100.slug, "measured", "", "mine.parquet"] in rows
    assert ["rtx-3080-eager-amp-b256-n197", "modelled", "0.46 to 2.03", "shipped"] in rows
    (beaten,) = [row for row in rows if "not used" in row[-1]]
    assert beaten[-1].startswith("shipped: not used: mine.parquet is a table of the same target")
    assert all(name in err for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_table_is_the_device_model_at_its_grid_points(library, name):
    table = library.table(f"{name}-b256-n197")
    model = device_model(name, preset("deit-b"), 256)
    points = np.stack(np.meshgrid(*table.grid.axes, indexing="ij"), axis=-1)
    np.testing.assert_allclose(table.block_times(points), model.block_times(points), rtol=1e-6)
    np.testing.assert_allclose(
        table.outside_times(table.grid.embed_dim), model.outside_times(table.grid.embed_dim), rtol=1e-6
    )
    assert (table.target, table.kind, table.outside) == (model.target, model.kind, model.outside)
    assert table.provenance.interval == model.provenance.interval


@pytest.mark.parametrize("provenance", [MEASURED, replace(MODELLED, created_at="2001-01-01T00:00:00+00:00")])
def test_a_table_of_the_user_goes_before_a_shipped_one_of_equal_kind_or_less(library, root, provenance):
    assert library.find_table(V100.slug)[1] == f"shipped/{V100.slug}.parquet"
    user_table(root, provenance, f"{V100.slug}.parquet")
    assert library.find_table(V100.slug)[1] == f"{V100.slug}.parquet"
    assert library.latency_model(V100.slug, preset("deit-s")).kind == provenance.kind


def test_a_shipped_table_of_better_evidence_goes_before_the_users(tmp_path, root):
    user_table(tmp_path, MEASURED, "better.parquet")
    user_table(root, MODELLED)
    library = Library(root, shipped=[tmp_path / "tables" / "better.parquet"])
    assert library.find_table(V100.slug)[1] == "shipped/better.parquet"
    (beaten,) = [entry for entry in library.targets() if entry.error]
    assert (beaten.file, "shipped/better.parquet" in str(beaten.error)) == ("mine.parquet", True)


def test_a_shipped_table_that_is_gone_or_damaged_breaks_nothing(tmp_path, root):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1")
    user_table(root)
    library = Library(root, shipped=[bad, tmp_path / "gone.parquet"])
    assert {entry.file: bool(entry.error) for entry in library.targets()} == {
        "mine.parquet": False,
        "shipped/bad.parquet": True,
    }
    assert str(tmp_path) not in str(library.targets()[1].error)


def test_nothing_that_the_service_offers_changes_a_shipped_table(client, root, cli):
    def state() -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in lut_data.FOLDER.iterdir() if p.is_file()}

    before = state()
    url = f"/v1/targets/{V100.slug}"
    for method in ("DELETE", "PUT", "PATCH", "POST"):
        assert client.request(method, url).status_code == 405
    user_table(root)
    assert client.get(url).json()["file"] == "mine.parquet"
    (root / "tables" / "mine.parquet").unlink()
    assert client.get(url).json()["file"] == f"shipped/{V100.slug}.parquet"
    cli("estimate", "deit-s", "-t", V100.slug)
    assert state() == before
    with pytest.raises(ValueError, match="read-only"):
        Library.of(Settings(data_dir=root)).table(V100.slug).block_ms[0] = 0


def test_they_can_be_switched_off(monkeypatch, root):
    monkeypatch.setenv("VITFIT_SHIPPED_TABLES", "0")
    library = Library.of(Settings(data_dir=root))
    assert library.targets() == []
    with pytest.raises(UnknownNameError, match=r"known: macs$"):
        library.latency_model(f"{RTX}-b1-n197", preset("deit-s"))


# Modelled devices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arch", ["deit-s", "revit-s"])
@pytest.mark.parametrize("batch", [1, 64, 1024])
def test_a_modelled_device_answers_at_any_batch_for_any_preset(library, name, arch, batch):
    asked = preset(arch)
    slug = f"{name}-b{batch}-n{asked.tokens}"
    latency = resolve_target(slug, asked, library)
    found, truth = estimate(latency, asked), estimate(device_model(name, asked, batch), asked)
    assert found == truth
    assert (found.target.slug, found.kind, found.notes) == (slug, "modelled", ())
    low, high = found.interval_ms
    assert low <= found.latency_ms <= high


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_an_estimate_on_a_modelled_device(cli, name):
    slug = f"v100-eager-amp-b256-n{preset(name).tokens}"
    status, out, _ = cli("estimate", name, "-t", slug, "--json")
    (document,) = json.loads(out)
    assert (status, document["target"], document["kind"]) == (0, slug, "modelled")
    assert document["interval_ms"][0] < document["latency_ms"] < document["interval_ms"][1]


@pytest.mark.parametrize("slug", ["v100", "v100-eager-amp", f"{RTX}-b0-n197", f"{RTX}-b64-n0197", f"{RTX}-b٣-n197"])
def test_an_unknown_target_is_told_what_exists_and_that_devices_answer_at_any_batch(library, client, slug):
    with pytest.raises(UnknownNameError, match=f"{V100.slug}.* and modelled devices at any -b<batch>-n<tokens>$"):
        library.latency_model(slug, preset("deit-s"))
    assert client.get(f"/v1/targets/{slug}").status_code == 404


def test_a_setting_that_nobody_modelled_is_unknown(library):
    with pytest.raises(UnknownNameError, match="unknown target 'rtx-4090-eager-b64-n197'"):
        library.latency_model("rtx-4090-eager-b64-n197", preset("deit-s"))


@pytest.mark.parametrize("slug", [f"{RTX}-b64-n577", f"{RTX}-b256-n197"])
def test_other_tokens_than_the_targets_are_an_error_that_names_both_and_the_way_out(library, slug):
    target = library.latency_model(slug, preset("revit-s")).target
    right = replace(target, tokens=198).slug
    with pytest.raises(
        TargetError, match=f"made for {target.tokens} tokens, the architecture has 198; ask for {right}"
    ):
        estimate(library.latency_model(slug, preset("revit-s")), preset("revit-s"))


@pytest.mark.parametrize(
    ("tokens", "side", "prefix"),
    [(196, 224, 0), (197, 224, 1), (198, 224, 2), (577, 384, 1), (257, 256, 1), (1, 16, 0)],
)
def test_the_template_for_a_modelled_device_has_its_tokens(library, tokens, side, prefix):
    latency = library.latency_model(f"{RTX}-b64-n{tokens}", preset("deit-b-distilled"))
    arch = template_of(latency)
    assert (arch.tokens, arch.image_size, arch.prefix_tokens) == (tokens, (side, side), prefix)
    assert latency.traits == Traits.of(arch)
    assert estimate(latency, arch).notes == ()


def test_redistribute_finds_a_revit_of_the_tokens_of_a_modelled_device(cli, client):
    slug = f"{RTX}-b64-n577"
    _, out, _ = cli("redistribute", "-t", slug, "--budget-ms", 100, "--json")
    by_cli = json.loads(out)
    by_rest = client.post("/v1/architectures/redistribute", json={"target": slug, "budget_ms": 100}).json()
    assert by_cli["architecture"] == by_rest["architecture"]
    arch = Architecture.from_dict(by_cli["architecture"])
    assert (arch.tokens, by_rest["latency"]["kind"], by_rest["latency"]["notes"]) == (577, "modelled", [])
    assert by_cli["latency_ms"] == estimate(device_model(RTX, arch, 64), arch).latency_ms <= 100
    assert by_cli["interval_ms"] == by_rest["latency"]["interval_ms"]


def test_a_search_on_a_modelled_device_is_the_frontier_of_its_model(cli, client, root):
    arch = preset("deit-t").replace(blocks=preset("deit-t").blocks[:2])
    saliency = random_saliency(arch, seed=0)
    save_saliency(saliency, root / "saliencies" / "two.safetensors")
    slug = f"{RTX}-b128-n197"
    frontier = Frontier(saliency, device_model(RTX, arch, 128))
    choice = frontier.best(frontier.full_ms / 1.5)
    found = client.post("/v1/architectures/search", json={"saliency": "two", "target": slug, "speedup": 1.5}).json()
    assert Architecture.from_dict(found["architecture"]) == choice.arch
    assert (found["target"], found["kind"], found["latency_ms"]) == (slug, "modelled", choice.latency_ms)
    _, out, _ = cli("search", "-s", "two", "-t", slug, "--speedup", 1.5, "--json")
    assert json.loads(out)["id"] == found["id"]
    assert json.loads(out)["interval_ms"] == found["interval_ms"]


def test_one_request_may_mix_geometries_and_traits_on_a_modelled_device(client):
    plain, slug = preset("deit-s"), f"{RTX}-b64-n197"
    archs = [
        plain,
        plain.replace(layer_scale=True),
        plain.replace(pre_norm=True),
        plain.replace(image_size=(112, 112), patch_size=(8, 8)),
        plain,
    ]
    body = {"targets": [slug, "macs"], "architectures": [arch.to_dict() for arch in archs]}
    answer = client.post("/v1/latency/estimate", json=body).json()
    for arch, found in zip(archs, answer["architectures"], strict=True):
        truth = estimate(device_model(RTX, arch, 64), arch)
        assert found["estimates"][0]["latency_ms"] == pytest.approx(truth.latency_ms, rel=1e-12)
        assert (found["estimates"][0]["kind"], found["estimates"][0]["notes"]) == ("modelled", [])


def test_other_tokens_in_a_request_are_the_architectures_fault(client):
    body = {"targets": [f"{RTX}-b64-n197"], "architectures": [{"preset": "deit-s"}, {"preset": "revit-s"}]}
    response = client.post("/v1/latency/estimate", json=body)
    assert (response.status_code, response.json()["type"]) == (422, "/problems/target-mismatch")
    assert response.json()["field"] == "architectures[1]"


def test_a_modelled_device_is_shown_at_any_batch(client):
    target = client.get(f"/v1/targets/{RTX}-b8-n577").json()
    assert (target["batch"], target["tokens"], target["kind"], target["file"]) == (8, 577, "modelled", None)
    assert target["provenance"]["interval"] == list(calibrations()[RTX].interval)


# Notes and comparisons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_scale": True}, "without LayerScale, this one has LayerScale"),
        ({"pre_norm": True}, "without pre-norm, this one has pre-norm"),
        ({"qk_norm": True}, "without qk-norm, this one has qk-norm"),
        (
            {"class_token": False, "pool": "avg", "image_size": (1, 197), "patch_size": (1, 1)},
            "with prefix tokens, this one has no prefix tokens",
        ),
    ],
)
def test_a_modelled_table_says_which_traits_it_was_not_made_for(library, changes, says):
    arch = preset("deit-s").replace(**changes)
    notes = [note for note in estimate(library.table(f"{RTX}-b256-n197"), arch).notes if "modelled for" in note]
    assert notes == [f"modelled for architectures {says}"]


def test_only_what_is_modelled_has_notes_on_traits(library, root):
    arch = preset("deit-s").replace(layer_scale=True, pre_norm=True, qk_norm=True)
    user_table(root)
    assert estimate(library.table(V100.slug), arch).notes == ()
    assert estimate(library.latency_model("macs", arch), arch).notes == ()
    (qk_norm,) = estimate(library.latency_model(f"{RTX}-b64-n197", arch), arch).notes
    assert "qk-norm" in qk_norm, "no figure has it; the other two are in the model"


def test_several_targets_are_compared_in_one_table(cli):
    targets = [V100.slug, f"{RTX}-b256-n197", "macs"]
    options = [option for slug in targets for option in ("-t", slug)]
    status, out, _ = cli("estimate", "deit-s", "deit-t", *options, "--json")
    documents = json.loads(out)
    assert status == 0
    assert [(d["architecture"], d["target"]) for d in documents] == [
        (name, slug) for name in ("deit-s", "deit-t") for slug in targets
    ]
    alone = [json.loads(cli("estimate", "deit-s", "-t", slug, "--json")[1])[0] for slug in targets]
    assert documents[:3] == alone
    _, out, _ = cli("estimate", "deit-s", "deit-t", *options)
    for d in documents:
        low, high = d["interval_ms"] or (None, None)
        (row,) = [line for line in out.splitlines() if f"│ {d['target']} " in line and f" {d['architecture']} " in line]
        assert f"{d['latency_ms']:.3f}" in row
        assert low is None or f"({low:.3f} to {high:.3f})" in row
        assert f"{d['target']}: {d['kind']}, " in out


def test_the_slug_of_a_target_is_told_apart_where_it_can_be():
    for path in lut_data.tables():
        target = load_table(path).target
        assert split_slug(target.slug) == (target.setting, target.batch, target.tokens)
    for text in ("", "macs", "v100-eager-amp", "v100-b1", "-b1-n1", "a-b1-n1 ", "a-b01-n1", "a-b1-n1000000000"):
        assert split_slug(text) is None
    assert split_slug("a-b1-n2-b3-n4") == ("a-b1-n2", 3, 4)
