"""The points of one plan on one device of this machine, built and timed."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from latency.plan import Line, ProfilePlan, Visit, reference_point
from latency.runtimes import Call, Device, device_state, prepare
from latency.timer import Effort, Timing, time_call
from vit.architecture import Architecture, BlockShape
from vit.model import Block, VisionTransformer

BEYOND_CACHES = 128 * 2**20
"""Bytes of weights that no cache near a core holds; more copies than these take make no difference."""

LOOK_EVERY = 1.0
"""Seconds between two timings of the reference block."""

ALIGNED = 16
"""Floats to whose multiples every tensor starts: 64 bytes, as PyTorch's own allocator does."""

M = TypeVar("M", bound=nn.Module)


class Bench:
    """Builds and times."""

    def __init__(self, plan: ProfilePlan, device: Device) -> None:
        self.plan, self.device = plan, device
        self.effort = Effort(warmup=max(2, plan.copies), warmup_seconds=0.01, samples=5, most=15, seconds=0.015)
        self._memory = torch.empty(0)
        self._reference = self._block(*plan.grid.point(reference_point(plan.grid)))

    def reference(self) -> float:
        """ms of the reference block, timed now."""
        return self._time(self._reference).measurement.median_ms

    def state(self) -> dict[str, Any]:
        """What the device is doing now."""
        return asdict(device_state(self.device))

    def time(self, point: int) -> Timing:
        count = len(self.plan.grid)
        if point < count:
            return self.time_block(*self.plan.grid.point(point))
        return self._time(self._outside(self.plan.grid.embed_dim[point - count]))

    def time_block(self, embed_dim: int, shape: BlockShape) -> Timing:
        """A block of any sizes, on the grid or not."""
        return self._time(self._block(embed_dim, shape))

    def model(self, arch: Architecture) -> Call:
        """Runs of a whole model."""
        with torch.device("meta"):
            model = VisionTransformer(arch).eval()
        shape = (arch.in_chans, *arch.image_size)
        return prepare(self.plan.target, self.device, self._with_weights([model]), shape)

    def _time(self, call: Call) -> Timing:
        return time_call(call, self.effort, stopwatch=self.device.stopwatch())

    def _block(self, embed_dim: int, shape: BlockShape) -> Call:
        """Runs of one block, with another copy of its weights each time."""
        arch = self.plan.template.replace(embed_dim=embed_dim, blocks=(shape,), softmax_scale=None)
        with torch.device("meta"):
            block = Block(arch, 0).eval()
        count = min(self.plan.copies, max(2, math.ceil(BEYOND_CACHES / (4 * _floats(block)))))
        modules = self._with_weights([block] * count)
        return prepare(self.plan.target, self.device, modules, (self.plan.target.tokens, embed_dim))

    def _outside(self, embed_dim: int) -> Call:
        """The whole model without its blocks."""
        arch = self.plan.template.replace(embed_dim=embed_dim, blocks=(BlockShape(1, 1, 1, 1),), softmax_scale=None)
        with torch.device("meta"):
            module = VisionTransformer(arch).eval()
        module.blocks = nn.Sequential()
        shape = (arch.in_chans, *arch.image_size)
        return prepare(self.plan.target, self.device, self._with_weights([module]), shape)

    def _with_weights(self, modules: Sequence[nn.Module]) -> list[nn.Module]:
        """Modules with random weights, one after the other in one piece of memory that all points share: making new
        ones would take longer than timing a block."""
        if (needed := sum(_floats(module) for module in modules)) > len(self._memory):
            self._memory = random_numbers(needed)
        start = 0

        def weights(parameter: nn.Parameter) -> nn.Parameter:
            nonlocal start
            values = self._memory[start : start + parameter.numel()].view(parameter.shape)
            start += _aligned(parameter.numel())
            return nn.Parameter(values, requires_grad=False)

        return [_copy_with(module, weights) for module in modules]


def _copy_with(module: nn.Module, weights: Callable[[nn.Parameter], nn.Parameter]) -> nn.Module:
    """A module like this one with other parameters; ten times as fast as a deep copy."""
    like = copy.copy(module)
    like._parameters = {name: p if p is None else weights(p) for name, p in module._parameters.items()}
    like._modules = {name: m if m is None else _copy_with(m, weights) for name, m in module._modules.items()}
    return like


def _aligned(count: int) -> int:
    return ALIGNED * math.ceil(count / ALIGNED)


def _floats(module: nn.Module) -> int:
    return sum(_aligned(parameter.numel()) for parameter in module.parameters())


def random_numbers(count: int) -> torch.Tensor:
    """Ordinary numbers: zeros and denormals would be timed faster or slower than real weights."""
    return torch.empty(count).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))


def random_weights(module: M) -> M:
    """The module with ordinary numbers everywhere (see `random_numbers`)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
    return module


class Stand(Protocol):
    """What a Visitor times on: a Bench, or a fake device."""

    def reference(self) -> float: ...
    def state(self) -> dict[str, Any]: ...
    def time(self, point: int) -> Timing: ...


class Visitor:
    """Makes visits, and looks at the reference block before the first one and about every second from then on."""

    def __init__(self, bench: "Stand", worker: str = "", now: Callable[[], float] = time.time) -> None:
        self.bench, self.worker, self.now = bench, worker, now
        self._looked = -math.inf

    def look(self) -> Line:
        """One timing of the reference block: a journal's line."""
        self._looked = self.now()
        return {
            "worker": self.worker,
            "at": self._looked,
            "reference_ms": self.bench.reference(),
            "state": self.bench.state(),
        }

    def visit(self, visit: Visit) -> list[Line]:
        """The journal's lines of one visit."""
        lines = [self.look()] if self.now() - self._looked > LOOK_EVERY else []
        index, point = visit
        at, timing = self.now(), self.bench.time(point)
        lines.append(
            {
                "worker": self.worker,
                "at": at,
                "round": index,
                "point": point,
                "ms": timing.measurement.median_ms,
                "iqr_ms": timing.measurement.iqr_ms,
                "samples": len(timing.measurement.samples_ms),
                "disturbed": timing.disturbed,
            }
        )
        return lines
