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


def test_the_answer_keeps_to_the_constraints(client):
    found = ask(client, budget_ms=model_ms(TINY) * 0.85, minimum={"num_heads": 2}, fix_embed_dim=8)["architecture"]
    assert found["embed_dim"] == 8
    assert all(block["num_heads"] == 2 for block in found["blocks"])
    found = ask(client, budget_ms=model_ms(TINY) * 0.95, protect=[1], fix_embed_dim="whole")["architecture"]
    assert found["embed_dim"] == TINY.embed_dim
    assert found["blocks"][1] == TINY.to_dict()["blocks"][1]


def test_one_architecture_is_within_the_budget_of_every_target(client):
    latencies = {SLUG: tiny_table(), "macs": MacsModel(TINY)}
    budgets = {slug: 0.75 * estimate(latency, TINY).latency_ms for slug, latency in latencies.items()}
    question = [{"target": slug, "budget_ms": budget} for slug, budget in budgets.items()]
    response = client.post(PATH, json={"saliency": "tiny", "targets": question, "multiples": TINY_STEPS})
    assert response.status_code == 200, response.text
    found = response.json()
    arch = Architecture.from_dict(found["architecture"])
    for answer, (slug, budget) in zip(found["targets"], budgets.items(), strict=True):
        assert (answer["target"], answer["budget_ms"]) == (slug, budget)
        assert answer["latency_ms"] == pytest.approx(estimate(latencies[slug], arch).latency_ms)
        assert answer["latency_ms"] <= budget
        assert answer["full_ms"] == pytest.approx(estimate(latencies[slug], TINY).latency_ms)
    best = max(
        slow_kept(SALIENCY, sizes) / SALIENCY.total
        for sizes, small in every_architecture(TINY, tiny_table(), STEPS)
        if all(estimate(latencies[slug], small).latency_ms <= budget for slug, budget in budgets.items())
    )
    assert found["kept"] == pytest.approx(best)
    assert best <= found["bound"] + ROUNDING
    assert {name: found[name] for name in found["targets"][0]} == found["targets"][0]


def test_a_list_of_one_target_is_that_target(client):
    budget = 0.8 * model_ms(TINY)
    response = client.post(
        PATH,
        json={"saliency": "tiny", "targets": [{"target": SLUG, "budget_ms": budget}], "multiples": TINY_STEPS},
    )
    assert response.json() == ask(client, budget_ms=budget)


@pytest.mark.parametrize(
    ("changes", "kind", "field", "says"),
    [
        ({"minimum": {"mlp_dim": 64}}, "invalid-constraints", "minimum", "64 is more than the model has"),
        ({"minimum": {"mlp_dim": 0}}, "invalid-request", "minimum.mlp_dim", "at least 1"),
        ({"fix_embed_dim": 32}, "invalid-constraints", "fix_embed_dim", "32 is more than the model's embed_dim 16"),
        ({"fix_embed_dim": "half"}, "invalid-request", "fix_embed_dim", "whole"),
        ({"equal_blocks": True}, "invalid-constraints", "equal_blocks", "block 1 has other sizes"),
        ({"equal_blocks": True, "protect": [0]}, "invalid-constraints", "protect", "contradict"),
        ({"protect": [2]}, "invalid-constraints", "protect", "no block 2"),
        ({"protect_sizes": ["0.depth"]}, "invalid-constraints", "protect_sizes", "holds names of sizes"),
        ({"protect": [-1]}, "invalid-request", "protect[0]", "at least 0, got -1"),
        ({"budget_ms": 2.3, "protect": [0, 1]}, "budget-out-of-range", "budget_ms", "without protected blocks 0, 1"),
        ({"targets": []}, "invalid-request", "targets", "at least 1 entry"),
        ({"targets": [{"target": SLUG, "budget_ms": 2.0}]}, "invalid-request", None, "one of target and targets"),
        ({"target": None}, "invalid-request", None, "exactly one of target and targets, got neither"),
    ],
)
def test_bad_constraints_are_one_clear_problem(refused, changes, kind, field, says):
    body = {"saliency": "tiny", "target": SLUG, "budget_ms": 3.0, **changes}
    refused("POST", PATH, 422, kind, field=field, says=(says,), json=body)


@pytest.mark.parametrize(
    ("targets", "kind", "field", "says"),
    [
        ([("macs", 0.05), ("a100", 2.0)], "unknown-name", "targets[1].target", SLUG),
        ([("macs", 0.05), (V100.slug, 2.0)], "target-mismatch", "targets", "197 tokens"),
        ([("macs", 0.05), (SLUG, 0.01)], "budget-out-of-range", "targets", f"in 0.01 ms on {SLUG}"),
        ([("macs", 1e6), (SLUG, 1e6)], "budget-out-of-range", "targets", "needs no search"),
    ],
)
def test_bad_targets_are_one_clear_problem(refused, targets, kind, field, says):
    question = [{"target": slug, "budget_ms": budget} for slug, budget in targets]
    refused("POST", PATH, 422, kind, field=field, says=(says,), json={"saliency": "tiny", "targets": question})


def test_several_targets_have_their_own_budgets(refused):
    body = {"saliency": "tiny", "targets": [{"target": SLUG, "budget_ms": 2.0}], "speedup": 2.0}
    refused("POST", PATH, 422, "invalid-request", says=("each of targets has its own budget_ms",), json=body)


def test_a_service_that_was_started_again_answers_the_same_without_building(data_dir, monkeypatch):
    question = {"saliency": "tiny", "target": SLUG, "speedup": 1.2, "multiples": TINY_STEPS}
    settings = Settings(data_dir=data_dir, shipped_tables=False)
    first = TestClient(create_app(settings)).post(PATH, json=question).json()
    monkeypatch.setattr("api.library.Frontier", None)
    assert TestClient(create_app(settings)).post(PATH, json=question).json() == first


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
