"""Which weights may be pruned: by the type of their layer and the name of their parameter.

The papers' choices are values with their source; patterns are those of shells, `blocks.*`, over whole names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from sparsity.errors import SparsityError

LINEAR, CONV, DEPTHWISE = "linear", "conv", "depthwise"


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Attributes:
        include, exclude: patterns of parameters' names.
        kinds: of layers: linear (the input projections of torch's attention among them), conv (one or two
            dimensions), depthwise (convolutions with one input channel a group).
        block_size: of the Fisher blocks; None: the method's.
        source: where the choice is from.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = (LINEAR, CONV)
    block_size: int | None = None
    source: str = ""


SELECTIONS: Mapping[str, Selection] = {
    "all": Selection(source="every linear layer and every convolution that is not depthwise"),
    "vit": Selection(("blocks.*",), kinds=(LINEAR,), source="ViT, DeiT: all linear layers of the blocks"),
    "swin": Selection(("*.blocks.*",), kinds=(LINEAR,), source="Swin: all linear layers of the blocks"),
    "xcit": Selection(("blocks.*", "cls_attn_blocks.*"), kinds=(LINEAR,), source="XCiT: linear layers of the blocks"),
    "efficientformer": Selection(
        ("stages.*",), source="EfficientFormer: linear layers and 1x1 convolutions of the stages; not said in the paper"
    ),
    "resnet50d": Selection(
        exclude=("conv1.*",), kinds=(CONV,), block_size=256,
        source="oViT, Appendix D: all convolutions but the first (here: the deep stem), classifier dense",
    ),
    "efficientnetv2": Selection(
        exclude=("conv_stem.*",), kinds=(CONV,), block_size=16,
        source="oViT, Appendix D: no depthwise convolutions, B = 16; stem and classifier dense",
    ),
    "detr": Selection(
        ("*backbone.*conv*", "*backbone.*downsample*", "*encoder.*", "*decoder.*"),
        ("*backbone.conv1.weight", "*backbone.[0-9].conv1.weight", "*backbone*[!0-9].conv1.weight", "*.embedder.*"),
        source="oViT, Appendix K: convolutions but the first, all linear layers of encoder and decoder, heads dense",
    ),
    "roberta": Selection(
        ("*encoder.layer.*", "*encoder.layers.*"), kinds=(LINEAR,), source="RoBERTa: the encoder's linear layers"
    ),
}  # fmt: skip
"""By name."""


def prunable(model: nn.Module, selection: Selection) -> dict[str, nn.Parameter]:
    """Parameter name -> weight, in the model's order.

    Raises:
        SparsityError: nothing is selected, or a selected weight is shared with a layer that is not.
    """
    owners: dict[int, list[tuple[str, bool]]] = {}
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            chosen = _kind(module, name) in selection.kinds and _matches(name, selection)
            owners.setdefault(id(parameter), []).append((name, chosen))
            if chosen and not any(parameter is other for other in found.values()):
                found[name] = parameter
    if not found:
        raise SparsityError(
            f"no weight matches {', '.join(selection.include)} among layers of kind {', '.join(selection.kinds)}; "
            f"the model has {', '.join(list(dict(model.named_parameters()))[:5])}, ..."
        )
    for name, parameter in found.items():
        if left_out := [other for other, chosen in owners[id(parameter)] if not chosen]:
            raise SparsityError(
                f"{name} is the same weight as {left_out[0]}, which is not selected; exclude it, or select both"
            )
    return found


def _kind(module: nn.Module, name: str) -> str:
    leaf = name.rpartition(".")[2]
    if isinstance(module, nn.Linear) and leaf == "weight":
        return LINEAR
    if isinstance(module, nn.MultiheadAttention) and leaf.endswith("proj_weight"):
        return LINEAR
    if isinstance(module, nn.Conv1d | nn.Conv2d) and leaf == "weight":
        return DEPTHWISE if module.groups == module.in_channels and module.groups > 1 else CONV
    return ""


def _matches(name: str, selection: Selection) -> bool:
    """Case counts, on every system."""
    return any(fnmatchcase(name, pattern) for pattern in selection.include) and not any(
        fnmatchcase(name, pattern) for pattern in selection.exclude
    )
