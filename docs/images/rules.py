"""Draws the rule that a benchmark learned beside NVIDIA's.

$ python benchmarks/revit.py --json revit.json
$ python docs/images/rules.py revit.json -o docs/images/rules.svg
"""

import argparse
import json
from pathlib import Path

from api.rules_picture import drawing
from search.profiles import NVIDIA, Profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="JSON of benchmarks/revit.py")
    parser.add_argument("--out", "-o", type=Path, required=True, help="SVG file to write")
    parser.add_argument("--embed-dim", type=int, default=128, help="width at which sizes are read off")
    args = parser.parse_args()
    found = json.loads(args.figures.read_text(encoding="utf-8"))
    learned = Profile.from_dict(found["profile"])
    depth = learned.depth or 12
    picture = drawing([learned, NVIDIA], args.embed_dim, depth, {learned.name: found["trends"]})
    args.out.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
