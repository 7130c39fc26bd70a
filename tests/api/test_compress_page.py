"""The page that `vitfit compress` leaves: made by a real run on a modelled card, read as text and in a browser."""

import html
import json
from pathlib import Path

import pytest
import torch

from api.compress_job import CompressRequest, run_compress
from api.compress_page import write_compress_page
from api.compress_report import paths_beside
from api.library import Library
from tests.api.pages import assert_drawn, in_a_browser, opened
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.model import VisionTransformer, initialise

ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64), BlockShape(2, 16, 24, 48)),
)
MODELLED = "rtx-4090-eager-pt2.9-amp-b8192-n17"
MEASURED = [
    {"model": "before", "measured_ms": 30.25, "iqr_ms": 0.5, "predicted_ms": 30.0, "error": -0.01, "drift": 1.23},
    {"model": "after", "measured_ms": 15.75, "iqr_ms": 0.25, "predicted_ms": 15.0, "error": -0.05, "drift": 1.23},
]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The checkpoint of one run, with its report beside it."""
    folder = tmp_path_factory.mktemp("compress")
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    save_checkpoint(Checkpoint.of(model, ()), folder / "tiny.safetensors")
    request = CompressRequest(
        model=str(folder / "tiny.safetensors"), data="digits", target=MODELLED, speedup=1.2, images=128
    )
    library = Library(folder / "library", devices=["rtx-4090-eager-pt2.9-amp"])
    result = run_compress(
        request, library, folder / "small.safetensors", progress=lambda *_: None, exports=False, measured=False
    )
    assert result.report["files"]["html"] == "small.report.html"
    return folder / "small.safetensors"


@pytest.fixture(scope="module")
def report(out):
    return json.loads(paths_beside(out)["report"].read_text(encoding="utf-8"))


def page_of(report, tmp_path) -> str:
    write_compress_page(tmp_path / "page.html", report)
    return html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_a_modelled_latency_carries_its_kind_and_interval(report, tmp_path):
    text = page_of(report, tmp_path)
    low, high = report["interval_ms"]
    assert f"{report['latency_ms']:.2f} ms ({low:.2f} to {high:.2f})" in text
    share = low / report["latency_ms"]
    assert f"{report['full_ms']:.2f} ms ({share * report['full_ms']:.2f} to " in text
    assert "latency, modelled" in text
    assert "measured latency" not in text


def test_a_measured_latency_stands_beside_the_promise(report, tmp_path):
    text = page_of(report | {"measured": MEASURED}, tmp_path)
    for shown in ("30.25 ± 0.50 ms", "15.75 ± 0.25 ms", "-1.0 %", "-5.0 %", "1.23 times as long"):
        assert shown in text


def test_on_the_target_macs_nothing_is_called_milliseconds(report, tmp_path):
    provenance = report["provenance"] | {"kind": "analytic", "interval": None}
    text = page_of(report | {"kind": "analytic", "interval_ms": None, "provenance": provenance}, tmp_path)
    assert f"{report['latency_ms']:.2f} M MACs" in text
    assert f"{report['latency_ms']:.2f} ms" not in text


@pytest.mark.parametrize(
    ("kept", "bound", "words"),
    [
        (0.5, 0.5, "these are the best there are"),
        (0.5, 0.52, "these are at most 2 percentage points below the best there are"),
        (0.5, None, "is not known"),
    ],
)
def test_the_certificate_is_said_in_words(report, tmp_path, kept, bound, words):
    gap = None if bound is None else bound - kept
    text = page_of(report | {"kept": kept, "bound": bound, "gap": gap}, tmp_path)
    assert "keep 50.00 % of the saliency" in text
    assert words in text


def test_every_size_and_every_error_is_in_a_table(report, tmp_path):
    text = page_of(report, tmp_path)
    whole, small = (report[name]["architecture"]["blocks"] for name in ("before", "after"))
    for before, after in zip(whole, small, strict=True):
        assert "".join(f"<td>{before[key]} → {after[key]}</td>" for key in before) in text
    for refit in report["refits"]:
        cells = (refit["layer"], f"{refit['before']:.2%}", f"{refit['after']:.2%}")
        assert "".join(f"<td>{cell.replace('%', ' %')}</td>" for cell in cells) in text


def test_what_to_know_is_said(report, tmp_path):
    told = {"skipped": "the stream is not rotated", "warnings": "too few images", "notes": "timed with RMS norm"}
    constraints = report["constraints"] | {"minimum": {"mlp_dim": 16}, "protect": [1]}
    said = {name: [sentence] for name, sentence in told.items()}
    text = page_of(report | said | {"constraints": constraints}, tmp_path)
    for shown in (*told.values(), "minimum mlp_dim 16, protected blocks 1", report["after"]["id"]):
        assert shown in text


def test_text_of_the_report_is_text_on_the_page(report, tmp_path):
    refits = [{"layer": "</script><b>", "before": float("inf"), "after": 0.0}]
    write_compress_page(tmp_path / "page.html", report | {"warnings": ["<b>bold</b>"], "refits": refits})
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "Infinity" not in text.split('type="application/json">')[1].split("</script>")[0]


def test_folders_of_this_machine_stay_out_of_the_page(report, out):
    assert str(out.parent) not in paths_beside(out)["html"].read_text(encoding="utf-8")


@in_a_browser
def test_the_page_draws_its_charts_and_shows_the_numbers(browser, out, report, scheme, width):
    with opened(browser, paths_beside(out)["html"], scheme, width) as page:
        assert_drawn(page, "sizes", "refits")
        text = page.inner_text("body")
        for shown in (f"{report['latency_ms']:.2f}", f"{report['budget_ms']:.2f}", report["target"]):
            assert shown in text
