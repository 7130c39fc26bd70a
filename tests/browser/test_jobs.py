"""Jobs: started in the browser, followed live through a restart of the service, looked at afterwards."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.api.factories import DIGITS, GRATINGS, save_model
from tests.browser.conftest import Late, pictures, watched
from tests.browser.service import library, running


@pytest.fixture(scope="module")
def working(tmp_path_factory):
    """A service that does jobs."""
    folder = library(tmp_path_factory.mktemp("working"))
    save_model(GRATINGS, folder / "models" / "gratings.safetensors")
    save_model(DIGITS, folder / "models" / "digits-dense.safetensors")
    with running(folder) as service:
        yield service


def state(page) -> str:
    return page.locator("#job-title [data-state]").inner_text()


def test_a_job_is_started_followed_through_a_restart_and_its_files_taken_home(browser, working):
    with watched(browser, working.url, "/architecture?preset=deit-s&target=macs", refused=(0, 404, 503)) as page:
        page.fill("#job-model", "digits-dense")
        page.fill("#job-data", "digits")
        page.select_option("#job-target", "macs")
        page.fill("#job-budget", "0.2")
        page.get_by_role("button", name="Start the job").click()
        page.wait_for_url("**/jobs?job=*")
        page.wait_for_selector("#job-title [data-state]")
        page.wait_for_function("() => document.getElementById('log').textContent.includes('running')", timeout=120_000)
        working.stop()
        page.wait_for_function(
            "() => document.getElementById('connection').textContent.includes('went away')", timeout=30_000
        )
        working.start()
        page.wait_for_selector("#job-title [data-state=done]", timeout=900_000)
        log = page.inner_text("#log").splitlines()
        started = [line for line in log if "step basis started" in line]
        assert started, log
        assert len(log) == len(set(log)) or len(started) > 1, "a stream that goes on repeats no line"
        with page.expect_download() as download:
            page.get_by_role("link", name="compressed.report.json").click()
        report = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
        assert report["latency_ms"] <= 0.2
        pictures(page, "jobs")
        before = page.inner_text("#log")
        page.reload()
        page.wait_for_selector("#job-title [data-state=done]")
        page.wait_for_function("before => document.getElementById('log').innerText === before", arg=before)


def test_a_job_whose_worker_is_killed_is_seen_to_go_on_and_end(browser, working):
    """kill -9 of the process that does the job, while the page looks at it; the service and the page go on."""
    asked = {"kind": "compress", "model": "gratings", "target": "macs", "speedup": 2.0, "exports": False}
    job = working.submit(**asked, data="gratings:train=4000,test=200", images=4000)
    with watched(browser, working.url, f"/jobs?job={job}") as page:
        page.evaluate("() => { window.sameDocument = true; }")
        page.wait_for_function("() => document.getElementById('progress').textContent.includes('tokens')")
        (worker,) = working.children()
        os.kill(worker, signal.SIGKILL)
        page.wait_for_function(
            "() => document.getElementById('log').textContent.split('step basis started').length > 2"
        )
        assert state(page) == "running"
        (another,) = working.children()
        assert another != worker
        page.wait_for_selector("#job-title [data-state=done]", timeout=900_000)
        assert page.evaluate("() => window.sameDocument"), "without a reload"
        assert page.inner_text("#notices") == ""
        assert "compressed.report.json" in page.inner_text("#files")
        assert working.finished(job)["state"] == "done"


def test_a_job_that_waits_is_cancelled_retried_and_deleted(browser, service):
    save_model(DIGITS, service.folder / "models" / "digits-dense.safetensors")
    job = service.submit(kind="compress", model="digits-dense", data="digits", target="macs", speedup=1.5, images=64)
    with watched(browser, service.url, f"/jobs?job={job}") as page:
        assert state(page) == "queued"
        page.click("#cancel")
        page.wait_for_selector("#job-title [data-state=cancelled]")
        page.click("#retry")
        page.wait_for_function("job => !location.search.includes(job)", arg=job)
        page.wait_for_function("() => document.getElementById('facts').textContent.includes('goes on with')")
        page.click("#cancel")
        page.wait_for_selector("#job-title [data-state=cancelled]")
        page.click("#delete")
        page.wait_for_function("() => document.getElementById('job').hidden")
        page.select_option("#state", "done")
        page.wait_for_selector("#list .empty")


def test_of_two_lists_the_one_that_was_asked_for_last_is_shown(browser, service):
    save_model(DIGITS, service.folder / "models" / "digits-dense.safetensors")
    service.submit(kind="compress", model="digits-dense", data="digits", target="macs", speedup=1.5, images=64)
    with watched(browser, service.url, "/jobs") as page:
        page.wait_for_selector("#list table")
        late = Late(page, "**/v1/jobs?limit=50")
        page.click("#reload")
        late.wait()
        page.select_option("#state", "done")
        page.wait_for_selector("#list .empty")
        late.answer()
        assert page.locator("#list .empty").is_visible()


def test_a_job_that_is_gone_is_said(browser, service):
    with watched(browser, service.url, f"/jobs?job={'0' * 32}", refused=(404,)) as page:
        assert "0" * 32 in page.inner_text("#notices .error")
        assert page.locator("#list").is_visible()
