"""ReViT by width, or the widest one within a budget, as trying every width would show."""

import pytest
from starlette.testclient import TestClient

from latency.storage import save_table
from latency.target import Target
from search.profiles import PROFILES
from search.redistribute import revit
from tests.api.factories import IMAGENET_GRID, TINY_TARGET, V100, affine_table, model_ms
from vit.architecture import Architecture
from vit.cost import macs, params
from vit.presets import preset

PATH = "/v1/architectures/redistribute"


def ask(client: TestClient, **body: object) -> dict:
    response = client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_width_gives_the_released_architecture(client):
    found = ask(client, embed_dim=384)
    assert Architecture.from_dict(found["architecture"]) == preset("revit-s")
    assert (found["id"], found["params"], found["macs"]) == (preset("revit-s").id, 23_123_280, 4_705_190_400)
    assert found["latency"] is None


@pytest.mark.parametrize("depth", [6, 8, 24])
def test_any_depth(client, depth):
    assert len(ask(client, embed_dim=192, depth=depth)["architecture"]["blocks"]) == depth


def test_the_widest_within_a_budget_is_what_trying_all_widths_finds(client):
    template = preset("deit-s")
    widths = [w for w in range(104, 769, 8) if 6 * w <= 3072 and 4 * round(0.005 * w) <= 12]
    for budget in (12.0, 40.0, 71.0, 90.0, 1e6):
        fitting = [w for w in widths if model_ms(revit(w, template)) <= budget]
        if not fitting:
            continue
        found = ask(client, target=V100.slug, budget_ms=budget)
        assert found["architecture"]["embed_dim"] == fitting[-1]
        assert found["latency"]["latency_ms"] == pytest.approx(model_ms(revit(fitting[-1], template)))
        assert found["latency"]["latency_ms"] <= budget


def test_tokens_and_classes_are_those_of_the_target(client, data_dir):
    distilled = preset("deit-b-distilled").replace(num_classes=10)
    target = Target("cpu", "eager", "fp32", 1, 198)
    save_table(affine_table(IMAGENET_GRID, target, distilled), data_dir / "tables" / "cpu.parquet")
    for slug, tokens, classes in ((V100.slug, 197, 1000), (target.slug, 198, 10)):
        found = ask(client, embed_dim=384, target=slug)
        arch = Architecture.from_dict(found["architecture"])
        assert (arch.tokens, arch.num_classes) == (tokens, classes)
        assert found["latency"]["latency_ms"] == pytest.approx(model_ms(arch))
        assert found["latency"]["notes"] == []
        assert found["latency"]["budget_ms"] is None


@pytest.mark.parametrize("name", ["nvidia", "poster", "deit"])
def test_profiles_by_name(client, name):
    found = ask(client, embed_dim=384, profile=name)
    assert Architecture.from_dict(found["architecture"]) == revit(384, profile=PROFILES[name])
    assert found["profile"] == name


def test_several_targets_are_all_met(client):
    asked = [{"target": V100.slug, "budget_ms": 90.0}, {"target": "macs", "budget_ms": 2500.0}]
    found = ask(client, targets=asked)
    assert [one["target"] for one in found["targets"]] == [V100.slug, "macs"]
    assert all(one["latency_ms"] <= one["budget_ms"] for one in found["targets"])
    width = found["architecture"]["embed_dim"]
    wider = revit(width + 8, preset("deit-s"))
    assert model_ms(wider) > 90.0 or macs(wider) > 2500e6


def test_an_architecture_keeps_its_latency(client):
    found = ask(client, architecture={"preset": "deit-s"}, target=V100.slug)
    arch = Architecture.from_dict(found["architecture"])
    assert arch == revit(arch.embed_dim, preset("deit-s"))
    assert found["before"]["id"] == preset("deit-s").id
    assert found["before_ms"] == pytest.approx(model_ms(preset("deit-s")))
    assert found["latency"]["latency_ms"] <= found["before_ms"]


def test_modelled_numbers_say_so(client):
    found = ask(client, embed_dim=384, target=V100.slug)["latency"]
    assert found["kind"] == found["provenance"]["kind"] == "modelled"


def test_on_macs_the_budget_is_millions_of_macs(client):
    found = ask(client, target="macs", budget_ms=4_706)
    assert found["id"] == preset("revit-s").id
    assert found["latency"]["latency_ms"] == pytest.approx(4_705.190_4)
    arch = Architecture.from_dict(found["architecture"])
    assert (found["params"], found["macs"]) == (params(arch), macs(arch))


@pytest.mark.parametrize(
    ("body", "kind", "field", "says"),
    [
        ({}, "invalid-request", None, "exactly one of embed_dim and budget_ms, got neither"),
        ({"target": "macs"}, "invalid-request", None, "got neither"),
        ({"embed_dim": 384, "target": "macs", "budget_ms": 1}, "invalid-request", None, "got both"),
        ({"budget_ms": 1.0}, "invalid-request", None, "needs a target"),
        ({"embed_dim": 64}, "invalid-architecture", "embed_dim", "at least 101, got 64"),
        ({"embed_dim": 50_000}, "invalid-architecture", "embed_dim", "no ReViT has embed_dim 50000"),
        ({"embed_dim": 10**9}, "invalid-request", "embed_dim", "at most 65536"),
        ({"embed_dim": True}, "invalid-request", "embed_dim", "a whole number, got true"),
        ({"embed_dim": 384, "depth": 5}, "invalid-request", "depth", "at least 6, got 5"),
        ({"embed_dim": 384, "depth": 10**9}, "invalid-request", "depth", "at most 1024"),
        ({"target": "x", "budget_ms": 1.0}, "unknown-name", "target", "known: macs"),
        ({"target": "macs", "budget_ms": 0.5}, "budget-out-of-range", "budget_ms", "ask for"),
        ({"target": TINY_TARGET.slug, "budget_ms": 5.0}, "budget-out-of-range", "budget_ms", "covers no ReViT"),
        ({"target": V100.slug, "embed_dim": 760}, "outside-grid", "embed_dim", "outside"),
        ({"embed_dim": 384, "profile": "x"}, "unknown-name", "profile", "known: nvidia, poster, deit"),
        ({"architecture": {"preset": "deit-s"}}, "invalid-request", None, "add target"),
        ({"architecture": {"preset": "deit-s"}, "embed_dim": 8}, "invalid-request", None, "embed_dim and architecture"),
        ({"targets": [{"target": "macs", "budget_ms": 0.5}]}, "budget-out-of-range", "targets", "the nearest above"),
        ({"target": "macs", "budget_ms": -1}, "invalid-request", "budget_ms", "above 0"),
    ],
)
def test_a_bad_question_is_one_clear_problem(refused, body, kind, field, says):
    refused("POST", PATH, 422, kind, field=field, says=(says,), json=body)
