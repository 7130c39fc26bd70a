"""Runs: a run folder's files drawn in the browser, and nothing else taken for one."""

import json

import pytest

from tests.api.factories import DIGITS, save_model
from tests.browser.conftest import Late, pictures
from vit.architecture import BlockShape


def rounds(count: int) -> str:
    header = {"journal": "vitfit-prune", "version": 1, "target": "macs"}
    lines = [header]
    for index in range(count):
        arch = DIGITS.replace(blocks=(BlockShape(2, 16, 16, 64 - 8 * index), BlockShape(2, 16 - 2 * index, 16, 64)))
        budget = 0.4 - 0.05 * index
        lines.append(
            {"round": index, "rounds": count, "budget_ms": budget, "latency_ms": budget - 0.01, "kept": 0.99,
             "eta": None, "loss": 0.3, "removed": [], "architecture": arch.to_dict()}
        )  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


def training(count: int) -> str:
    report = {"steps": count, "best": None, "kept": False}
    lines = [
        report | {"step": step, "loss": 1 / step, "lr": 1e-3 / step, "accuracy": 0.5 if step % 5 == 0 else None}
        for step in range(1, count + 1)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_pruning_run_shows_its_way_down(open_page, tmp_path):
    (tmp_path / "run.jsonl").write_text(rounds(4))
    with open_page("/runs") as page:
        assert "No finished runs yet" in page.inner_text("#charts")
        page.set_input_files("#run-file", tmp_path / "run.jsonl")
        page.wait_for_selector("#charts canvas")
        assert page.locator("#charts canvas").count() == 3
        page.locator("#charts summary").nth(1).click()
        page.wait_for_selector("#charts tbody tr")
        last = page.locator("#charts tbody tr").last.inner_text().split("\t")
        assert last == ["4", "32", "2", "13", "16", "52"]
        pictures(page, "runs")


def test_training_shows_loss_rate_and_accuracy(open_page, tmp_path):
    (tmp_path / "training.jsonl").write_text(training(20))
    with open_page("/runs") as page:
        page.set_input_files("#run-file", tmp_path / "training.jsonl")
        page.wait_for_selector("#charts canvas")
        assert page.locator("#charts canvas").count() == 2
        drawn = page.evaluate(
            "echarts.getInstanceByDom(document.querySelector('#charts .chart')).getOption().series.map(s => s.data)"
        )
        assert [point[1] for point in drawn[0]] == pytest.approx([1 / step for step in range(1, 21)])


@pytest.mark.parametrize("text", ["no json", "{}", '{"journal": "of somebody else"}\n{"x": 1}', ""])
def test_another_file_is_refused_in_words(open_page, tmp_path, text):
    (tmp_path / "other.jsonl").write_text(text)
    with open_page("/runs") as page:
        page.set_input_files("#run-file", tmp_path / "other.jsonl")
        page.wait_for_selector("#charts .error")
        assert "Not a run of vitfit" in page.inner_text("#charts .error")


def test_a_file_is_shown_over_a_job_that_is_still_read(open_page, service, tmp_path):
    save_model(DIGITS, service.folder / "models" / "digits-dense.safetensors")
    job = service.submit(kind="compress", model="digits-dense", data="digits", target="macs", speedup=1.5, images=64)
    journal = tmp_path / "run.jsonl"
    journal.write_text(rounds(3))
    with open_page(f"/runs?job={job}") as page:
        late = Late(page, f"**/v1/jobs/{job}")
        page.select_option("#run", job)
        late.wait()
        page.set_input_files("#run-file", journal)
        page.wait_for_selector("#charts canvas")
        late.answer()
        assert "run.jsonl" in page.inner_text("#charts h2")
        assert page.locator("#charts h2").count() == 1
