"""Draws sizes by block of compressed models, as shares of the model before.

$ make demo
$ python docs/images/compress_sizes.py vitfit-demo/compress-*.report.json -o docs/images/compress_sizes.svg
"""

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

UNITS = {"num_heads": "heads", "qk_dim": "QK", "v_dim": "V", "mlp_dim": "MLP"}
LEFT, TOP, BAR, GAP, HEIGHT, ROW = 168, 40, 12, 18, 64, 96
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1b1f24; } .quiet { fill: #57606a; } .whole { fill: #d0d7de; }
.heads { fill: #0b5cad; } .QK { fill: #b35900; } .V { fill: #1a7f4b; } .MLP { fill: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ed; } .quiet { fill: #a0a8b2; } .whole { fill: #363c44; }
.heads { fill: #6cb2ff; } .QK { fill: #ffb066; } .V { fill: #5fd39a; } .MLP { fill: #c4a5ff; } }
"""


def shares(report: dict[str, Any]) -> list[dict[str, float]]:
    """What stays of every block, by unit, from 0 to 1."""
    before, after = (report[name]["architecture"]["blocks"] for name in ("before", "after"))
    return [
        {unit: small[key] / whole[key] for key, unit in UNITS.items()}
        for whole, small in zip(before, after, strict=True)
    ]


def drawing(reports: list[dict[str, Any]]) -> str:
    """SVG: a row a report, a group a block, a bar a unit in front of what it was."""
    depth = len(reports[0]["before"]["architecture"]["blocks"])
    group = len(UNITS) * BAR + GAP
    width, height = LEFT + depth * group, TOP + len(reports) * ROW + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<title>Sizes by block, as shares of the uncut model</title>",
        f"<style>{STYLE}</style>",
    ]
    for index, unit in enumerate(UNITS.values()):
        x = LEFT + 72 * index
        parts += [bar(unit, x, 8, 12, 12), label(x + 18, 19, unit)]
    for row, report in enumerate(reports):
        top = TOP + row * ROW
        before, after = (report[name]["architecture"]["embed_dim"] for name in ("before", "after"))
        parts += [
            label(0, top + 18, f"{report['latency_ms'] / report['full_ms']:.0%} of the latency", "strong"),
            label(0, top + 38, f"EMB {after} of {before}"),
            label(0, top + 58, f"accuracy {report['accuracy']['after']:.1%}"),
        ]
        for block, kept in enumerate(shares(report)):
            for column, (unit, share) in enumerate(kept.items()):
                x, tall = LEFT + block * group + column * BAR, share * HEIGHT
                parts += [bar("whole", x, top, BAR - 2, HEIGHT), bar(unit, x, top + HEIGHT - tall, BAR - 2, tall)]
    parts += [label(LEFT + block * group, height - 40, f"block {block}") for block in range(depth)]
    parts.append(label(0, height - 8, f"{reports[0]['target']} ({reports[0]['kind']}), without training"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def bar(style: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{style}" x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}"/>'


def label(x: float, y: float, text: str, style: str = "quiet") -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="OUT.report.json of vitfit compress")
    parser.add_argument("--out", "-o", type=Path, required=True, help="SVG file to write")
    args = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in args.reports]
    reports.sort(key=lambda report: -report["latency_ms"])
    args.out.write_text(drawing(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
