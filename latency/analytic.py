"""The analytic target `macs`: millions of MACs in place of milliseconds, exact and free of noise.

Every algorithm runs on it unchanged, so comparisons of algorithms need no machine.
"""

from typing import Self

import numpy as np
import numpy.typing as npt

from latency.components import Components
from latency.grid import AXES
from latency.table import Outside, Provenance
from latency.target import MACS, Target
from vit.architecture import MAX_SIZE, Architecture
from vit.cost import block_macs, head_macs, stem_macs
from vit.fingerprint import fingerprint

Array = npt.NDArray[np.float64]


class MacsModel:
    """Millions of MACs of blocks and of the rest, for one image of the geometry of `arch`."""

    kind = "analytic"

    def __init__(self, arch: Architecture) -> None:
        self.target = Target(device=MACS, runtime=MACS, dtype=MACS, batch=1, tokens=arch.tokens)
        self.norm = arch.norm
        self.outside = Outside(arch.image_size, arch.patch_size, arch.in_chans, arch.num_classes)
        self.provenance = Provenance(
            kind="analytic", created_at="", method="multiply-adds in closed form, in millions for one image"
        )
        self._outside_per_channel = (stem_macs(arch) + head_macs(arch)) / arch.embed_dim

    def like(self, arch: Architecture) -> "MacsModel":
        """The same target for models like another one."""
        return MacsModel(arch)

    @property
    def monotone(self) -> Self:
        """Itself: no size costs less than a smaller one."""
        return self

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(AXES, (1, MAX_SIZE))

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.target.to_dict(), self._outside_per_channel])

    def block_times(self, points: npt.ArrayLike) -> Array:
        sizes = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        embed, heads, qk_dim, v_dim, mlp = sizes
        macs: Array = block_macs(self.target.tokens, embed, heads, qk_dim, v_dim, mlp)
        return macs / 1e6

    def components(self, points: npt.ArrayLike) -> Components:
        """Of blocks, shape (blocks, 5), in the order of `grid.AXES`."""
        embed, heads, qk_dim, v_dim, mlp = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        none = np.zeros_like(embed)

        def macs(*sizes: Array) -> Array:
            found: Array = block_macs(self.target.tokens, *sizes)
            return found

        def projections(*widths: Array) -> Array:
            """Projections grow with EMBED, products do not."""
            return macs(embed, heads, *widths, none) - macs(none, heads, *widths, none)

        return Components.closed(
            "exact",
            "multiply-adds of each part, in millions for one image",
            qk=projections(qk_dim, none) / 1e6,
            v=projections(none, v_dim) / 1e6,
            products=macs(none, heads, qk_dim, v_dim, none) / 1e6,
            mlp=macs(embed, none, none, none, mlp) / 1e6,
            rest=none,
        )

    def outside_times(self, embed_dims: npt.ArrayLike) -> Array:
        return np.asarray(embed_dims, dtype=np.float64) * self._outside_per_channel / 1e6
