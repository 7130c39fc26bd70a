"""Draws what pruning leaves of every block, from the figures of a benchmark.

$ python benchmarks/shape.py --json shape.json
$ python docs/images/shape.py shape.json -o docs/images/shape.svg [--share 0.3]
"""

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

SIZES = ("H", "QK", "V", "MLP")
LEFT, TOP, BAR, GAP, HEIGHT, ROW = 148, 40, 10, 14, 64, 92
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1b1f24; } .quiet { fill: #57606a; } .whole { fill: #d0d7de; }
.range { fill: #1b1f24; }
.H { fill: #0b5cad; } .QK { fill: #b35900; } .V { fill: #1a7f4b; } .MLP { fill: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ed; } .quiet { fill: #a0a8b2; } .whole { fill: #363c44; } .range { fill: #e6e9ed; }
.H { fill: #6cb2ff; } .QK { fill: #ffb066; } .V { fill: #5fd39a; } .MLP { fill: #c4a5ff; } }
"""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def drawing(cells: list[dict[str, Any]]) -> str:
    """SVG: a row a task and way, a group a block, a bar a size in front of what it was, a line from seed to seed."""
    depth, seeds = len(cells[0]["kept"][SIZES[0]][0]), len(cells[0]["accuracy"])
    group = len(SIZES) * BAR + GAP
    width, height = LEFT + depth * group, TOP + len(cells) * ROW + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<title>Sizes by block, as shares of the uncut model</title>",
        f"<style>{STYLE}</style>",
    ]
    for index, size in enumerate(SIZES):
        x = LEFT + 64 * index
        parts += [bar(size, x, 8, 12, 12), label(x + 18, 19, size)]
    parts.append(label(LEFT + 64 * len(SIZES), 19, "line: least to most of the seeds" if seeds > 1 else ""))
    for row, cell in enumerate(cells):
        top = TOP + row * ROW
        parts += [
            label(0, top + 16, f"{cell['task']}, {cell['way']}", "strong"),
            label(0, top + 35, f"EMB {mean(cell['embed']):.0%}"),
            label(0, top + 54, f"{mean(cell['dense']):.1%} to {mean(cell['accuracy']):.1%}"),
        ]
        for block in range(depth):
            for column, size in enumerate(SIZES):
                kept = [by_block[block] for by_block in cell["kept"][size]]
                x, tall = LEFT + block * group + column * BAR, mean(kept) * HEIGHT
                parts += [bar("whole", x, top, BAR - 2, HEIGHT), bar(size, x, top + HEIGHT - tall, BAR - 2, tall)]
                if (spread := max(kept) - min(kept)) > 0:
                    parts.append(bar("range", x + 3, top + HEIGHT * (1 - max(kept)), 2, spread * HEIGHT))
    parts += [label(LEFT + block * group, height - 30, f"{block}") for block in range(depth)]
    parts += [
        label(0, height - 30, "block"),
        label(0, height - 8, f"{cells[0]['share']:.0%} of the MACs; accuracy before and as cut; {seeds} seeds"),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def bar(style: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{style}" x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}"/>'


def label(x: float, y: float, text: str, style: str = "quiet") -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="JSON of benchmarks/shape.py")
    parser.add_argument("--share", type=float, default=0.3, help="of the MACs, one that the figures have")
    parser.add_argument("--out", "-o", type=Path, required=True, help="SVG file to write")
    args = parser.parse_args()
    cells = json.loads(args.figures.read_text(encoding="utf-8"))
    shown = [cell for cell in cells if cell["share"] == args.share]
    if not shown:
        shares = ", ".join(f"{share:g}" for share in sorted({cell["share"] for cell in cells}))
        parser.error(f"{args.figures} has nothing at {args.share:g} of the MACs; it has {shares}")
    args.out.write_text(drawing(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
