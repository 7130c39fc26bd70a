"""Validation tells a wrong table from a slow machine, and both from noise."""

import numpy as np
import pytest

from latency import validation
from latency.analytic import MacsModel
from latency.errors import TargetError
from latency.estimate import estimate
from latency.grid import Grid
from latency.plan import ProfilePlan
from latency.profiler import profile, table_from_journal
from latency.runtimes import device_of, find_device, local_target
from latency.table import Provenance
from latency.target import Target
from latency.validation import random_architecture, validate
from tests.cases import CLASS_TOKEN
from tests.reference import monotone_table

HERE = find_device("cpu", 1)
GRID = Grid((16, 32, 48), (1, 2, 4), (8, 16), (8, 16), (16, 64))
REFERENCE_MS = 2.0


def table_here(**quality):
    table = monotone_table(0, GRID, CLASS_TOKEN)
    evidence = Provenance("measured", "", "", quality={"reference_ms": REFERENCE_MS, "weight_copies": 3.0} | quality)
    target = Target(HERE.slug, "eager", "fp32", 1, CLASS_TOKEN.tokens)
    return type(table)(
        **{
            name: getattr(table, name) for name in ("grid", "block_ms", "block_iqr_ms", "outside", "outside_ms", "norm")
        },
        outside_iqr_ms=table.outside_iqr_ms,
        target=target,
        provenance=evidence,
    )


@pytest.fixture
def fake_timer(monkeypatch):
    """Every model and block takes `table_error` x `machine` times its prediction, with `noise`."""

    def install(table, table_error=1.0, machine=1.0, noise=0.0):
        class Timer:
            def __init__(self, plan, device, archs, singles):
                self.truth = [estimate(table, a).latency_ms for a in archs]
                self.truth += [estimate(table, one).block_ms[0] for one in singles]
                self.draw = np.random.default_rng(0)
                self.bench = self
                self.timed = []

            def reference(self):
                return REFERENCE_MS * machine

            def time(self, item):
                self.timed.append(item)
                return self.truth[item] * table_error * machine * self.draw.normal(1, noise)

        made = []
        monkeypatch.setattr(validation, "_Timer", lambda *a: made.append(Timer(*a)) or made[-1])
        return made

    return install


def result_of(table, **options):
    return list(validate(table, HERE, **options))[-1].result


def test_a_true_table_on_the_same_machine_has_no_error(fake_timer):
    table = table_here()
    fake_timer(table)
    found = result_of(table, models=5, blocks=6)
    for accuracy in (found.models, found.blocks, found.models_floor, found.blocks_floor):
        assert accuracy.worst == pytest.approx(0, abs=1e-12)
    assert found.drift == pytest.approx(1)
    assert found.models.rank_correlation == pytest.approx(1)


def test_a_slower_machine_is_told_from_a_wrong_table(fake_timer):
    table = table_here()
    fake_timer(table, machine=1.25)
    slow = result_of(table, models=5, blocks=6)
    assert slow.drift == pytest.approx(1.25)
    assert slow.models.mape == pytest.approx(0.2)
    assert slow.models_steady.worst == pytest.approx(0, abs=1e-12)
    fake_timer(table, table_error=1.25)
    wrong = result_of(table, models=5, blocks=6)
    assert wrong.drift == pytest.approx(1)
    assert wrong.models_steady.mape == wrong.models.mape == pytest.approx(0.2)


def test_the_noise_floor_is_that_of_measuring_twice(fake_timer):
    table = table_here()
    fake_timer(table, noise=0.05)
    noisy = result_of(table, models=100, blocks=0, rounds=1)
    # Two draws of N(1, 0.05) differ by N(0, 0.05 sqrt 2), whose mean absolute value is that times sqrt(2 / pi).
    assert noisy.models_floor.mape == pytest.approx(0.05 * np.sqrt(2) * np.sqrt(2 / np.pi), rel=0.25)
    assert noisy.blocks is noisy.blocks_floor is None


def test_everything_is_measured_in_both_passes_in_random_order(fake_timer):
    table = table_here()
    made = fake_timer(table)
    steps = list(validate(table, HERE, models=3, blocks=4, rounds=2))
    rounds = np.array(made[0].timed).reshape(4, 7)
    assert (np.sort(rounds, axis=1) == np.arange(7)).all()
    assert len({tuple(r) for r in rounds.tolist()}) > 1
    assert [s.done for s in steps] == [*range(1, 29), 28]
    assert {s.total for s in steps} == {28}
    assert all(s.result is None for s in steps[:-1])


def test_a_table_that_does_not_know_its_reference_gives_no_drift(fake_timer):
    table = table_here(reference_ms=0.0)
    fake_timer(table, machine=1.25)
    found = result_of(table, models=3, blocks=3)
    assert found.drift is None
    assert found.models_steady == found.models


def test_random_models_are_skewed_and_within_bounds_and_a_seed_is_a_model():
    bounds = table_here().bounds
    archs = [random_architecture(CLASS_TOKEN, bounds, 12, seed) for seed in range(30)]
    for arch in archs:
        for axis, (low, high) in bounds.items():
            values = [arch.embed_dim] if axis == "embed_dim" else [getattr(b, axis) for b in arch.blocks]
            assert low <= min(values)
            assert max(values) <= high
    assert len({arch.embed_dim for arch in archs}) > 2
    assert max(len(set(arch.blocks)) for arch in archs) > 6
    assert random_architecture(CLASS_TOKEN, bounds, 12, 3) == archs[3]


@pytest.mark.parametrize("wrong", [{"models": 0, "blocks": 0}, {"models": -1}, {"rounds": 0}])
def test_nothing_to_measure_is_refused(wrong):
    with pytest.raises(TargetError, match="at least one"):
        list(validate(table_here(), HERE, **wrong))


def test_a_target_of_another_device_is_not_validated_here():
    with pytest.raises(TargetError, match="is of raspberry-4t"):
        device_of(Target("raspberry-4t", "eager", "fp32", 1, 5))
    assert device_of(table_here().target) == HERE
    with pytest.raises(TargetError, match=r"CUDA|is of v100"):
        device_of(Target("v100", "eager", "amp", 1, 5))


def test_a_table_made_here_is_validated_here(tmp_path):
    plan = ProfilePlan(
        local_target(HERE, "eager", "fp32", 1, CLASS_TOKEN.tokens), GRID, CLASS_TOKEN, rounds=1, extra=0, copies=2
    )
    list(profile(plan, HERE, tmp_path / "j"))
    table = table_from_journal(plan, tmp_path / "j")
    found = result_of(table, models=2, blocks=3, rounds=1)
    assert (found.models.count, found.blocks.count) == (2, 3)
    assert len(found.names) == len(found.measured_ms) == 5
    assert min(found.measured_ms) > 0
    assert found.drift > 0


def test_random_models_spread_over_the_whole_range_of_costs():
    bounds = {"embed_dim": (64, 768), "num_heads": (1, 12), "qk_dim": (8, 64), "v_dim": (8, 64), "mlp_dim": (16, 3072)}
    costs = [
        estimate(MacsModel(arch), arch).latency_ms
        for arch in (random_architecture(CLASS_TOKEN, bounds, 12, seed) for seed in range(40))
    ]
    assert max(costs) > 10 * min(costs)
