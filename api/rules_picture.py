"""Profiles as a picture: ε of every size over depth, a line a profile, the range of the seeds of a learned one."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.profiles import SIZES, Profile

LEFT, TOP, WIDTH, HEIGHT, GAP = 52, 64, 300, 150, 56
COLOURS = ("a", "b", "c", "d")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1b1f24; } .quiet { fill: #57606a; } .axis { stroke: #d0d7de; }
polyline { stroke-width: 2; }
.a { stroke: #0b5cad; fill: #0b5cad; } .b { stroke: #b35900; fill: #b35900; }
.c { stroke: #1a7f4b; fill: #1a7f4b; } .d { stroke: #8250df; fill: #8250df; }
.line.a, .line.b, .line.c, .line.d { fill: none; }
.band { stroke: none; opacity: 0.18; }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ed; } .quiet { fill: #a0a8b2; } .axis { stroke: #363c44; }
.a { stroke: #6cb2ff; fill: #6cb2ff; } .b { stroke: #ffb066; fill: #ffb066; }
.c { stroke: #5fd39a; fill: #5fd39a; } .d { stroke: #c4a5ff; fill: #c4a5ff; } }
"""
NAMES = {"num_heads": "H", "qk_dim": "QK", "v_dim": "V", "mlp_dim": "MLP"}


def relative(profile: Profile, size: str, embed_dim: int, depth: int) -> list[float]:
    """A size of every block, as a multiple of their mean: what a rule does with depth, whatever its scale."""
    sizes = [float(getattr(block, size)) for block in profile.blocks(embed_dim, depth)]
    mean = sum(sizes) / len(sizes)
    return [one / mean for one in sizes]


def drawing(
    profiles: Sequence[Profile],
    embed_dim: int,
    depth: int = 12,
    trends: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """SVG: a panel a size, a line a profile.

    Args:
        profiles: at most four.
        embed_dim: the width at which sizes are read off; their roundings show.
        trends: by name of a profile, `Trends.to_dict`: bands from the least to the most of the groups.

    Raises:
        ArchitectureError: a width or depth that a profile has no sizes for.
    """
    lines = {p.name: {size: relative(p, size, embed_dim, depth) for size in SIZES} for p in profiles}
    bands = {
        name: {size: (found["depth"][size]["low"], found["depth"][size]["high"]) for size in SIZES}
        for name, found in (trends or {}).items()
        if all(len(found["depth"][size]["low"]) == depth for size in SIZES)
    }
    most = max(
        max(max(values) for sizes in lines.values() for values in sizes.values()),
        max((max(high) for sizes in bands.values() for _, high in sizes.values()), default=1.0),
    )
    width, height = 2 * (LEFT + WIDTH) + GAP, TOP + 2 * (HEIGHT + GAP) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>Sizes by block, as multiples of their mean, at EMB {embed_dim}</title>",
        f"<style>{STYLE}</style>",
    ]
    for index, profile in enumerate(profiles):
        x = LEFT + 170 * index
        parts.append(f'<line class="{COLOURS[index]}" x1="{x}" y1="20" x2="{x + 22}" y2="20" stroke-width="2"/>')
        parts.append(_text(x + 30, 25, profile.name))
    for index, size in enumerate(SIZES):
        left, top = LEFT + (index % 2) * (LEFT + WIDTH + GAP // 2), TOP + (index // 2) * (HEIGHT + GAP)
        parts += _panel(left, top, NAMES[size], most, depth)
        for colour, profile in zip(COLOURS, profiles, strict=False):
            if profile.name in bands:
                low, high = bands[profile.name][size]
                outline = [*_points(low, left, top, most), *reversed(_points(high, left, top, most))]
                parts.append(f'<polygon class="{colour} band" points="{" ".join(outline)}"/>')
            points = _points(lines[profile.name][size], left, top, most)
            parts.append(f'<polyline class="{colour} line" points="{" ".join(points)}"/>')
    parts.append(
        _text(LEFT, height - 6, f"size of a block over the mean of its kind, EMB {embed_dim}, by block", "quiet")
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, top: int, title: str, most: float, depth: int) -> list[str]:
    parts = [_text(left, top - 8, title)]
    for value in range(int(most) + 1):
        y = top + HEIGHT * (1 - value / most)
        parts.append(f'<line class="axis" x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}"/>')
        parts.append(_text(left - 16, y + 4, f"{value}", "quiet"))
    every = max(1, depth // 12)
    for block in range(0, depth, every):
        parts.append(_text(left + WIDTH * (block + 0.5) / depth - 4, top + HEIGHT + 17, f"{block}", "quiet"))
    return parts


def _points(values: Sequence[float], left: int, top: int, most: float) -> list[str]:
    return [
        f"{left + WIDTH * (index + 0.5) / len(values):.1f},{top + HEIGHT * (1 - value / most):.1f}"
        for index, value in enumerate(values)
    ]


def _text(x: float, y: float, text: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'
