"""A search answers with the best architecture within the budget, as trying them all would show."""

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from latency.analytic import MacsModel
from latency.estimate import LatencyModel, estimate
from search.saliency import load_saliency, save_saliency
from tests.api.factories import TINY, TINY_STEPS, TINY_TARGET, V100, model_ms, tiny_table
from tests.reference import every_architecture, random_saliency, slow_kept
from vit.architecture import SIZE_FIELD, Architecture
from vit.cost import macs, params

PATH = "/v1/architectures/search"
SLUG = TINY_TARGET.slug
SALIENCY = random_saliency(TINY, 0)
STEPS = {unit: TINY_STEPS[field] for unit, field in SIZE_FIELD.items()}
ROUNDING = 1e-9


def everything(latency: LatencyModel) -> list[tuple[float, float, Architecture]]:
    """(ms, share of saliency kept, architecture) of all that the tiny model can be cut to."""
    return [
        (estimate(latency, arch).latency_ms, slow_kept(SALIENCY, sizes) / SALIENCY.total, arch)
        for sizes, arch in every_architecture(TINY, latency, STEPS)
    ]


@pytest.fixture(scope="module", params=[SLUG, "macs"])
def world(request) -> tuple[str, list[tuple[float, float, Architecture]]]:
    latency = MacsModel(TINY) if request.param == "macs" else tiny_table()
    return request.param, everything(latency)


def ask(client: TestClient, target: str = SLUG, **body: object) -> dict:
    document = {"saliency": "tiny", "target": target, "multiples": TINY_STEPS, **body}
    response = client.post(PATH, json=document)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.75, 0.95, 1.0])
def test_the_answer_is_within_the_budget_and_its_bound_holds_for_all_others(client, world, share):
    target, all_of_them = world
    fastest, slowest = min(ms for ms, _, _ in all_of_them), max(ms for ms, _, _ in all_of_them)
    budget = fastest + share * (slowest - fastest)
    budget *= 1 + ROUNDING if share == 0 else 1 - ROUNDING
    found = ask(client, target, budget_ms=budget)
    best = max(kept for ms, kept, _ in all_of_them if ms <= budget)
    by_id = {arch.id: (ms, kept) for ms, kept, arch in all_of_them}

    ms, kept = by_id[found["id"]]
    assert found["latency_ms"] == pytest.approx(ms)
    assert found["kept"] == pytest.approx(kept)
    assert found["latency_ms"] <= budget
    assert found["kept"] <= best + ROUNDING
    assert best <= found["bound"] + ROUNDING
    assert found["kept"] <= found["bound"]


def test_the_bound_never_falls_when_the_budget_grows(client):
    full = model_ms(TINY)
    bounds = [ask(client, budget_ms=full * share)["bound"] for share in (0.65, 0.7, 0.8, 0.9, 1.0)]
    assert bounds == sorted(bounds)


def test_the_whole_models_time_buys_the_whole_model(client):
    found = ask(client, budget_ms=model_ms(TINY))
    assert found["id"] == TINY.id
    assert found["kept"] == pytest.approx(1.0)


def test_the_answer_carries_costs_and_evidence(client):
    found = ask(client, budget_ms=model_ms(TINY) * 0.8)
    arch = Architecture.from_dict(found["architecture"])
    assert (found["id"], found["params"], found["macs"]) == (arch.id, params(arch), macs(arch))
    assert found["full_ms"] == pytest.approx(model_ms(TINY))
    assert (found["saliency"], found["target"], found["unit"]) == ("tiny", SLUG, "ms")
    assert found["kind"] == found["provenance"]["kind"] == "measured"


def test_a_speedup_is_the_budget_that_it_makes(client):
    by_speedup = ask(client, speedup=1.25)
    assert by_speedup["budget_ms"] == pytest.approx(model_ms(TINY) / 1.25)
    assert ask(client, budget_ms=by_speedup["budget_ms"]) == by_speedup


def test_sizes_come_in_the_steps_that_were_asked_for(client):
    found = ask(client, budget_ms=model_ms(TINY) * 0.8, multiples={"mlp_dim": 16, "qk_dim": 8, "v_dim": 4})
    for cut, whole in zip(found["architecture"]["blocks"], TINY.blocks, strict=True):
        assert cut["mlp_dim"] % 16 == 0
        assert cut["qk_dim"] == 8
        assert cut["v_dim"] % 4 == 0 or cut["v_dim"] == whole.v_dim


