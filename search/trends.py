"""Rules learned from pruned models: how sizes go with depth and with width, and whether they do at all.

The NViT poster read such trends off its pruned models by eye. Here each is a test, and a trend that is not there is
said not to be there and left out of the profile.

Models that were cut from one and the same model (one seed, one data set), to several budgets, are one group: they are
no independent witnesses. With s[g,k,b] the size of block b in model k of group g, and E[g,k] its width:

    depth    r[g,b] = mean over k of (log s[g,k,b] - mean over b of log s[g,k,b])
             ε_b = exp(mean over g of r[g,b]), normalised to mean 1
             statistic Σ_b (mean over g of r[g,b])², against permutations of the blocks, each group's on its own:
             were depth nothing, any order of a group's blocks would be as likely.
    width    p[g] = slope of mean over b of log s on log E, over the models of group g
             power = mean of p[g], with Student's interval over groups; a trend where it excludes 0.

Shapes: G groups, K models of a group, B blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from search.errors import TrendError
from search.frontier import Frontier
from search.profiles import LEAST_DEPTH, SIZES, STEEPEST, Profile, SizeRule
from vit.architecture import Architecture

Array = npt.NDArray[np.float64]

LEVEL = 0.05
"""What is called a trend would come about by chance less often than this."""

PERMUTATIONS = 4_000

LEAST_POWER = 1e-6
"""A size that goes with less than this power of EMB does not change by a channel."""

STEPS = {"num_heads": 1, "qk_dim": 4, "v_dim": 4, "mlp_dim": 8}
"""To which learned sizes are rounded."""


@dataclass(frozen=True, slots=True)
class DepthTrend:
    """How one kind of size goes with depth.

    Attributes:
        eps: of every block, mean 1.
        low, high: least and most of the groups, per block.
        p: share of permutations with as much of a trend; None: a single group, which cannot tell.
        shape: `less - more - less`, `more - less - more`, `rises`, `falls` or `uneven`, by thirds; `none` where there
            is no trend.
    """

    eps: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    p: float | None
    shape: str

    @property
    def is_there(self) -> bool:
        return self.p is not None and self.p <= LEVEL


@dataclass(frozen=True, slots=True)
class WidthTrend:
    """How one kind of size goes with EMB.

    Attributes:
        power: size ~ EMB^power; 1: in proportion, as the poster has it for H, QK and MLP.
        interval: 95 % over groups; None: fewer than two groups whose EMB differ.
        mean: geometric mean of the size, at the geometric mean of EMB (`at`).
    """

    power: float
    interval: tuple[float, float] | None
    mean: float
    at: float

    @property
    def is_there(self) -> bool:
        return self.interval is not None and bool(self.interval[0] > LEAST_POWER or self.interval[1] < -LEAST_POWER)


@dataclass(frozen=True, slots=True)
class Trends:
    """
    Attributes:
        depth, width: by size.
        groups: models of each group.
        embed_range: narrowest and widest model.
        source: what the models are.
    """

    depth: Mapping[str, DepthTrend]
    width: Mapping[str, WidthTrend]
    groups: tuple[int, ...]
    embed_range: tuple[int, int]
    source: str = ""

    def profile(self, name: str) -> Profile:
        """The rule, with what is no trend left out: then ε is 1, or the size does not go with EMB.

        Steeper powers than STEEPEST are taken as that: a rule read off budgets close to each other must not explode.
        """
        rules = {}
        for size in SIZES:
            depth, width = self.depth[size], self.width[size]
            power = min(max(width.power, -STEEPEST), STEEPEST) if width.is_there else 0.0
            eps = depth.eps if depth.is_there else (1.0,)
            rules[size] = SizeRule(
                scale=width.mean / float(np.exp(np.log(eps).mean())) / width.at**power,  # both means are geometric
                power=power,
                eps=eps,
                step=STEPS[size],
            )
        return Profile(name, **rules, stretch="lines", source=self.sentence(), embed_range=self.embed_range)

    def sentence(self) -> str:
        """What was learned, and what is not there."""
        by_depth = [f"{size} {self.depth[size].shape}" for size in SIZES if self.depth[size].is_there]
        by_width = [f"{size} ~ EMB^{self.width[size].power:.2f}" for size in SIZES if self.width[size].is_there]
        absent = [f"{size} with depth" for size in SIZES if not self.depth[size].is_there]
        absent += [f"{size} with EMB" for size in SIZES if not self.width[size].is_there]
        models = f"{sum(self.groups)} models of {len(self.groups)} seeds or tasks"
        parts = [f"learned from {models}{f' ({self.source})' if self.source else ''}", *by_depth, *by_width]
        if absent:
            parts.append(f"no trend: {', '.join(absent)}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "groups": list(self.groups),
            "embed_range": list(self.embed_range),
            "depth": {
                size: {
                    "eps": list(trend.eps),
                    "low": list(trend.low),
                    "high": list(trend.high),
                    "p": trend.p,
                    "shape": trend.shape,
                    "is_there": trend.is_there,
                }
                for size, trend in self.depth.items()
            },
            "width": {
                size: {
                    "power": trend.power,
                    "interval": None if trend.interval is None else list(trend.interval),
                    "mean": trend.mean,
                    "at": trend.at,
                    "is_there": trend.is_there,
                }
                for size, trend in self.width.items()
            },
        }


def learn(groups: Sequence[Sequence[Architecture]], source: str = "", seed: int = 0) -> Trends:
    """
    Args:
        groups: of each model that was pruned, what it was cut to at several budgets.
        source: what they are, for the profile.
        seed: of the permutations.

    Raises:
        TrendError: no model, too few blocks, or different numbers of them.
    """
    if not groups or not all(groups):
        raise TrendError("rules are learned from pruned models; give at least one for every group")
    depths = {arch.depth for group in groups for arch in group}
    if len(depths) > 1:
        raise TrendError(f"models of {' and '.join(map(str, sorted(depths)))} blocks cannot be laid over each other")
    (depth,) = depths
    if depth < LEAST_DEPTH:
        raise TrendError(f"a rule with ends and a middle needs at least {LEAST_DEPTH} blocks, the models have {depth}")
    rng = np.random.default_rng(seed)
    embeds = [arch.embed_dim for group in groups for arch in group]
    return Trends(
        {size: _depth_trend([_logs(group, size) for group in groups], rng) for size in SIZES},
        {size: _width_trend(groups, size) for size in SIZES},
        tuple(len(group) for group in groups),
        (min(embeds), max(embeds)),
        source,
    )


def from_frontiers(frontiers: Sequence[Frontier], shares: Sequence[float]) -> list[list[Architecture]]:
    """What every frontier has for these shares of its whole model's latency, a group each.

    Raises:
        BudgetError: a share below what the frontier has.
    """
    return [[frontier.best(share * frontier.full_ms).arch for share in shares] for frontier in frontiers]


def _logs(group: Sequence[Architecture], size: str) -> Array:
    """log of a size, (K, B)."""
    return np.log([[getattr(block, size) for block in arch.blocks] for arch in group])


def _depth_trend(logs: Sequence[Array], rng: np.random.Generator) -> DepthTrend:
    relative = np.stack([(one - one.mean(axis=1, keepdims=True)).mean(axis=0) for one in logs])  # G B
    mean = relative.mean(axis=0)
    p = None
    if len(relative) > 1:
        found = float(np.square(mean).sum())
        shuffled = np.stack([rng.permuted(np.tile(row, (PERMUTATIONS, 1)), axis=1) for row in relative])  # G P B
        by_chance = np.square(shuffled.mean(axis=0)).sum(axis=1)
        p = float((1 + np.count_nonzero(by_chance >= found * (1 - 1e-12))) / (1 + PERMUTATIONS))
        if found < 1e-24:
            p = 1.0  # equal blocks throughout
    eps, scale = np.exp(mean), float(np.exp(mean).mean())
    return DepthTrend(
        tuple((eps / scale).tolist()),
        tuple((np.exp(relative.min(axis=0)) / scale).tolist()),
        tuple((np.exp(relative.max(axis=0)) / scale).tolist()),
        p,
        shape_of(mean) if p is not None and p <= LEVEL else "none",
    )


def shape_of(values: Sequence[float] | Array) -> str:
    """In words, by the means of the first, the middle and the last third of the blocks."""
    first, middle, last = (float(np.mean(part)) for part in np.array_split(np.asarray(values), 3))
    if middle > first and middle > last:
        return "less - more - less"
    if middle < first and middle < last:
        return "more - less - more"
    if first < middle < last:
        return "rises"
    return "falls" if first > middle > last else "uneven"


def _width_trend(groups: Sequence[Sequence[Architecture]], size: str) -> WidthTrend:
    from scipy.stats import t

    widths = [np.log([arch.embed_dim for arch in group]) for group in groups]
    means = [_logs(group, size).mean(axis=1) for group in groups]  # K each
    slopes = [
        float(np.polyfit(x, y, 1)[0]) for x, y in zip(widths, means, strict=True) if len(x) > 1 and np.ptp(x) > 1e-9
    ]
    power, interval = float(np.mean(slopes)) if slopes else 0.0, None
    if len(slopes) > 1:
        half = float(t.ppf(0.975, len(slopes) - 1) * np.std(slopes, ddof=1) / np.sqrt(len(slopes)))
        interval = (power - half, power + half)
    return WidthTrend(
        power,
        interval,
        float(np.exp(np.concatenate(means).mean())),
        float(np.exp(np.concatenate(widths).mean())),
    )
