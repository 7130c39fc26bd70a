"""`vitfit search`: constraints and several targets, in the spelling of the other interfaces."""

import json

import pytest

from latency.analytic import MacsModel
from latency.estimate import estimate
from search.constraints import Constraints
from search.frontier import Frontier
from search.joint import joint_choice
from tests.api.factories import TINY, TINY_STEPS, TINY_TARGET, fill, model_ms, tiny_table
from tests.reference import random_saliency
from vit.architecture import Architecture, Unit

SLUG = TINY_TARGET.slug
STEPS = [word for name, step in TINY_STEPS.items() for word in ("--multiple", f"{name}={step}")]
BUDGET = 0.85 * model_ms(TINY)


@pytest.fixture
def search(run_cli, monkeypatch, tmp_path):
    """The JSON document of a search, or (exit status, error) where it fails."""
    monkeypatch.setenv("VITFIT_DATA_DIR", str(fill(tmp_path / "library")))
    monkeypatch.setenv("VITFIT_SHIPPED_TABLES", "0")

    def run(*arguments):
        status, out, err = run_cli("search", "-s", "tiny", *STEPS, *arguments, "--json")
        return json.loads(out) if status == 0 else (status, err)

    return run


@pytest.mark.parametrize(
    ("options", "constraints"),
    [
        ([], {}),
        (["--minimum", "num_heads=2", "--min", "qk_dim=8"], {"minimum": {Unit.HEAD: 2, Unit.QK: 8}}),
        (["--fix-embed-dim", "whole"], {"fix_embed_dim": "whole"}),
        (["--fix-embed-dim", 8], {"fix_embed_dim": 8}),
        (["--protect", "1"], {"protect": (1,)}),
        (["--protect", "0.mlp_dim, qk_dim"], {"protect_sizes": ("0.mlp_dim", "qk_dim")}),
        (["--multiple", "mlp_dim=32"], {"multiples": {Unit.MLP: 32}}),
    ],
)
def test_options_are_the_constraints_of_the_same_name(search, options, constraints):
    steps = {Unit.QK: 4, Unit.V: 4, Unit.MLP: 16} | constraints.pop("multiples", {})
    wanted = Frontier(random_saliency(TINY, 0), tiny_table(), Constraints(multiples=steps, **constraints)).best(BUDGET)
    found = search("-t", SLUG, "--budget-ms", BUDGET, *options)
    assert Architecture.from_dict(found["architecture"]) == wanted.arch
    assert (found["kept"], found["bound"]) == (wanted.kept, wanted.bound)


def test_several_targets_each_have_their_budget(search, tmp_path):
    budgets = {SLUG: BUDGET, "macs": 0.7 * estimate(MacsModel(TINY), TINY).latency_ms}
    path = tmp_path / "found.json"
    targets = [word for slug, budget in budgets.items() for word in ("-t", f"{slug}={budget!r}")]
    found = search(*targets, "--out", path)
    asked = [(tiny_table(), budgets[SLUG]), (MacsModel(TINY), budgets["macs"])]
    wanted = joint_choice(random_saliency(TINY, 0), asked, Constraints(multiples={Unit.QK: 4, Unit.V: 4, Unit.MLP: 16}))
    assert Architecture.from_json(path.read_text()) == wanted.arch
    assert [(t["target"], t["budget_ms"]) for t in found["targets"]] == list(budgets.items())
    assert tuple(t["latency_ms"] for t in found["targets"]) == wanted.latency_ms
    assert (found["kept"], found["bound"]) == (wanted.kept, wanted.bound)


def test_one_target_with_its_budget_is_a_target_and_a_budget(search):
    assert search("-t", f"{SLUG}={BUDGET!r}") == search("-t", SLUG, "--budget-ms", BUDGET)


def test_the_answer_for_several_targets_names_all_of_them(run_cli, search):
    status, out, _ = run_cli("search", "-s", "tiny", "-t", f"{SLUG}={BUDGET}", "-t", "macs=1")
    assert status == 0
    assert f"of {BUDGET:.3f} on {SLUG} (measured)" in out
    assert "M MACs of 1.000 on macs" in out
    assert "nothing within all budgets keeps more than" in out


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["-t", SLUG, "--speedup", 1.2, "--minimum", "mlp_dim"], 2, "--minimum mlp_dim takes a whole number"),
        (["-t", SLUG, "--speedup", 1.2, "--minimum", "mlp=8"], 1, "minimum has the fields embed_dim, num_heads"),
        (["-t", SLUG, "--speedup", 1.2, "--protect", "first"], 1, "protect_sizes holds names of sizes"),
        (["-t", SLUG, "--speedup", 1.2, "--protect", "0,2"], 1, "there is no block 2 to protect"),
        (["-t", SLUG, "--speedup", 1.2, "--equal-blocks"], 1, "equal_blocks needs a model of equal blocks"),
        (["-t", SLUG, "--speedup", 1.2, "--fix-embed-dim", "half"], 1, "fix_embed_dim is 'whole' or"),
        (["-t", SLUG, "--budget-ms", 2.3, "--protect", "0,1"], 1, "without protected blocks 0, 1"),
        (["-t", f"{SLUG}=2", "-t", "macs"], 1, "each of several targets takes its budget, SLUG=MS; macs has none"),
        (["-t", f"{SLUG}=2", "-t", "macs=1", "--speedup", 2], 2, "each target has its own budget"),
        (["-t", f"{SLUG}=2", "-t", "a100=1"], 1, "unknown target 'a100'"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(search, options, status, says):
    found = search(*options)
    assert found[0] == status, found
    assert says in " ".join(found[1].replace("│", " ").split())
