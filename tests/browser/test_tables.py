"""Tables: what a latency rests on, slices through it, two of them side by side, and a bad upload said clearly."""

import json
from itertools import pairwise

import httpx
import numpy as np
import pytest

from latency.storage import save_table
from tests.api.factories import SLOPES, TINY_TARGET, fill, tiny_table
from tests.browser.conftest import Late, pictures, watched
from tests.browser.service import CPU, EVIL, V100, running

PAGE = f"/tables?table={V100}"


def series(page, place):
    return page.evaluate(
        """place => echarts.getInstanceByDom(document.querySelector(`#${place} .chart`)).getOption().series
            .map(s => s.data)""",
        place,
    )


def test_coverage_provenance_and_quality_are_those_of_the_service(open_page, service):
    target = httpx.get(f"{service.url}/v1/targets/{V100}", timeout=60).json()
    with open_page(PAGE) as page:
        assert target["provenance"]["method"] in page.inner_text("#provenance")
        assert "0.95 to 1.06 times" in page.inner_text("#provenance")
        rows = page.locator("#coverage tbody tr").all_inner_texts()
        assert rows[0].split() == ["EMB", *(f"{end:,}" for end in target["bounds"]["embed_dim"])]
        assert "held out error" in page.inner_text("#quality")


def test_a_slice_follows_the_table(open_page):
    """The test's tables are affine: along MLP a block takes 0.005 ms a unit more."""
    with open_page(PAGE) as page:
        page.select_option("#slice-axis", "mlp_dim")
        page.select_option("#slice-by", "none")
        page.wait_for_function(
            "() => echarts.getInstanceByDom(document.querySelector('#slice .chart')).getOption().series.length === 1"
        )
        (curve,) = series(page, "slice")
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(curve)]
        assert len(curve) > 20
        assert slopes == pytest.approx([SLOPES[4]] * len(slopes), rel=1e-6)
        page.locator("#slice summary").click()
        assert page.locator("#slice tbody tr").count() == len(curve)


def test_of_two_slices_the_one_that_was_asked_for_last_is_shown(open_page):
    with open_page(PAGE) as page:
        late = Late(page, "**/v1/latency/estimate")
        page.select_option("#slice-axis", "mlp_dim")
        page.select_option("#slice-by", "num_heads")
        late.wait()
        page.select_option("#slice-by", "none")
        curves = "() => echarts.getInstanceByDom(document.querySelector('#slice .chart')).getOption().series.length"
        page.wait_for_function(f"{curves} === 1")
        late.answer()
        assert len(series(page, "slice")) == 1


def test_of_two_tables_the_one_that_was_chosen_last_is_shown(open_page):
    with open_page(PAGE) as page:
        late = Late(page, "**/v1/latency/estimate")
        page.get_by_role("link", name=CPU, exact=True).click()
        late.wait()
        page.get_by_role("link", name=V100, exact=True).click()
        late.answer()
        assert V100 in page.inner_text("#detail-title")
        for place in ("slice", "map"):
            page.wait_for_selector(f'#{place} [aria-label*="{V100}"]')
            assert page.locator(f'#{place} [aria-label*="{CPU}"]').count() == 0
        assert page.locator('#list [aria-current="true"]').all_inner_texts() == [V100]


def test_two_tables_are_compared_on_the_same_blocks(open_page):
    with open_page(PAGE) as page:
        page.select_option("#other", CPU)
        page.wait_for_selector("#ratio")
        assert "1 times" in page.inner_text("#ratio"), "both tables of the test hold the same numbers"
        assert len(series(page, "compared")[0]) == 300
        page.reload()
        page.wait_for_selector("#ratio")
        pictures(page, "tables")


def test_a_validation_report_is_drawn_and_another_file_refused(open_page, tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"names": ["a", "b"], "predicted_ms": [1.0, 2.2], "measured_ms": [1.0, 2.0]}))
    other = tmp_path / "other.json"
    other.write_text('{"predicted_ms": [1]}')
    with open_page(PAGE) as page:
        page.set_input_files("#validation-file", report)
        page.wait_for_selector("#validation canvas")
        assert "worst 10.0 %" in page.inner_text("#validation")
        page.set_input_files("#validation-file", other)
        page.wait_for_selector("#validation .error")
        assert "other.json" in page.inner_text("#validation .error")


