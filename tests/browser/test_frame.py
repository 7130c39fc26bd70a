"""What holds for every page: everybody can use it, on any screen, and whatever is wrong is said."""

import httpx
import pytest

from api.routes.dashboard import PAGES
from tests.browser.conftest import watched
from tests.browser.service import CPU, SALIENCY, running

ADDRESSES = {name: path for name, (path, _, _) in PAGES.items()} | {
    "explore": f"/?saliency={SALIENCY}&target={CPU}",
    "architecture": f"/architecture?preset=deit-s&target={CPU}",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_page_is_for_everybody_light_and_dark_on_every_screen(open_page, violations, name):
    with open_page(ADDRESSES[name]) as page:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == [], scheme
        for width in (2560, 360):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(200)
            wide = page.evaluate("() => document.documentElement.scrollWidth")
            assert wide <= width, f"{name} scrolls sideways at {width}"
            assert page.locator("h1").is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_a_service_with_nothing_says_what_to_do_next(open_page, empty, violations, name):
    with open_page(PAGES[name][0], on=empty) as page:
        if name != "architecture":  # presets are always there
            box = page.locator(".box.empty").first
            assert box.inner_text()
        assert violations(page) == []


def test_the_switch_changes_the_theme_and_is_remembered(open_page):
    with open_page("/tables", color_scheme="light") as page:
        back = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(back)
        page.click("#theme-button")
        page.click("#theme-button")
        assert page.inner_text("#theme-button") == "Theme: dark"
        dark = page.evaluate(back)
        assert dark != light
        page.goto(page.url.split("?")[0].replace("/tables", "/studies"))
        page.wait_for_selector("body[data-ready]")
        assert page.evaluate(back) == dark


def test_keys_alone_reach_the_content_and_every_control(open_page):
    with open_page(ADDRESSES["explore"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        seen = []
        for _ in range(20):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            if seen[-1] == "BODY":  # past the last one
                break
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring != "none", f"{seen[-1]} shows no focus"
        assert {"saliency", "target", "level", "budget", "budget-line", "open", "pin"} <= set(seen)


def test_a_service_that_went_away_is_said_and_asked_again(browser, tmp_path):
    with (
        running(tmp_path / "short-lived", VITFIT_WORKER="0") as service,
        watched(browser, service.url, "/jobs", refused=(0,)) as page,
    ):
        service.stop()
        page.click("#reload")
        page.wait_for_selector("#notices .error")
        assert "does not answer" in page.inner_text("#notices .error")
        assert "vitfit serve" in page.inner_text("#notices .error")
        service.start()
        page.get_by_role("button", name="Ask again").click()
        page.wait_for_selector("#list .empty")


def test_a_key_is_asked_for_sent_and_a_refused_one_said(browser, service):
    """The service of this test is open; the refusal of a locked one stands in for it at the edge of the browser."""
    with watched(browser, service.url, "/tables", refused=(401,)) as page:
        sent = []

        def locked(route):
            sent.append(route.request.headers.get("authorization"))
            if sent[-1] == "Bearer vf_right":
                route.continue_()
            else:
                detail = "the key has expired" if sent[-1] else "this service wants a key"
                body = {"type": "/problems/unauthorized", "title": "Unauthorized", "status": 401, "detail": detail}
                route.fulfill(status=401, json=body, content_type="application/problem+json")

        page.route("**/v1/**", locked)
        page.reload()
        page.wait_for_selector("#notices .error")
        assert "wants an API key" in page.inner_text("#notices .error")
        for key, words in (("vf_expired", "the key has expired"), ("vf_right", None)):
            page.get_by_role("button", name="key").last.click()
            page.fill("#key-input", key)
            page.get_by_role("button", name="Use this key").click()
            page.wait_for_function("key => sessionStorage.getItem('vitfit-key') === key", arg=key)
            if words:
                said = "words => document.getElementById('notices').textContent.includes(words)"
                page.wait_for_function(said, arg=words)
        page.wait_for_selector("#list tbody tr")
        assert "Bearer vf_right" in sent


def test_pages_and_files_forbid_everything_that_is_not_ours(service):
    script = "/static/dashboard/explore.js"
    for path in (*(page[0] for page in PAGES.values()), script, "/static/vendor/echarts/echarts.min.js"):
        answer = httpx.get(service.url + path, timeout=60)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path != script and "vendor" not in path:
            assert "<style" not in answer.text
            assert " style=" not in answer.text
            assert " on" not in answer.text.split("<body>")[0]
    again = httpx.get(service.url + script, headers={"if-none-match": httpx.get(service.url + script).headers["etag"]})
    assert again.status_code == 304
    assert httpx.get(f"{service.url}/static/../app.py").status_code == 404
    assert httpx.get(f"{service.url}/static/nothing.js").headers["content-type"] == "application/problem+json"
