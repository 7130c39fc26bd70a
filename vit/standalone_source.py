"""model.py of a model to take home, as text; torch-free, for a service writes it too."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit.architecture import Architecture
from vit.cost import macs, params

if TYPE_CHECKING:
    from vit.checkpoint import Normalisation

TEMPLATES = Path(__file__).parent / "templates"


def standalone_source(arch: Architecture, normalisation: "Normalisation | None" = None) -> str:
    """model.py: the modules of this architecture and nothing that it does not use, with every size as a literal.

    Args:
        normalisation: mean and standard deviation per channel that the weights expect; fewer entries than channels
            repeat.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Python, not HTML; what is filled in are numbers
    )
    environment.filters["power"] = _as_power
    mean, std = normalisation or ((), ())
    tokens = {"cls_token": int(arch.class_token), "dist_token": int(arch.dist_token), "reg_token": arch.reg_tokens}
    return environment.get_template("model.py.jinja").render(
        arch=arch,
        params=params(arch),
        macs=macs(arch),
        mean=_per_channel(mean, arch),
        std=_per_channel(std, arch),
        prefix={name: count for name, count in tokens.items() if count},
        qk_below_v=any(block.qk_dim < block.v_dim for block in arch.blocks),
        v_below_qk=any(block.v_dim < block.qk_dim for block in arch.blocks),
    )


def _as_power(scale: float) -> str:
    """A softmax scale as people know it, 64**-0.5, if it is exactly that."""
    size = round(scale**-2)
    return f"{size}**-0.5" if size and size**-0.5 == scale else repr(scale)


def _per_channel(values: tuple[float, ...], arch: Architecture) -> tuple[float, ...]:
    return tuple(np.resize(values, arch.in_chans).tolist()) if values else ()
