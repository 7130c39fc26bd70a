"""What the parts of a block take: known in a closed form, estimated from a table, which times whole blocks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latency.grid import AXES

if TYPE_CHECKING:
    from latency.estimate import LatencyModel

Array = npt.NDArray[np.float64]

_SHORT = dict(zip(AXES[1:], ("H", "QK", "V", "MLP"), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Milliseconds of the parts of some blocks: attn + mlp + rest is what each block takes.

    Attributes:
        basis: `exact` (MACs), `modelled` (the closed form of a device, of which nobody timed the parts) or
            `differences` (of a table's whole blocks).
        method: what that means, in a sentence.
        attn_ms, mlp_ms, rest_ms: the attention branch, the MLP branch, and norms, additions and what else a block
            takes (or waits for its kernels to be started), shape (blocks,). Differences of noisy measurements may be
            a little below zero.
        qk_ms, v_ms, products_ms: of attn_ms, in closed forms: the projections to Q and K; to V and back; q·k, softmax
            and attention·v.
    """

    basis: str
    method: str
    attn_ms: Array
    mlp_ms: Array
    rest_ms: Array
    qk_ms: Array | None = None
    v_ms: Array | None = None
    products_ms: Array | None = None

    @classmethod
    def closed(
        cls, basis: str, method: str, *, qk: Array, v: Array, products: Array, mlp: Array, rest: Array
    ) -> "Components":
        return cls(basis, method, qk + v + products, mlp, rest, qk, v, products)

    def part(self, which: slice) -> "Components":
        """Of some of the blocks."""

        def some(ms: Array | None) -> Array | None:
            return None if ms is None else ms[which]

        branches = (self.attn_ms[which], self.mlp_ms[which], self.rest_ms[which])
        return Components(self.basis, self.method, *branches, some(self.qk_ms), some(self.v_ms), some(self.products_ms))

    def to_dict(self) -> dict[str, Any]:
        """With lists for arrays."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


def differences(latency: "LatencyModel", points: npt.ArrayLike) -> Components | None:
    """From whole blocks: what each branch adds to the same block with the smallest sizes (') that the table has.

        mlp  = T(E, H, QK, V, MLP) - T(E, H, QK, V, MLP')
        attn = T(E, H, QK, V, MLP') - T(E, H', QK', V', MLP')
        rest = T(E, H', QK', V', MLP')

    The branches of a block run one after the other, so it hardly matters which is taken away first. QK and V are not
    told apart: steps along them are mostly noise.

    Args:
        points: shape (blocks, 5), in the order of `grid.AXES`.

    Returns:
        None where the table has one size of MLP, or one of each of H, QK and V: it then knows no parts.
    """
    low, high = np.array([latency.bounds[name] for name in AXES], dtype=np.float64).T
    if low[4] == high[4] or (low[1:4] == high[1:4]).all():
        return None
    whole = np.asarray(points, dtype=np.float64)
    no_mlp = whole.copy()
    no_mlp[:, 4] = low[4]
    neither = no_mlp.copy()
    neither[:, 1:4] = low[1:4]
    whole_ms, no_mlp_ms, rest_ms = (latency.block_times(sizes) for sizes in (whole, no_mlp, neither))
    smallest = [f"{short} {latency.bounds[name][0]}" for name, short in _SHORT.items()]
    method = (
        "estimated split: the table times whole blocks; attention and MLP are what they add to the same block with "
        f"{', '.join(smallest[:3])} and {smallest[3]}, the smallest sizes of the table, and the rest is that block"
    )
    return Components("differences", method, no_mlp_ms - rest_ms, whole_ms - no_mlp_ms, rest_ms)
