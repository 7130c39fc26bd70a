"""How soon does the dashboard show a frontier of 100,000 architectures, and how smoothly does its budget drag?

    $ python benchmarks/dashboard.py [--quick] [--answers 100000] [--loads 5]

Explore in Debian's chromium, drawing in software, on a service in a process of its own, on the same machine: DeiT-B
with made-up saliency on the shipped CPU table of 9,375 points. Its frontier is real; answers in between are made up
until there are 100,000.

    first picture    from the start of the navigation to the drawn frontier, everything fetched anew each time; the
                     frontier is in the service's memory, but for the first time, which is told apart
    drag             the pointer moves as fast as the browser takes it: frames a second, and from a move to the picture
                     with the budget's architecture
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import print_goal, print_machine, spread
from frontier import made_up

from api.frontier_files import FrontierFiles
from api.library import Library
from api.network import running_service
from api.settings import Settings
from search.constraints import Constraints
from search.frontier import Frontier, Staircase
from search.saliency import save_saliency
from vit.presets import preset

TARGET = "amd-epyc-1t-eager-fp32-b1-n197"
CHROMIUM = shutil.which("chromium")

RECORD = """() => {
    const line = document.getElementById("budget-line"), found = window.__drag = { frames: [], waits: [], moved: null };
    line.addEventListener("pointermove", () => { found.moved ??= performance.now(); });
    new MutationObserver(() => {
        if (found.moved === null) return;
        const from = found.moved;
        found.moved = null;
        // After the frame that holds the change was drawn.
        requestAnimationFrame(() => { const channel = new MessageChannel(); channel.port1.onmessage = () => found.waits.push(performance.now() - from); channel.port2.postMessage(0); });
    }).observe(line, { attributes: true, attributeFilter: ["aria-valuenow"] });
    let last = null;
    const frame = (now) => { const at = line.getAttribute("aria-valuenow"); if (at !== last) { last = at; found.frames.push(now); } requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
}"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T and 5,000 answers, once: figures mean nothing")
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--loads", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.answers, options.loads = 5_000, 1
    print_machine("fastapi", "playwright")
    if CHROMIUM is None:
        print("no chromium: first picture and dragging are not measured")
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        count = fill(folder, "deit-t" if options.quick else "deit-b", options.answers)
        print(f"{count:,} architectures")
        with running_service(folder) as url:
            measure(url, options.loads, moves=30 if options.quick else 150)


def fill(folder: Path, name: str, answers: int) -> int:
    """A saliency and its frontier, as the service keeps it on disk."""
    saliency = made_up(preset(name), seed=0)
    save_saliency(saliency, folder / "saliencies" / "made-up.safetensors")
    library = Library.of(Settings(data_dir=folder))
    latency = library.latency_model(TARGET, saliency.arch)
    real = Frontier(saliency, latency)
    finer = Frontier(saliency, latency, staircase=between(real.staircase, answers))
    FrontierFiles(folder / "frontiers", 64).save(finer)
    assert library.frontier_of(saliency, latency, Constraints()).staircase.ms.size == len(finer.staircase.ms)
    return len(finer.staircase.ms)


def between(stairs: Staircase, answers: int) -> Staircase:
    """As many answers, each of a real one's sizes."""
    at = np.linspace(0, len(stairs.ms) - 1, answers)
    whole = np.arange(len(stairs.ms))
    columns = {name: np.interp(at, whole, getattr(stairs, name)) for name in ("ms", "kept", "bound")}
    columns["bound"] = np.maximum(columns["bound"], columns["kept"])
    return Staircase(**columns, sizes=stairs.sizes[np.floor(at).astype(int)])


def measure(url: str, loads: int, moves: int) -> None:
    from playwright.sync_api import sync_playwright

    address = f"{url}/?saliency=made-up&target={TARGET}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        first = load(browser, address)[0]
        print(f"first picture, the frontier read from disk: {first:.2f} s")
        times, page = [], None
        for _ in range(loads):
            if page is not None:
                page.context.close()
            seconds, page = load(browser, address)
            times.append(seconds)
        assert page is not None
        print(f"first picture: {spread(times)} s")
        print_goal("dashboard-first-picture-seconds", float(np.median(times)), 1.5, at_least=False)
        frames, waits = drag(page, moves)
        steps = np.diff(frames)
        print(f"drag: {len(frames)} pictures; {spread((1e3 / steps).tolist())} a second from one to the next")
        print(f"from a move to its picture: {spread(waits)} ms, 95th percentile {np.percentile(waits, 95):.1f}")
        rate = 1e3 * len(steps) / (frames[-1] - frames[0])
        print_goal("dashboard-drag-frames-per-second", rate, 30, at_least=True)
        print_goal("dashboard-drag-to-picture-ms", float(np.percentile(waits, 95)), 50, at_least=False)
        browser.close()


def load(browser: Any, address: str) -> tuple[float, Any]:
    """Seconds to the first picture, in a browser that has nothing in its memory, and the page."""
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_function("() => performance.getEntriesByName('vitfit-first-picture').length > 0", timeout=120_000)
    milliseconds: float = page.evaluate("performance.getEntriesByName('vitfit-first-picture')[0].startTime")
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    return milliseconds / 1e3, page


def drag(page: Any, moves: int) -> tuple[list[float], list[float]]:
    """When each picture with another budget came, and how long after its move."""
    line = page.locator("#budget-line").bounding_box()
    x, y = line["x"] + line["width"] / 2, line["y"] + line["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(RECORD)
    for index in range(moves):
        page.mouse.move(x - 120 * np.sin(index / 12), y)
    page.mouse.up()
    page.wait_for_timeout(300)
    found = page.evaluate("window.__drag")
    return found["frames"], found["waits"]


if __name__ == "__main__":
    main()
