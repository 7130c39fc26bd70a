"""Explore: a budget is dragged and the best architecture follows, from the frontier alone."""

import json

import httpx
import pytest

from tests.browser.conftest import Late, pictures
from tests.browser.service import CPU, SALIENCY, V100

PAGE = f"/?saliency={SALIENCY}&target="


def search(service, target, budget_ms):
    body = {"saliency": SALIENCY, "target": target, "budget_ms": budget_ms}
    answer = httpx.post(f"{service.url}/v1/architectures/search", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def budget(page) -> float:
    return float(page.get_attribute("#budget-line", "aria-valuenow"))


def shown_sizes(page) -> str:
    """embed_dim, then heads, QK, V and MLP by block, of the architecture that would be opened."""
    return page.evaluate("new URL(document.getElementById('open').href).searchParams.get('sizes')")


def series(page) -> list[dict]:
    return page.evaluate(
        """() => echarts.getInstanceByDom(document.querySelector('#frontier .chart')).getOption().series
            .map(({ name, data }) => ({ name, data: data.map((one) => one.value ?? one) }))"""
    )


def sizes_of(arch) -> str:
    blocks = [f"{b['num_heads']}.{b['qk_dim']}.{b['v_dim']}.{b['mlp_dim']}" for b in arch["blocks"]]
    return "_".join([str(arch["embed_dim"]), *blocks])


def test_dragging_the_line_shows_the_architecture_that_the_service_would_choose(open_page, service):
    with open_page(PAGE + CPU) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/v1/" in request.url else None)
        before, line = budget(page), page.locator("#budget-line").bounding_box()
        x, y = line["x"] + line["width"] / 2, line["y"] + line["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 40, y, steps=5)
        page.mouse.move(x - 90, y, steps=5)
        page.mouse.up()
        page.wait_for_timeout(100)
        after = budget(page)
        assert after < before
        assert asked == [], "a dragged budget asks nothing"
        expected = search(service, CPU, after)
        assert shown_sizes(page) == sizes_of(expected["architecture"])
        text = page.inner_text("#best-tiles")
        assert f"{expected['latency_ms']:.1f}"[:4] in text
        assert "nothing this fast keeps more than" in text
        assert f"budget_ms={after:.6g}"[:14] in page.url, "the address is of what is shown"
        pictures(page, "explore")


def test_a_chart_is_drawn_anew_for_a_phone_and_for_a_desk(open_page):
    with open_page(f"{PAGE}{V100}") as page:
        published = "echarts.getInstanceByDom(document.querySelector('#frontier .chart')).getOption().series.at(-1)"
        for width, labels in ((360, "false"), (1400, "true")):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(f"() => {published}.label.show === {labels}")


def test_arrow_keys_move_the_budget_and_the_slider_says_what_comes_of_it(open_page, service):
    with open_page(PAGE + V100) as page:
        line = page.locator("#budget-line")
        line.focus()
        before = budget(page)
        line.press("ArrowLeft")
        page.wait_for_timeout(60)
        one = budget(page)
        line.press("PageDown")
        page.wait_for_timeout(60)
        assert before - one == pytest.approx((one - budget(page)) / 10, rel=0.02)
        line.press("Home")
        page.wait_for_timeout(60)
        low = float(line.get_attribute("aria-valuemin"))
        assert budget(page) == pytest.approx(low)
        said = line.get_attribute("aria-valuetext")
        assert "keeps" in said
        assert "EMB" in said


def test_a_typed_budget_is_answered_and_kept_in_the_address(open_page, service):
    with open_page(PAGE + CPU) as page:
        low, high = (float(page.get_attribute("#budget-line", f"aria-value{end}")) for end in ("min", "max"))
        wanted = round(low + 0.6 * (high - low), 2)
        page.fill("#budget", str(wanted))
        page.wait_for_timeout(100)
        assert shown_sizes(page) == sizes_of(search(service, CPU, wanted)["architecture"])
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert budget(page) == pytest.approx(wanted)


def test_parameters_and_macs_are_those_of_the_service(open_page, service):
    with open_page(PAGE + CPU) as page:
        found = page.evaluate(
            """async () => {
                const { Staircase, macs, params } = await import("/static/dashboard/arch.js");
                const { send } = await import("/static/dashboard/client.js");
                const body = Object.fromEntries(new URLSearchParams(location.search));
                const asked = { saliency: body.saliency, target: body.target };
                const answer = await send("POST", "/v1/architectures/staircase", { body: asked });
                const stairs = new Staircase(await answer.arrayBuffer()), last = stairs.length - 1;
                return [0, last >> 1, last].map((index) => {
                    const arch = stairs.architecture(index);
                    return { arch, macs: macs(arch), params: params(arch), ms: stairs.ms[index] };
                });
            }"""
        )
        body = {"targets": [CPU], "architectures": [one["arch"] for one in found]}
        answer = httpx.post(f"{service.url}/v1/latency/estimate", json=body, timeout=60).json()
        for mine, theirs in zip(found, answer["architectures"], strict=True):
            assert (mine["macs"], mine["params"]) == (theirs["macs"], theirs["params"])
            assert mine["ms"] == pytest.approx(theirs["estimates"][0]["latency_ms"])


def test_modelled_targets_carry_their_badge_and_interval(open_page):
    with open_page(PAGE + V100) as page:
        evidence = page.inner_text("#evidence")
        assert "modelled" in evidence
        assert "0.95" in evidence
        assert "1.06" in evidence
        assert "latency, modelled" in page.inner_text("#best-tiles")
        names = page.evaluate(
            "echarts.getInstanceByDom(document.querySelector('#frontier .chart')).getOption().series.map(s => s.name)"
        )
        assert "nine in ten lie here" in names


def test_published_models_are_marked_with_accuracy_and_source(open_page):
    with open_page(PAGE + V100) as page:
        page.wait_for_function("() => document.getElementById('published').textContent.includes('source')")
        text = page.evaluate("document.getElementById('published').textContent")
        for shown in (
            "DeiT-S (retrained)",
            "81.0 %",
            "ReViT-S",
            "81.2 %",
            "NViT-B",
            "NViT poster (CVPR 2023)",
            "printed speed-up",
        ):
            assert shown in text


def test_pinned_architectures_stand_side_by_side(open_page):
    with open_page(PAGE + CPU) as page:
        page.click("#pin")
        page.locator("#budget-line").press("PageDown")
        page.wait_for_timeout(60)
        page.click("#pin")
        assert page.locator("#pins tbody tr").count() == 2
        page.select_option("#pin-unit", "num_heads")
        assert page.locator("#pins-chart .chart canvas").count() == 1
        page.locator("#pins tbody tr").first.get_by_role("button", name="Unpin").click()
        assert page.locator("#pins tbody tr").count() == 1


def test_every_height_of_the_chart_is_drawn(open_page):
    with open_page(PAGE + V100) as page:
        for level in ("lost", "params", "macs", "kept"):
            page.select_option("#level", level)
            drawn = {one["name"]: one["data"] for one in series(page)}
            assert len(drawn["frontier"]) > 20, level


def test_numbers_are_in_a_table_beside_the_chart(open_page):
    with open_page(PAGE + CPU) as page:
        page.locator("#frontier summary").click()
        page.wait_for_selector("#frontier tbody tr")
        assert page.locator("#frontier tbody tr").count() >= 50
        assert json.dumps(page.locator("#frontier thead th").all_inner_texts()) == json.dumps(
            ["latency", "kept", "bound", "EMB", "params", "MACs"]
        )


def test_a_target_that_is_gone_is_said_and_another_can_be_chosen(browser, service):
    from tests.browser.conftest import watched

    with watched(browser, service.url, PAGE + "deleted-eager-fp32-b1-n197", refused=(404,)) as page:
        assert "deleted-eager-fp32-b1-n197" in page.inner_text("#notices .error")
        page.select_option("#target", V100)
        page.wait_for_selector("#frontier canvas")
        assert page.locator("#notices .error").count() == 0


def test_one_architecture_is_found_for_budgets_on_two_targets(open_page, service):
    with open_page(PAGE + CPU) as page:
        page.get_by_text("Also within a budget on another target").click()
        page.select_option("#together-target", "macs")
        page.fill("#together-budget", "500")
        page.click("#together")
        page.wait_for_selector("#together-said tbody tr", timeout=120_000)
        rows = [row.split("\t") for row in page.locator("#together-said tbody tr").all_inner_texts()]
        assert [row[0] for row in rows] == [CPU, "macs"]
        assert float(rows[1][2].split()[0]) <= 500


def test_of_two_targets_the_one_that_was_chosen_last_is_shown(open_page):
    with open_page(PAGE + CPU) as page:
        late = Late(page, "**/v1/architectures/staircase")
        page.select_option("#target", "macs")
        late.wait()
        page.select_option("#target", V100)
        page.wait_for_selector("#result:not([hidden])")
        tiles = page.inner_text("#best-tiles")
        late.answer()
        assert page.inner_text("#best-tiles") == tiles
        assert "million MACs" not in tiles
        assert f"target={V100}" in page.url
        assert f"target={V100}" in page.get_attribute("#open", "href")