def test_on_macs_the_budget_is_millions_of_macs(client):
    found = ask(client, "macs", speedup=1.3)
    assert found["full_ms"] == pytest.approx(macs(TINY) / 1e6)
    assert found["latency_ms"] == pytest.approx(found["macs"] / 1e6)
    assert (found["unit"], found["kind"]) == ("million MACs", "analytic")


def test_a_new_saliency_is_answered_from(client, data_dir):
    before = ask(client, speedup=1.3)
    path = data_dir / "saliencies" / "tiny.safetensors"
    save_saliency(random_saliency(TINY, 5), path)
    after = ask(client, speedup=1.3)
    assert before["kept"] != after["kept"]
    assert load_saliency(path).arch == TINY


@pytest.mark.parametrize(
    ("changes", "kind", "field", "says"),
    [
        ({"saliency": "deit"}, "unknown-name", "saliency", "known: tiny"),
        ({"target": "a100"}, "unknown-name", "target", SLUG),
        ({"saliency": "../tables/testbed"}, "unknown-name", "saliency", "known: tiny"),
        ({"target": V100.slug}, "target-mismatch", "target", "197 tokens"),
        ({"budget_ms": 0.001}, "budget-out-of-range", "budget_ms", "ask for"),
        ({"budget_ms": 1e300}, "budget-out-of-range", "budget_ms", "needs no search"),
        ({"budget_ms": None, "speedup": 1e300}, "budget-out-of-range", "speedup", "ask for"),
        ({"speedup": 2.0}, "invalid-request", None, "exactly one of budget_ms and speedup, got both"),
        ({"budget_ms": None}, "invalid-request", None, "exactly one of budget_ms and speedup, got neither"),
        ({"budget_ms": -1}, "invalid-request", "budget_ms", "above 0, got -1"),
        ({"budget_ms": 0}, "invalid-request", "budget_ms", "above 0, got 0"),
        ({"budget_ms": "3"}, "invalid-request", "budget_ms", 'a number, got "3"'),
        ({"budget_ms": True}, "invalid-request", "budget_ms", "a number, got true"),
        ({"budget_ms": None, "speedup": 1}, "invalid-request", "speedup", "above 1, got 1"),
        ({"multiples": {"mlp_dim": 0}}, "invalid-request", "multiples.mlp_dim", "at least 1"),
        ({"multiples": {"mlp": 8}}, "invalid-request", "multiples.mlp", "fields are embed_dim, num_heads"),
        ({"multiples": 8}, "invalid-request", "multiples", "an object, got 8"),
        ({"budget": 3}, "invalid-request", "budget", "is no field here; the fields are saliency, target"),
    ],
)
def test_a_bad_question_is_one_clear_problem(refused, changes, kind, field, says):
    body = {"saliency": "tiny", "target": SLUG, "budget_ms": 2.0, **changes}
    refused("POST", PATH, 422, kind, field=field, says=(says,), json=body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_budget_is_finite(refused, number):
    content = f'{{"saliency": "tiny", "target": "macs", "budget_ms": {number}}}'
    refused(
        "POST",
        PATH,
        422,
        "invalid-request",
        field="budget_ms",
        says=("finite",),
        content=content,
        headers={"content-type": "application/json"},
    )


def test_a_damaged_saliency_is_a_problem_of_the_saliency(refused, data_dir):
    (data_dir / "saliencies" / "broken.safetensors").write_bytes(b"x")
    body = {"saliency": "broken", "target": SLUG, "speedup": 2.0}
    refused("POST", PATH, 422, "invalid-saliency", field="saliency", says=("broken.safetensors",), json=body)


def test_a_search_that_is_too_large_asks_for_larger_multiples(data_dir):
    client = TestClient(create_app(Settings(data_dir=data_dir, max_search_work=10)))
    response = client.post(PATH, json={"saliency": "tiny", "target": SLUG, "speedup": 2.0})
    assert response.status_code == 422
    assert (response.json()["type"], response.json()["field"]) == ("/problems/limit", "multiples")
    assert "larger multiples" in response.json()["detail"]
