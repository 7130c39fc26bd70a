"""The modelled targets: which they are, what each is calibrated on, and what is then known of its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from latency.calibration import Equations, Figure, Plan, fit, left_out
from latency.devices import EXECUTIONS, TERMS, Calibration, Traits, block_terms, outside_terms
from latency.estimate import points_of
from latency.table import Outside
from vit.architecture import Architecture
from vit.presets import PUBLISHED, preset

Array = npt.NDArray[np.float64]

CREATED_AT = "2026-11-20T00:00:00+00:00"
"""Of the calibration, fixed so that the same figures make the same files."""

PLANS = (
    Plan("v100", "eager", "fp32", "fp32", 7.85, 900, few=True),
    Plan("a100", "eager-pt1.12", "fp16", "fp16", 156.0, 1555, few=True),
    Plan("rtx-3090", "eager-pt1.13", "amp", "amp", 35.6, 936),
    Plan("rtx-3090", "eager-pt2.4", "amp", "amp-fused", 35.6, 936),
    Plan("rtx-4090", "eager-pt2.9", "amp", "amp-fused", 82.6, 1008),
    Plan("rtx-4090", "compile-pt2.9", "amp", "amp-compiled", 82.6, 1008),
    Plan("rtx-5090", "eager-pt2.9", "amp", "amp-fused", 104.8, 1792),
    Plan("rtx-5090", "compile-pt2.9", "amp", "amp-compiled", 104.8, 1792),
)
"""Targets with published throughput."""

SPEEDUP_PLANS = (
    Plan("v100", "eager", "amp", "amp", 62.5, 900, few=True),
    Plan("rtx-3080", "eager", "amp", "amp", 29.8, 760, few=True),
)
"""Targets of which speed-ups over DeiT-B are all that was published (NViT's poster)."""

REFERENCES = ("v100-eager-fp32", "a100-eager-pt1.12-fp16", "rtx-3090-eager-pt1.13-amp")
"""Targets that run like those of SPEEDUP_PLANS (eager, attention not fused), and lend them an absolute scale."""

_BASE, _CALIBRATED_ON, POSTER_BATCH = "deit-b-distilled", ("deit-s-distilled", "deit-t-distilled"), 256


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A calibrated target and its predictions for its own figures.

    Attributes:
        weights: coefficients in the order of `devices.TERMS`.
        equations: the figures.
        fitted_ms, without_architecture_ms, without_row_ms: shape (rows,); by a fit to all rows, to the rows of other
            architectures, to all other rows.
    """

    plan: Plan
    equations: Equations
    weights: Array
    fitted_ms: Array
    without_architecture_ms: Array
    without_row_ms: Array

    def error_percent(self, predicted_ms: Array) -> Array:
        return np.asarray(100 * (predicted_ms / self.equations.batch_ms - 1))


def outcome(plan: Plan, figures: Sequence[Figure]) -> Outcome:
    equations = Equations.of(EXECUTIONS[plan.execution], [f for f in figures if f.target == plan.name])
    weights = fit(plan, equations)
    return Outcome(
        plan,
        equations,
        weights,
        equations.predict(weights),
        left_out(plan, equations, equations.groups),
        left_out(plan, equations, range(len(equations.names))),
    )


def interval_of(measured_over_predicted: npt.ArrayLike) -> tuple[float, float]:
    """Two multiples of a prediction that hold nine in ten of these ratios; of fewer than twenty, all."""
    ratios = np.asarray(measured_over_predicted, dtype=np.float64)
    low = np.quantile(ratios, 0.05, method="lower")
    return float(low), float(np.quantile(ratios, 0.95, method="higher"))


def _calibration(plan: Plan, weights: Array, **values: object) -> Calibration:
    """Six digits: more would differ from one linear algebra library to the next."""
    coefficients = {name: float(f"{weight:.6g}") for name, weight in zip(TERMS, weights, strict=True)}
    return Calibration(
        device=plan.device,
        runtime=plan.runtime,
        dtype=plan.dtype,
        execution=plan.execution,
        coefficients=coefficients,
        created_at=CREATED_AT,
        **values,  # type: ignore[arg-type]
    )


def from_throughput(result: Outcome, sources: Sequence[str]) -> Calibration:
    held_out = result.without_architecture_ms
    low, high = interval_of(result.equations.batch_ms / held_out)
    error = np.abs(result.error_percent(held_out))
    rows, architectures = len(error), len(set(result.equations.groups))
    method = (
        f"closed-form model of MACs and bytes with non-negative coefficients, calibrated on {rows} published "
        f"throughputs of {architectures} architectures; leaving out one architecture at a time, mean error "
        f"{error.mean():.1f} %; "
        "the split between heads, QK and V rests on MACs and bytes, no figure varies them apart"
    )
    quality = {
        "figures": rows,
        "architectures": architectures,
        "heldout_mape_percent": round(float(error.mean()), 2),
        "heldout_p95_percent": round(float(np.percentile(error, 95)), 2),
        "fit_mape_percent": round(float(np.abs(result.error_percent(result.fitted_ms)).mean()), 2),
    }
    return _calibration(
        result.plan,
        result.weights,
        interval=(round(low, 4), round(high, 4)),
        quality=quality,
        method=method,
        source="; ".join(sorted(set(sources))),
    )


# Speed-ups alone -----------------------------------------------------------------------------------------------------


def _terms(plan: Plan, arch: Architecture) -> Array:
    """Of a whole batch, shape (TERMS,)."""
    execution = EXECUTIONS[plan.execution]
    outside = Outside(arch.image_size, arch.patch_size, arch.in_chans, arch.num_classes)
    blocks = block_terms(execution, arch.tokens, Traits.of(arch), points_of(arch)).sum(axis=0)
    return np.asarray(POSTER_BATCH * (blocks + outside_terms(outside, float(arch.embed_dim))))


def poster_speedups(device: str) -> dict[str, float]:
    """Speed-ups over distilled DeiT-B that the poster prints for models whose sizes are known, by preset."""
    return {r.preset: r.speedup[device] for r in PUBLISHED if r.preset and r.preset != _BASE and device in r.speedup}


@dataclass(frozen=True, slots=True, eq=False)
class SpeedupFit:
    """Coefficients from speed-ups, with the estimates of the scale that speed-ups leave open.

    Attributes:
        weights: in the order of TERMS, at the geometric mean of the estimates.
        base_ms: DeiT-B's batch at that mean.
        base_ms_estimates: by reference target and kind of term.
    """

    plan: Plan
    weights: Array
    base_ms: float
    base_ms_estimates: Mapping[str, float]

    def predict(self, name: str) -> float:
        """ms a batch of a preset."""
        arch = preset(name)
        constant = EXECUTIONS[self.plan.execution].block_ms * (arch.depth + 1)
        return float(constant + _terms(self.plan, arch) @ self.weights)

    def speedup(self, name: str) -> float:
        return self.predict(_BASE) / self.predict(name)


def fit_speedups(plan: Plan, speedups: Mapping[str, float], references: Sequence[Outcome]) -> SpeedupFit:
    """Coefficients whose speed-ups over DeiT-B are these, and a scale.

    Time is measured in DeiT-B's first: the speed-ups say how it divides into compute, memory and rows (rows only if
    there are two). For the scale, the device is taken to reach the same share of its datasheet's peak rate, or of its
    bandwidth, as a reference does of its own: two estimates a reference, and their geometric mean.
    """
    sharing = plan.sharing[:, : len(speedups) + 1]
    names = [_BASE, *speedups]
    share = 1 / np.array([1.0, *speedups.values()])
    terms = np.stack([_terms(plan, preset(name)) for name in names]) @ sharing
    constant = EXECUTIONS[plan.execution].block_ms * np.array([preset(name).depth + 1 for name in names])
    rates = {"gemm": plan.peak_tmacs, "traffic": plan.bandwidth_gbs}
    costs = {  # per GMAC or MB, by reference and kind of term
        (r.plan.name, kind): r.weights[TERMS.index(kind)] * theirs / rates[kind]
        for r in references
        for kind, theirs in (("gemm", r.plan.peak_tmacs), ("traffic", r.plan.bandwidth_gbs))
    }
    # The constants are known in ms, the speed-ups in DeiT-B's: a fixed point, reached fast, as the constants are small.
    base_ms = 1e6
    for _ in range(20):
        unit, _ = nnls(terms / share[:, None], 1 - constant / base_ms / share)
        cost_in_bases = {"gemm": unit[0], "traffic": unit[1]}
        estimates = {f"{name} {kind}": float(cost / cost_in_bases[kind]) for (name, kind), cost in costs.items()}
        base_ms = float(np.exp(np.mean(np.log(list(estimates.values())))))
    return SpeedupFit(plan, base_ms * (sharing @ unit), base_ms, estimates)


def left_out_speedups(plan: Plan, references: Sequence[Outcome]) -> dict[str, float]:
    """Each speed-up that the target is calibrated on, predicted from the other."""
    published = {name: poster_speedups(plan.device)[name] for name in _CALIBRATED_ON}
    return {
        name: fit_speedups(plan, {n: s for n, s in published.items() if n != name}, references).speedup(name)
        for name in published
    }


def calibrated_speedups(plan: Plan, references: Sequence[Outcome]) -> SpeedupFit:
    published = poster_speedups(plan.device)
    return fit_speedups(plan, {name: published[name] for name in _CALIBRATED_ON}, references)


def from_speedups(result: SpeedupFit, references: Sequence[Outcome]) -> Calibration:
    published = poster_speedups(result.plan.device)
    ratios = {n: published[n] / s for n, s in left_out_speedups(result.plan, references).items()}
    estimates = np.array(list(result.base_ms_estimates.values())) / result.base_ms
    low = float(estimates.min()) * min(1.0, *ratios.values())
    high = float(estimates.max()) * max(1.0, *ratios.values())
    worst = 100 * max(abs(1 / r - 1) for r in ratios.values())
    method = (
        "closed-form model of MACs and bytes with non-negative coefficients; how time divides from two published "
        f"speed-ups over DeiT-B (each predicted from the other within {worst:.1f} %), the absolute scale from the "
        f"datasheet at the shares of it that {', '.join(REFERENCES)} reach: trust ratios, not milliseconds; the "
        "interval holds all estimates of the scale"
    )
    quality = {"figures": len(ratios), "heldout_speedup_percent": round(worst, 2)}
    return _calibration(
        result.plan,
        result.weights,
        interval=(round(low, 4), round(high, 4)),
        quality=quality,
        method=method,
        source="NViT poster (CVPR 2023), comparison table",
    )


def calibrate(figures: Sequence[Figure]) -> tuple[Calibration, ...]:
    """All modelled targets, in the order of PLANS and SPEEDUP_PLANS."""
    outcomes = {plan.name: outcome(plan, figures) for plan in PLANS}
    references = [outcomes[name] for name in REFERENCES]
    measured = [
        from_throughput(result, [f.source for f in figures if f.target == name]) for name, result in outcomes.items()
    ]
    return (*measured, *(from_speedups(calibrated_speedups(p, references), references) for p in SPEEDUP_PLANS))
