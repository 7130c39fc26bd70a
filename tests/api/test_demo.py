"""The demo, small: it does the whole job, leaves what it promises, resumes, and its report can be read."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

from api.compress_report import paths_beside
from api.demo import run_demo
from api.demo_plan import COMPRESS, FULL, QUICK, DemoError
from api.demo_table import print_results
from latency.estimate import estimate
from latency.storage import load_table
from recovery.data import load_dataset
from recovery.loop import accuracy
from tests.api.pages import assert_drawn, in_a_browser, opened
from vit.architecture import Architecture
from vit.checkpoint import load_checkpoint
from vit.cost import macs, params


def quiet() -> Console:
    return Console(stderr=True, quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and rows of one finished demo."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder, QUICK, quiet())


def test_every_row_is_what_its_checkpoint_and_table_say(finished):
    folder, rows = finished
    (path,) = (folder / "tables").glob("*.parquet")
    table, digits = load_table(path), load_dataset("digits")
    assert len(rows) == 1 + len(QUICK.budgets) * (1 + len(QUICK.criteria))
    for row in rows:
        checkpoint = load_checkpoint(folder / f"{row.name}.safetensors")
        arch = Architecture.from_dict(row.architecture)
        assert checkpoint.arch == arch
        assert (row.params, row.macs) == (params(arch), macs(arch))
        assert row.predicted_ms == pytest.approx(estimate(table, arch).latency_ms)
        assert row.error == pytest.approx(row.predicted_ms / row.measured_ms - 1)
        shown = row.accuracy_untrained if row.method == COMPRESS else row.accuracy_trained
        assert shown == accuracy(checkpoint.model(), digits.test)


def test_every_cut_model_meets_its_share_of_the_whole_models_latency(finished):
    _, (dense, *cuts) = finished
    for row in cuts:
        assert row.budget_ms == pytest.approx(row.budget * dense.predicted_ms)
        assert row.predicted_ms <= row.budget_ms


def test_the_main_line_trains_nothing_and_the_comparison_does(finished):
    folder, (dense, *smaller) = finished
    assert dense.accuracy_untrained is None
    for row in smaller:
        assert (row.accuracy_trained is None) == (row.method == COMPRESS)
    lineages = {
        "compress-60": ["import", "finetune", "rebase", "compress"],
        "nvit-60-cut": ["import", "finetune", "prune"],
        "nvit-60": ["import", "finetune", "prune", "finetune"],
    }
    for name, steps in lineages.items():
        assert [step["step"] for step in load_checkpoint(folder / f"{name}.safetensors").lineage] == steps


def test_the_basis_changes_nothing_but_the_basis(finished):
    folder, _ = finished
    images, _ = next(iter(load_dataset("digits").test.ordered(100)))
    dense, rebased = (load_checkpoint(folder / f"{name}.safetensors").model() for name in ("dense", "rebased"))
    with torch.no_grad():
        torch.testing.assert_close(rebased(images), dense(images), rtol=1e-4, atol=1e-4)  # float32, other order


def test_every_compressed_model_has_its_own_report(finished):
    folder, rows = finished
    for row in rows:
        if row.method == COMPRESS:
            paths = paths_beside(folder / f"{row.name}.safetensors")
            report = json.loads(paths["report"].read_text())
            assert report["after"]["architecture"] == row.architecture
            assert report["accuracy"]["after"] == row.accuracy_untrained
            assert report["budget_ms"] == row.budget_ms
            assert report["target"] in paths["html"].read_text()


def test_the_onnx_files_give_the_checkpoints_outputs(finished):
    folder, _ = finished
    images, _ = next(iter(load_dataset("digits").test.ordered(50)))
    for name in ("compress-60", "compress-50"):
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = load_checkpoint(folder / f"{name}.safetensors").model()(images).numpy()
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_service_gave_the_sizes_that_were_cut_to(finished):
    folder, rows = finished
    answer = json.loads((folder / "service-answer.json").read_text())["architecture"]
    ours = rows[1].architecture
    assert (answer["embed_dim"], answer["blocks"]) == (ours["embed_dim"], ours["blocks"])
    assert (answer["norm"], ours["norm"]) == ("rms", "layer")


def test_the_readmes_python_works_on_the_demos_folder(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    (tmp_path / "vitfit-demo").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    small = names["small"]
    assert small.choice.latency_ms <= small.choice.budget_ms
    assert small.model.arch == small.choice.arch
    assert "Choice(" in capsys.readouterr().out


def test_a_second_run_redoes_nothing_but_the_measurement(finished):
    folder, rows = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    before |= {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    again = run_demo(folder, QUICK, quiet())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for old, new in zip(rows, again, strict=True):
        timed = {"measured_ms": 0.0, "iqr_ms": 0.0, "error": 0.0, "drift": 0.0}
        assert replace(old, **timed) == replace(new, **timed)


def test_a_folder_of_something_else_is_not_touched(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(DemoError, match="another size"):
        run_demo(folder, FULL, quiet())
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DemoError, match="not empty"):
        run_demo(tmp_path, QUICK, quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_demo_that_is_killed_goes_on_where_it_was(tmp_path):
    """kill -9 in the middle of profiling: the journal's visits are not made again."""
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "api.cli", "demo", "--quick", "--out", str(folder), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while True:
        lines = [line for path in folder.glob("tables/*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
        if len(lines) > 10:
            break
        assert process.poll() is None, "the demo ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (journal,) = folder.glob("tables/*.jsonl")
    kept = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    # The journal goes away with the finished table: a hard link shows what it held at the end.
    shutil.copy(journal, tmp_path / "before.jsonl")
    (tmp_path / "after.jsonl").hardlink_to(journal)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert rows[0]["name"] == "dense"
    after = (tmp_path / "after.jsonl").read_bytes().splitlines(keepends=True)
    assert after[: len(kept)] == kept
    visits = [(line["round"], line["point"]) for line in map(json.loads, after[1:]) if "point" in line]
    assert len(visits) == len(set(visits))


def test_the_result_table_shows_every_model(finished):
    _, rows = finished
    console = Console(width=160, file=io.StringIO())
    print_results(rows, console)
    text = console.file.getvalue()
    for row in rows:
        assert row.name in text
        assert f"{row.predicted_ms:.2f}" in text


@in_a_browser
def test_the_report_draws_its_charts_and_shows_the_numbers(browser, finished, scheme, width):
    folder, rows = finished
    with opened(browser, folder / "report.html", scheme, width) as page:
        assert_drawn(page, "accuracy", "dimensions", "frontier")
        text = page.inner_text("body")
        for row in rows:
            assert f"{row.predicted_ms:.2f}" in text
        page.select_option("#model", rows[2].name)
        shown = page.locator("#sizes tbody tr").first.inner_text().split()
        first = rows[2].architecture["blocks"][0]
        assert shown == ["0", *(str(first[key]) for key in ("num_heads", "qk_dim", "v_dim", "mlp_dim"))]


def test_paths_of_this_machine_stay_out_of_the_reports(finished):
    folder, _ = finished
    pages = [path.read_text(encoding="utf-8") for path in folder.glob("*.html")]
    assert len(pages) == 1 + len(QUICK.budgets)
    for page in pages:
        assert str(folder) not in page
        assert str(Path.home()) not in page
