"""Architecture: a slider is moved and every estimate follows; what is shown can be taken home."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from latency.storage import save_table
from latency.target import Target
from tests.api.factories import IMAGENET_GRID, affine_table
from tests.browser.conftest import Late, pictures, watched
from tests.browser.service import CPU, SALIENCY, V100, running
from vit.presets import preset

PAGE = f"/architecture?preset=deit-s&target={CPU}"


def estimate(service, arch, target=CPU):
    body = {"targets": [target], "architectures": [arch]}
    return httpx.post(f"{service.url}/v1/latency/estimate", json=body, timeout=60).json()["architectures"][0]


def set_slider(page, name, value):
    page.get_by_label(name, exact=True).evaluate(
        """(input, value) => {
            input.value = value;
            for (const kind of ["input", "change"]) input.dispatchEvent(new Event(kind));
        }""",
        value,
    )


def arch_of(page):
    with page.expect_download() as download:
        page.click("#download-json")
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def shown(page) -> str:
    return page.inner_text("#tiles")


def test_a_slider_changes_the_size_and_the_estimate_follows(open_page, service):
    with open_page(PAGE) as page:
        before = shown(page)
        set_slider(page, "MLP, block 3", 512)
        set_slider(page, "QK per head, block 3", 16)
        page.wait_for_function("before => document.getElementById('tiles').innerText !== before", arg=before)
        page.wait_for_timeout(500)
        arch = arch_of(page)
        assert arch["blocks"][3]["mlp_dim"] == 512
        assert arch["blocks"][3]["qk_dim"] == 16
        assert arch["blocks"][2]["mlp_dim"] == 1536
        found = estimate(service, arch)
        assert f"{found['estimates'][0]['latency_ms']:.1f} ms" in shown(page)
        assert f"{found['params'] / 1e6:.3g} M" in shown(page)
        assert "sizes=" in page.url
        pictures(page, "architecture")
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert arch_of(page) == arch, "the address holds the sizes"


def test_a_slider_moves_by_keyboard(open_page):
    with open_page(PAGE) as page:
        slider = page.get_by_label("Embedding", exact=True)
        slider.focus()
        slider.press("ArrowLeft")
        page.wait_for_function("() => document.getElementById('tiles').innerText.includes('376')")


def test_one_slider_moves_all_blocks(open_page):
    with open_page(PAGE) as page:
        everywhere = page.get_by_label("heads, all blocks", exact=True).locator("xpath=following-sibling::output")
        assert everywhere.inner_text() == "6"
        set_slider(page, "heads, block 3", 5)
        assert everywhere.inner_text() == "varies"
        set_slider(page, "heads, all blocks", 4)
        assert everywhere.inner_text() == "4"
        assert {block["num_heads"] for block in arch_of(page)["blocks"]} == {4}
        page.click("#reset")
        assert {block["num_heads"] for block in arch_of(page)["blocks"]} == {6}


def test_all_targets_stand_side_by_side_with_their_evidence(open_page, service):
    with open_page(PAGE) as page:
        rows = page.locator("#targets tbody tr")
        texts = {row.split("\t")[0].strip(): row for row in rows.all_inner_texts()}
        assert set(texts) == {CPU, V100, "macs"}
        arch = arch_of(page)
        interval = estimate(service, arch, V100)["estimates"][0]["interval_ms"]
        assert "modelled" in texts[V100]
        assert f"{interval[0]:.2f}"[:4] in texts[V100]
        assert "4.6 G MACs" in texts["macs"]
        assert "another number of tokens" in page.inner_text("#targets")


def test_the_bound_of_the_saliency_is_beside_the_estimate(open_page):
    with open_page(f"/architecture?saliency={SALIENCY}&target={CPU}") as page:
        page.wait_for_function(
            "() => document.getElementById('tiles').innerText.includes('nothing this fast keeps more')"
        )


def test_latency_by_block_adds_up_in_the_table_beside_the_chart(open_page, service):
    with open_page(PAGE) as page:
        page.locator("#times summary").click()
        page.wait_for_selector("#times tbody tr")
        cells = page.locator("#times tbody tr td:nth-child(2)").all_inner_texts()
        total = estimate(service, arch_of(page))["estimates"][0]["latency_ms"]
        assert len(cells) == 13
        assert sum(float(cell.removesuffix(" ms").replace(",", "")) for cell in cells) == pytest.approx(total, rel=0.01)


def test_the_time_of_a_block_is_stacked_by_component_and_says_what_the_split_rests_on(open_page, service):
    body = {"targets": [CPU, "macs"], "architectures": [{"preset": "deit-s"}], "components": True}
    answer = httpx.post(f"{service.url}/v1/latency/estimate", json=body, timeout=60).json()["architectures"][0]
    option = "echarts.getInstanceByDom(document.querySelector('#split .chart')).getOption().series"
    expected = {
        CPU: ("estimated split", {"attention branch": "attn_ms", "MLP": "mlp_ms", "rest": "rest_ms"}),
        "macs": (
            "exact",
            {"Q and K": "qk_ms", "V and projection": "v_ms", "attention": "products_ms", "MLP": "mlp_ms"},
        ),
    }
    with open_page(PAGE) as page:
        page.locator("#split summary").click()
        for estimated in answer["estimates"]:
            basis, names = expected[estimated["target"]]
            page.select_option("#target", estimated["target"])
            page.wait_for_function("basis => document.getElementById('split-basis').textContent === basis", arg=basis)
            found = estimated["components"]
            series = page.evaluate(f"() => {option}.map(one => [one.name, one.stack, one.data])")
            assert series == [[name, "ms", found[field]] for name, field in names.items()]
            assert found["method"][1:] in page.inner_text("#split-method")
        page.locator("#split summary").click()
        page.wait_for_selector("#split tbody tr")
        assert page.locator("#split tbody tr").count() == 12
        assert page.locator("#split thead th").all_inner_texts() == ["block", *names, "whole block"]


def test_a_table_that_knows_no_components_says_so(browser, tmp_path):
    grid = replace(IMAGENET_GRID, mlp_dim=(1536,))
    one = affine_table(grid, Target("one-mlp", "eager", "fp32", 1, 197), preset("deit-s"))
    save_table(one, tmp_path / "tables" / "one.parquet")
    with (
        running(tmp_path, VITFIT_WORKER="0") as alone,
        watched(browser, alone.url, f"/architecture?preset=deit-s&target={one.target.slug}") as page,
    ):
        assert "knows no parts" in page.inner_text("#split-method")
        assert page.locator("#split").is_hidden()
        page.select_option("#target", "macs")
        page.wait_for_selector("#split canvas")
        page.select_option("#target", one.target.slug)
        page.wait_for_function("() => document.getElementById('split').hidden")


def test_json_curl_and_python_are_there_to_copy_and_true(open_page, service):
    with open_page(PAGE) as page:
        texts = dict(zip(("json", "curl", "python"), page.locator("#snippets pre").all_text_contents(), strict=True))
        assert json.loads(texts["json"]) == arch_of(page)
        body = json.loads(texts["curl"].split("-d '")[1].removesuffix("'"))
        assert httpx.post(f"{service.url}/v1/latency/estimate", json=body, timeout=60).status_code == 200
        namespace = {}
        exec(texts["python"], namespace)
        assert namespace["params"](namespace["arch"]) == estimate(service, arch_of(page))["params"]


def test_sizes_outside_the_table_are_said_with_the_field(browser, service):
    sizes = "_".join(["384", *["6.64.64.5000"] * 12])
    with watched(browser, service.url, f"{PAGE}&sizes={sizes}", refused=(422,)) as page:
        text = page.inner_text("#refused")
        assert "mlp_dim" in text
        assert "5000" in text


def test_a_job_that_cannot_work_is_refused_in_words(browser, service):
    with watched(browser, service.url, PAGE, refused=(404, 422)) as page:
        page.fill("#job-model", "no-such-model")
        page.get_by_role("button", name="Start the job").click()
        page.wait_for_selector("#job .error")
        assert "no-such-model" in page.inner_text("#job .error")


def test_an_unknown_preset_is_said(open_page):
    with open_page("/architecture?preset=%3Cb%3Enope") as page:
        assert "<b>nope" in page.inner_text("#notices .error")
        assert page.locator("#sizes canvas").count() == 1


def test_the_code_is_that_of_the_architecture(open_page):
    with open_page(PAGE) as page:
        set_slider(page, "MLP, block 3", 512)
        with page.expect_download() as download:
            page.click("#download-code")
        text = Path(download.value.path()).read_text(encoding="utf-8")
        compile(text, "model.py", "exec")
        assert "512" in text
        assert "EMBED_DIM = 384" in text


def test_of_two_targets_the_one_that_was_chosen_last_is_shown(open_page):
    with open_page(PAGE) as page:
        before = shown(page)
        late = Late(page, "**/v1/latency/estimate")
        page.select_option("#target", "macs")
        late.wait()
        page.select_option("#target", V100)
        page.wait_for_function("before => document.getElementById('tiles').innerText !== before", arg=before)
        tiles = shown(page)
        assert "million MACs" not in tiles
        late.answer()
        assert shown(page) == tiles
        assert page.locator("#times canvas").count() == 1
