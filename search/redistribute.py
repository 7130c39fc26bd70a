"""ReViT: an architecture from its width alone, by the rule that pruned models taught (Yang et al. 2023, poster).

The rules are profiles (`search.profiles`), NVIDIA's released one unless another is named. Here: the architecture of a
width, the widest within a budget on one or several targets, and an architecture redistributed: the same latency, the
profile's shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latency.estimate import LatencyModel, estimate
from search.errors import BudgetError
from search.profiles import NVIDIA, Profile
from vit.architecture import Architecture, BlockShape
from vit.cost import macs, params
from vit.errors import ArchitectureError

STEP = 8
"""Widths that are tried are multiples of this."""

WIDEST = 4096


def revit_blocks(embed_dim: int, depth: int = 12, profile: Profile = NVIDIA) -> tuple[BlockShape, ...]:
    """The rule. For other depths the profile's ε is stretched: a quarter, a half, a quarter of the blocks.

    Raises:
        ArchitectureError: too narrow or too shallow for the rule.
    """
    return profile.blocks(embed_dim, depth)


def revit(
    embed_dim: int, template: Architecture | None = None, depth: int = 12, profile: Profile = NVIDIA
) -> Architecture:
    """ReViT of a width.

    Args:
        template: image, classes, tokens and norm to take over (ImageNet and a distillation token if not given).
        depth: blocks.
        profile: the rule.

    Raises:
        ArchitectureError: too narrow or too shallow for the rule.
    """
    if template is None:
        from vit.presets import preset

        template = preset("deit-b-distilled")
    return template.replace(embed_dim=embed_dim, blocks=revit_blocks(embed_dim, depth, profile), softmax_scale=None)


def redistribute(
    latency: LatencyModel,
    budget_ms: float,
    template: Architecture | None = None,
    depth: int = 12,
    profile: Profile = NVIDIA,
) -> Architecture:
    """The widest ReViT within a budget, in steps of 8 channels.

    Raises:
        BudgetError: not even the narrowest ReViT that the target covers fits; the message gives the ends.
    """
    return redistribute_within([(latency, budget_ms)], template, depth, profile)


def redistribute_within(
    budgets: Sequence[tuple[LatencyModel, float]],
    template: Architecture | None = None,
    depth: int = 12,
    profile: Profile = NVIDIA,
) -> Architecture:
    """The widest ReViT that is within a budget on every one of several targets, in steps of 8 channels.

    Raises:
        BudgetError: nothing is; says which budgets are in the way, and what the nearest ReViT on each side takes.
    """
    timed = widths([latency for latency, _ in budgets], template, depth, profile)
    fitting = [arch for arch, ms in timed if all(one <= budget for one, (_, budget) in zip(ms, budgets, strict=True))]
    if not fitting:
        raise BudgetError(_unmet(budgets, timed, depth, profile))
    return fitting[-1]


def widths(
    latencies: Sequence[LatencyModel],
    template: Architecture | None = None,
    depth: int = 12,
    profile: Profile = NVIDIA,
) -> list[tuple[Architecture, tuple[float, ...]]]:
    """Every width whose sizes all targets cover, narrow to wide, with its latency on each.

    Raises:
        BudgetError: there is none.
    """
    low = max(latency.bounds["embed_dim"][0] for latency in latencies)
    high = min(latency.bounds["embed_dim"][1] for latency in latencies)
    start = max(low, profile.least_embed_dim(max(depth, 1)))
    found = []
    for embed_dim in range(-(-start // STEP) * STEP, min(high, WIDEST) + 1, STEP):
        try:
            arch = revit(embed_dim, template, depth, profile)
        except ArchitectureError as error:
            if error.field == "depth":
                raise
            continue  # a size that rounds to nothing, or beyond what any model has
        if all(_covers(latency, block) for latency in latencies for block in arch.blocks):
            found.append((arch, tuple(estimate(latency, arch).latency_ms for latency in latencies)))
    if not found:
        names = ", ".join(latency.target.slug for latency in latencies)
        raise BudgetError(f"{names} covers no {_title(profile)} of {depth} blocks; {_needs(profile)}")
    return found


@dataclass(frozen=True, slots=True)
class Redistributed:
    """An architecture in a profile's shape, at the latency that it had.

    Attributes:
        before, after: the architectures.
        ms_before, ms_after: latency on each target.
        wider: the next wider one of the profile, and its latencies: the nearest on the other side. None: there is none.
    """

    profile: Profile
    targets: tuple[str, ...]
    before: Architecture
    after: Architecture
    ms_before: tuple[float, ...]
    ms_after: tuple[float, ...]
    wider: tuple[Architecture, tuple[float, ...]] | None

    def costs(self) -> list[tuple[str, float, float]]:
        """(what, before, after): milliseconds on each target, parameters, MACs."""
        ms = zip(self.targets, self.ms_before, self.ms_after, strict=True)
        return [
            *(((f"latency on {slug}"), a, b) for slug, a, b in ms),
            ("params", params(self.before), params(self.after)),
            ("macs", macs(self.before), macs(self.after)),
        ]


def redistribute_like(
    arch: Architecture, latencies: Sequence[LatencyModel], profile: Profile = NVIDIA, depth: int | None = None
) -> Redistributed:
    """The widest of a profile that is no slower than `arch` on any target; image, tokens and norm are its own.

    Args:
        depth: blocks, as many as `arch` has if not given.

    Raises:
        BudgetError: the narrowest is slower; says by how much.
        TargetError, OutsideGridError: a target that cannot time `arch`.
    """
    budgets = [(latency, estimate(latency, arch).latency_ms) for latency in latencies]
    depth = arch.depth if depth is None else depth
    timed = widths(latencies, arch, depth, profile)
    within = [
        index
        for index, (_, ms) in enumerate(timed)
        if all(one <= budget for one, (_, budget) in zip(ms, budgets, strict=True))
    ]
    if not within:
        raise BudgetError(_unmet(budgets, timed, depth, profile))
    after, ms_after = timed[within[-1]]
    return Redistributed(
        profile,
        tuple(latency.target.slug for latency in latencies),
        arch,
        after,
        tuple(budget for _, budget in budgets),
        ms_after,
        timed[within[-1] + 1] if within[-1] + 1 < len(timed) else None,
    )


def _title(profile: Profile) -> str:
    return "ReViT" if profile.name == NVIDIA.name else f"ReViT by {profile.name}"


def _needs(profile: Profile) -> str:
    """What a table has to cover."""
    ends = profile.num_heads.edge
    heads = f"{ends} heads" if ends is not None else "its heads"
    v_dim = f"V {profile.v_dim.base(1)}" if profile.v_dim.power == 0 else "its V"
    most = max(profile.mlp_dim.eps) * profile.mlp_dim.scale
    mlp = f"MLP {most:g} times embed_dim" if profile.mlp_dim.power == 1 else "its MLP"
    return f"its table must reach {heads}, {v_dim} and {mlp}"


def _unmet(
    budgets: Sequence[tuple[LatencyModel, float]],
    timed: Sequence[tuple[Architecture, tuple[float, ...]]],
    depth: int,
    profile: Profile,
) -> str:
    """What was asked for, and the nearest on each side."""
    asked, nearest = [], []
    for index, (latency, budget) in enumerate(budgets):
        ms = [times[index] for _, times in timed]
        asked.append(f"{budget:.4g} on {latency.target.slug}")
        if any(one <= budget for one in ms):
            continue
        at = min(range(len(ms)), key=ms.__getitem__)
        narrow = timed[at][0].embed_dim
        above = f"the nearest above takes {ms[at]:.4g} (EMB {narrow}), below there is none"
        if math.isnan(budget):
            above = f"the fastest takes {ms[at]:.4g} (EMB {narrow})"
        nearest.append(f"{above}; ask for {min(ms):.4g} to {max(ms):.4g}")
    if not nearest:
        # Each budget alone is met, and never by the same width: a table whose times do not rise with the width.
        nearest.append("each is met alone, none by the same width")
    return f"no {_title(profile)} of {depth} blocks runs in {' and '.join(asked)}: {'; '.join(nearest)}"


def _covers(latency: LatencyModel, block: BlockShape) -> bool:
    return all(
        low <= getattr(block, name) <= high for name, (low, high) in latency.bounds.items() if name != "embed_dim"
    )
