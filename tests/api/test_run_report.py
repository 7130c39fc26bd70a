"""`vitfit report`: one file on a run or a checkpoint, made without torch, with nothing of this machine in it."""

import html
import json

import pytest

from api.run_report import write_run_report
from tests.api.factories import DIGITS, save_model
from tests.api.pages import assert_drawn, in_a_browser, opened
from vit.architecture import BlockShape
from vit.errors import CheckpointError, JournalError

SMALL = DIGITS.replace(blocks=(BlockShape(2, 16, 16, 48), BlockShape(1, 8, 16, 32)))
LINEAGE = (
    {"step": "import", "from": "timm", "recipe": {"lr": 0.001, "steps": 100}},
    {"step": "prune", "target": "macs", "budget_ms": 0.2, "data": "/home/somebody/secret/flowers", "seeds": [0, 1]},
)


def run_folder(folder, rounds=3):
    header = {"journal": "vitfit-prune", "version": 1, "target": "macs", "budget_ms": 0.2, "selection": "<b>greedy</b>"}
    lines = [header]
    for index in range(rounds):
        lines.append(
            {
                "round": index,
                "rounds": 3,
                "budget_ms": 0.4 - 0.1 * index,
                "latency_ms": 0.39 - 0.1 * index,
                "kept": 0.98,
                "eta": None,
                "loss": None if index else 0.25,
                "removed": [],
                "architecture": SMALL.to_dict(),
            }
        )
    folder.mkdir()
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_model(DIGITS, folder / "start.safetensors")
    if rounds:
        save_model(SMALL, folder / f"round-{rounds - 1:03}.safetensors", LINEAGE)
    return folder


def text_of(path) -> str:
    return html.unescape(path.read_text(encoding="utf-8"))


def test_a_run_tells_its_rounds_sizes_and_lineage(tmp_path):
    write_run_report(run_folder(tmp_path / "cut.run"), tmp_path / "page.html")
    text = text_of(tmp_path / "page.html")
    for shown in ("<td>64 → 48</td>", "<td>2 → 1</td>", "0.39", "98.00 %", "0.25", "1. import", "2. prune", "seeds"):
        assert shown in text
    assert SMALL.id in text
    assert DIGITS.id in text


def test_a_checkpoint_tells_its_sizes_and_lineage(tmp_path):
    save_model(SMALL, tmp_path / "small.safetensors", LINEAGE)
    write_run_report(tmp_path / "small.safetensors", tmp_path / "page.html")
    text = text_of(tmp_path / "page.html")
    for shown in (
        "small.safetensors",
        "<td>48</td>",
        "lr 0.001, steps 100",
        "flowers",
        "As shares of the largest block",
    ):
        assert shown in text
    assert "somebody" not in text


def test_names_in_the_journal_are_text(tmp_path):
    write_run_report(run_folder(tmp_path / "cut.run"), tmp_path / "page.html")
    assert "<b>greedy" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(tmp_path):
    write_run_report(run_folder(tmp_path / "cut.run"), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<link" not in text
    assert "src=" not in text.split("<script", 1)[0]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: path.mkdir(), JournalError, "has no run.jsonl"),
        (lambda path: run_folder(path, rounds=0), JournalError, "no finished round"),
        (lambda path: path.write_bytes(b"nothing"), CheckpointError, "cut.run"),
        (lambda path: None, CheckpointError, "no checkpoint"),
    ],
)
def test_what_cannot_be_reported_is_said(tmp_path, make, error, words):
    make(tmp_path / "cut.run")
    with pytest.raises(error, match=words):
        write_run_report(tmp_path / "cut.run", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_another_journal_is_refused_by_name(tmp_path):
    (tmp_path / "run.jsonl").write_text('{"journal": "vitfit-profile"}\n{"x": 1}\n')
    with pytest.raises(JournalError, match="vitfit-profile"):
        write_run_report(tmp_path, tmp_path / "page.html")


def test_the_command_writes_beside_its_source_and_leaves_the_report_of_compress_alone(tmp_path, run_cli):
    folder = run_folder(tmp_path / "cut.run")
    status, out, _ = run_cli("report", folder, "--json")
    assert status == 0
    assert json.loads(out) == {"path": str(tmp_path / "cut.run.report.html")}
    save_model(SMALL, tmp_path / "small.safetensors", LINEAGE)
    status, _, said = run_cli("report", tmp_path / "small.safetensors")
    assert status == 0
    assert "small.lineage.html" in said
    assert (tmp_path / "small.lineage.html").is_file()


@in_a_browser
def test_the_page_draws_its_charts(browser, tmp_path, scheme, width):
    write_run_report(run_folder(tmp_path / "cut.run"), tmp_path / "page.html")
    with opened(browser, tmp_path / "page.html", scheme, width) as page:
        assert_drawn(page, "way", "sizes")
