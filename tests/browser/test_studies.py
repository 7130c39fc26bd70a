"""Studies: trials of a real one, the best ones, and what mattered."""

import subprocess
import sys

import httpx
import pytest

from tests.browser.conftest import Late, pictures, watched
from tests.browser.service import ROOT

STUDY = """
study: {name}
make: redistribute
target: macs
objectives: [latency_ms, params]
trials: {trials}
space:
  embed_dim: {{from: 64, to: 512, step: 8}}
"""


def study(service, folder, name, trials):
    path = folder / f"{name}.yaml"
    path.write_text(STUDY.format(name=name, trials=trials))
    subprocess.run(
        [sys.executable, "-m", "api.cli", "study", "run", str(path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "VITFIT_DATA_DIR": str(service.folder), "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def studied(service, tmp_path_factory):
    study(service, tmp_path_factory.mktemp("study"), "shapes", 24)
    return httpx.get(f"{service.url}/v1/studies/shapes/trials?limit=1000", timeout=60).json()["trials"]


def test_trials_are_drawn_filtered_and_the_best_are_in_a_table(browser, service, studied):
    with watched(browser, service.url, "/studies?study=shapes") as page:
        assert f"{len(studied)} of {len(studied)} finished trials" in page.inner_text("#count")
        for place in ("parallel", "scatter", "importance"):
            assert page.locator(f"#{place} canvas").count() == 1
        best = httpx.get(f"{service.url}/v1/studies/shapes", timeout=60).json()["best"]
        assert page.locator("#best tbody tr").count() == len(best)
        page.locator("#share").evaluate("one => { one.value = 25; one.dispatchEvent(new Event('input')); }")
        page.wait_for_function(
            f"() => document.getElementById('count').textContent.startsWith('{-(-len(studied) // 4)} of')"
        )
        page.locator("#parallel summary").click()
        page.wait_for_selector("#parallel tbody tr")
        assert page.locator("#parallel tbody tr").count() == -(-len(studied) // 4)
        pictures(page, "studies")
        axis = "echarts.getInstanceByDom(document.querySelector('#parallel .chart')).getOption().parallelAxis[0]"
        for scheme in ("dark", "light"):  # drawn again in the colours of the page, whatever it was opened in
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"() => {axis}.axisLabel.color === getComputedStyle(document.body).color")


@pytest.mark.usefixtures("studied")
def test_the_study_that_was_chosen_last_is_shown(open_page, service, tmp_path):
    study(service, tmp_path, "fewer", 5)
    with open_page("/studies?study=fewer") as page:
        assert page.inner_text("#count").startswith("5 of 5 ")
        late = Late(page, "**/v1/studies/shapes")
        page.select_option("#study", "shapes")
        late.wait()
        page.evaluate("document.getElementById('title').replaceChildren()")
        page.select_option("#study", "fewer")
        page.wait_for_function("() => document.getElementById('title').textContent === 'fewer'")
        late.answer()
        assert page.inner_text("#title") == "fewer"
        assert page.inner_text("#count").startswith("5 of 5 ")


def test_importance_is_one_for_what_decides_and_none_for_what_does_not(open_page):
    with open_page("/studies") as page:
        found = page.evaluate(
            """async () => {
                const { importance } = await import("/static/dashboard/studies.js");
                const trials = Array.from({ length: 80 }, (_, i) => ({
                    values: { decides: i % 4, idle: (i * 7) % 3, kind: i % 2 ? "a" : "b" },
                    metrics: { loss: i % 4 } }));
                return ["decides", "idle", "kind"].map((field) => importance(trials, field, "loss"));
            }"""
        )
        assert found[0] == pytest.approx(1)
        assert found[1] < 0.05
        assert found[2] == pytest.approx(0.2, abs=0.02)  # variance between two groups of {0, 2} and {1, 3}


def test_a_study_that_is_gone_is_said(browser, service):
    with watched(browser, service.url, "/studies?study=gone", refused=(404,)) as page:
        assert "gone" in page.inner_text("#notices .error")
