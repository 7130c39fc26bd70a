"""Which single weights stay: boolean tensors by parameter name, True where a weight stays."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vit.errors import MaskError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class SparsityMask:
    """Of some of a model's parameters, each weight that stays.

    Attributes:
        keep: parameter name -> boolean tensor of the parameter's shape, on the CPU; True stays. Copied.

    Raises:
        MaskError: a mask that is no boolean tensor.
    """

    keep: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.keep.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"the mask of {name} must be a boolean tensor, got {kind}")
        object.__setattr__(self, "keep", {name: mask.detach().cpu().clone() for name, mask in self.keep.items()})

    @classmethod
    def of(cls, model: nn.Module, names: Iterable[str]) -> "SparsityMask":
        """What stays of these parameters where every zero counts as removed."""
        parameters = _named(model, names)
        return cls({name: parameter.detach() != 0 for name, parameter in parameters.items()})

    @property
    def total(self) -> int:
        """Weights that have a mask."""
        return sum(mask.numel() for mask in self.keep.values())

    @property
    def zeros(self) -> int:
        """Weights that are removed."""
        return self.total - sum(int(mask.sum()) for mask in self.keep.values())

    @property
    def sparsity(self) -> float:
        """Fraction removed of the weights that have a mask, in [0, 1]."""
        return self.zeros / self.total if self.total else 0.0

    def sparsities(self) -> dict[str, float]:
        """Fraction removed, by parameter."""
        return {name: 1 - float(mask.float().mean()) for name, mask in self.keep.items()}

    def check(self, model: nn.Module) -> None:
        """
        Raises:
            MaskError: a parameter that the model does not have, or of another shape.
        """
        for name, parameter in _named(model, self.keep).items():
            if parameter.shape != self.keep[name].shape:
                raise MaskError(
                    f"the mask of {name} has shape {tuple(self.keep[name].shape)}, "
                    f"the weights have {tuple(parameter.shape)}"
                )

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Zero in place what is removed.

        Raises:
            MaskError: it does not fit the model, which is left as it was.
        """
        self.check(model)
        for parameter, keep in self.on(model):
            parameter.mul_(keep)

    def on(self, model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each masked parameter with its mask, on its device."""
        for name, parameter in _named(model, self.keep).items():
            yield parameter, self.keep[name].to(parameter.device)

    def applied(self, model: Module) -> Module:
        """A copy of the model without what is removed."""
        made = copy.deepcopy(model)
        self.apply_(made)
        return made

    def within(self, other: "SparsityMask") -> bool:
        """Whether every weight that the other removes of these parameters is removed here, too."""
        return all(not bool((mask & ~other.keep[name]).any()) for name, mask in self.keep.items() if name in other.keep)


def _named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    for name in (wanted := list(names)):
        if name not in parameters:
            raise MaskError(f"the model has no parameter {name!r:.80}")
    return {name: parameters[name] for name in wanted}
