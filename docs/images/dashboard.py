"""Pictures of the dashboard, as a browser draws them, for docs/dashboard.md.

$ python docs/images/dashboard.py [--out docs/images]

On the tables and modelled cards that ship, with made-up saliency of DeiT-S.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from api.network import running_service
from search.saliency import Saliency, save_saliency
from vit.architecture import Architecture
from vit.groups import groups, size
from vit.presets import preset

CARD = "v100-eager-amp-b256-n197"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        save_saliency(made_up(preset("deit-s")), folder / "saliencies" / "deit-s-gates.safetensors")
        with running_service(folder) as url:
            pictures(url, options.out)


def made_up(arch: Architecture) -> Saliency:
    """Much in few units, and more in the middle of the depth, as in a model's principal components."""
    draw = np.random.default_rng(0)
    values = {}
    for group in groups(arch):
        count, depth = size(arch, group), arch.depth
        weight = 1.0 if group.block is None else 0.4 + np.sin(np.pi * (group.block + 0.5) / depth)
        values[group] = weight * np.exp(-5 * np.arange(count) / count) * draw.uniform(0.6, 1.4) / count
    return Saliency(arch, values, "gates", "made up", "", 16)


def pictures(url: str, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    cut = "_".join(["256", *(f"{h}.{q}.64.{m}" for h, q, m in [(3, 32, 512), (4, 48, 1024), (5, 64, 1536)] * 4)])
    shown = {
        "dashboard-explore": (f"/?saliency=deit-s-gates&target={CARD}", "light"),
        "dashboard-architecture": (f"/architecture?preset=deit-s&target={CARD}&sizes={cut}", "dark"),
        "dashboard-tables": ("/tables?table=amd-epyc-1t-eager-fp32-b1-n197", "light"),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (path, scheme) in shown.items():
            page = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 860}).new_page()
            page.set_default_timeout(180_000)
            page.goto(url + path)
            page.wait_for_selector("body[data-ready]")
            if name == "dashboard-tables":
                page.evaluate("document.getElementById('detail-title').scrollIntoView()")
            page.screenshot(path=str(out / f"{name}.png"))
        browser.close()


if __name__ == "__main__":
    main()
