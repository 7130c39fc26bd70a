"""ReViT: an architecture from its width alone, by the rule that pruned models taught (Yang et al. 2023, poster).

    H = ε·E/100    QK = ε·E/20    V = 64    MLP = 3·ε·E         with ε per block: less - more - less

The released numbers for 12 blocks, with r = round(0.005 E) and q = round(0.05 E / 8):

    H    10, 2r, 2r, 4r x6, 2r, 2r, 10        the outermost blocks are fixed at 10 heads
    QK   16q, 8q, 8q, 16q x6, 8q, 8q, 16q
    MLP  3E x3, 6E x6, 3E x3
"""

from latency.estimate import LatencyModel, estimate
from search.errors import BudgetError
from vit.architecture import Architecture, BlockShape
from vit.errors import ArchitectureError

EDGE_HEADS = 10
V_DIM = 64
STEP = 8
LEAST_DEPTH = 6


def revit_blocks(embed_dim: int, depth: int = 12) -> tuple[BlockShape, ...]:
    """The released rule. For other depths the thirds of the profile scale: a quarter, a half, a quarter of the blocks.

    Raises:
        ArchitectureError: too narrow or too shallow for the rule.
    """
    if depth < LEAST_DEPTH:
        raise ArchitectureError(f"ReViT needs at least {LEAST_DEPTH} blocks, got {depth}", "depth")
    heads, qk = round(0.005 * embed_dim), round(0.05 * embed_dim / 8)
    if heads < 1 or qk < 1:
        raise ArchitectureError(f"ReViT needs embed_dim of at least 101, got {embed_dim}", "embed_dim")
    outer = round(depth / 4)
    blocks = []
    for index in range(depth):
        from_edge = min(index, depth - 1 - index)
        if from_edge == 0:
            blocks.append(BlockShape(EDGE_HEADS, 16 * qk, V_DIM, 3 * embed_dim))
        elif from_edge < outer:
            blocks.append(BlockShape(2 * heads, 8 * qk, V_DIM, 3 * embed_dim))
        else:
            blocks.append(BlockShape(4 * heads, 16 * qk, V_DIM, 6 * embed_dim))
    return tuple(blocks)


def revit(embed_dim: int, template: Architecture | None = None, depth: int = 12) -> Architecture:
    """ReViT of a width.

    Args:
        template: image, classes, tokens and norm to take over (ImageNet and a distillation token if not given).
        depth: blocks.
    """
    if template is None:
        from vit.presets import preset

        template = preset("deit-b-distilled")
    return template.replace(embed_dim=embed_dim, blocks=revit_blocks(embed_dim, depth), softmax_scale=None)


def redistribute(
    latency: LatencyModel, budget_ms: float, template: Architecture | None = None, depth: int = 12
) -> Architecture:
    """The widest ReViT within a budget, in steps of 8 channels.

    Raises:
        BudgetError: not even the narrowest ReViT that the target covers fits; the message gives the ends.
    """
    timed = [(estimate(latency, arch).latency_ms, arch) for arch in _candidates(latency, template, depth)]
    if not timed:
        raise BudgetError(
            f"{latency.target.slug} covers no ReViT of {depth} blocks; its table must reach {EDGE_HEADS} heads, "
            f"V {V_DIM} and MLP 6 times embed_dim"
        )
    fitting = [arch for ms, arch in timed if ms <= budget_ms]
    if not fitting:
        low, high = min(ms for ms, _ in timed), max(ms for ms, _ in timed)
        raise BudgetError(
            f"no ReViT of {depth} blocks runs in {budget_ms:.4g} on {latency.target.slug}; "
            f"ask for {low:.4g} to {high:.4g}"
        )
    return fitting[-1]


def _candidates(latency: LatencyModel, template: Architecture | None, depth: int) -> list[Architecture]:
    """Every width whose sizes the target covers, narrow to wide."""
    low, high = latency.bounds["embed_dim"]
    found = []
    for embed_dim in range(-(-max(low, 104) // STEP) * STEP, min(high, 4096) + 1, STEP):
        arch = revit(embed_dim, template, depth)
        if all(_covers(latency, block) for block in arch.blocks):
            found.append(arch)
    return found


def _covers(latency: LatencyModel, block: BlockShape) -> bool:
    return all(
        low <= getattr(block, name) <= high for name, (low, high) in latency.bounds.items() if name != "embed_dim"
    )