def test_names_that_are_markup_or_run_backwards_are_text(open_page):
    with open_page(PAGE) as page:
        unused = page.locator("#list details")
        text = unused.first.evaluate("element => element.textContent")
        assert "<img src=x onerror=alert(1)>" in text
        assert "\u202e" not in text, "a direction override would turn what stands around it"
        assert EVIL.split(" ")[-1].removeprefix("\u202e") in text
        assert page.locator("#list img").count() == 0


def test_a_bad_upload_is_refused_in_words(browser, service, tmp_path):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 this is no table PAR1")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with watched(browser, service.url, PAGE, refused=(400, 404, 405, 415, 422)) as page:
        page.set_input_files("#file", text)
        page.click("#upload")
        page.wait_for_selector("#upload-said .error")
        assert "notes.txt" in page.inner_text("#upload-said .error")
        page.set_input_files("#file", bad)
        page.click("#upload")
        page.wait_for_function("() => !document.getElementById('upload-said').innerText.includes('notes.txt')")
        page.wait_for_selector("#upload-said .error")
        assert "Parquet" in page.inner_text("#upload-said .error"), "says what is wrong with it"
        assert page.locator("#list tbody tr").count() > 0, "the page goes on"


def test_a_table_is_uploaded_and_answers(browser, tmp_path):
    save_table(tiny_table(), tmp_path / "mine.parquet")
    with (
        running(tmp_path / "library", VITFIT_WORKER="0") as service,
        watched(browser, service.url, "/tables") as page,
    ):
        assert "No tables yet" in page.inner_text("#list")
        page.set_input_files("#file", tmp_path / "mine.parquet")
        page.click("#upload")
        page.wait_for_selector("#upload-said .good")
        assert page.get_by_role("link", name=TINY_TARGET.slug).count() == 1
        page.click("#upload")
        page.wait_for_function("() => document.getElementById('upload-said').innerText.includes('here already')")
        assert httpx.get(f"{service.url}/v1/targets/{TINY_TARGET.slug}", timeout=60).status_code == 200


def test_a_deleted_table_in_the_address_is_said_and_the_list_is_there(browser, service):
    with watched(browser, service.url, "/tables?table=gone-eager-fp32-b1-n197", refused=(404,)) as page:
        assert "gone-eager-fp32-b1-n197" in page.inner_text("#notices .error")
        assert page.locator("#list tbody tr").count() >= 3


MANY_BYTES = 50 * 2**20


def heavy(folder):
    """50 MB that only look like a table by name."""
    path = folder / "heavy.parquet"
    path.write_bytes(np.random.default_rng(0).bytes(MANY_BYTES))
    return path


def assert_usable(page):
    """Another upload is refused for its own reason, and the tables can be looked at."""
    assert page.locator("#upload").is_enabled()
    assert page.locator("#list tbody tr").count() > 0
    page.set_input_files("#file", {"name": "small.json", "mimeType": "application/json", "buffer": b"{}"})
    page.click("#upload")
    page.wait_for_function("() => !document.getElementById('upload-said').innerText.includes('Uploading')")
    said = page.inner_text("#upload-said .error")
    assert "heavy.parquet" not in said
    page.select_option("#slice-axis", "qk_dim")
    page.wait_for_function("() => document.querySelector('#slice .chart').ariaLabel.includes('along QK')")


def test_50_mb_that_are_no_table_are_refused_in_words_and_leave_nothing(browser, service, tmp_path):
    before = sorted(path.name for path in service.folder.rglob("*.parquet"))
    with watched(browser, service.url, PAGE, refused=(400, 422)) as page:
        page.set_input_files("#file", heavy(tmp_path))
        page.click("#upload")
        page.wait_for_selector("#upload-said .error")
        said = page.inner_text("#upload-said .error")
        assert "Parquet" in said
        assert len(said) < 600, "says what is wrong, not what was in it"
        assert_usable(page)
    assert sorted(path.name for path in service.folder.rglob("*.parquet")) == before
    assert not any((service.folder / "uploads").iterdir())


def test_a_file_above_the_limit_is_refused_with_the_limit(browser, tmp_path):
    folder = fill(tmp_path / "library")
    with (
        running(folder, VITFIT_WORKER="0", VITFIT_MAX_UPLOAD_BYTES="1000000") as small,
        watched(browser, small.url, PAGE, refused=(400, 413, 422)) as page,
    ):
        page.set_input_files("#file", heavy(tmp_path))
        page.click("#upload")
        page.wait_for_selector("#upload-said .error")
        said = page.inner_text("#upload-said .error")
        assert "1000000 bytes" in said
        assert "does not answer" not in said
        assert_usable(page)
        assert not list((folder / "uploads").glob("*"))
