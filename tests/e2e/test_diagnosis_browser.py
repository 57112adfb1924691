"""The page of a diagnosis in a real browser: every view at both widths and colours, by mouse, touch and keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from axpo.diagnostics.diagnosis import diagnose
from axpo.reports.diagnosis import write_diagnosis

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dumps; in `first` a tool never helps, in `second` it always does."""
    folder = tmp_path_factory.mktemp("dumps")
    for name, is_good in (("first", False), ("second", True)):
        (folder / name).mkdir()
        rows = [
            {
                "question": f"{HOSTILE}{index}",
                "step": index % 6,
                "reward": float(is_good or not calls),
                "calls": [{"tool": HOSTILE}] * calls,
            }
            for index in range(60)
            for calls in (0, 1)
        ]
        (folder / name / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "<b>\n")
    write_diagnosis(diagnose([folder / "first", folder / "second"]), folder / "page.html")
    return folder / "page.html"


@pytest.fixture
def open_page(browser: Any, written: Path) -> Iterator[Open]:
    """Open a view. Whatever the page complains about or asks for fails the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def start(view: str = "overview", **device: Any) -> Any:
        contexts.append(browser.new_context(**{**DESKTOP, **device}))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda r: complaints.extend([] if r.url.startswith(written.as_uri()) else [r.url]))
        page.goto(f"{written.as_uri()}#{view}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_its_screen_in_both_colours(open_page: Open, device: dict[str, Any], scheme: str) -> None:
    page = open_page(**device, color_scheme=scheme)
    width = device["viewport"]["width"]
    for view in ("overview", "curves", "dumps", "limits"):
        page.locator(f"nav a[data-view={view}]").click()
        page.wait_for_selector(f"#{view}:not([hidden])")
        if view == "curves":
            page.wait_for_selector(".chart canvas")
        assert page.locator(".view:visible").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert page.evaluate("scrollY") == 0
    assert page.evaluate("window.hacked") is None


def test_one_dump_at_a_time_and_the_address_keeps_it(open_page: Open) -> None:
    page = open_page()
    page.locator(".verdict a").nth(1).click()
    assert page.locator(".dump:visible h1").inner_text() == "second/rollouts.jsonl"
    assert "No gap can be told" in page.locator(".dump:visible .lead").inner_text()
    page.locator("#dump").select_option("0")
    assert page.locator(".dump:visible h1").all_inner_texts() == ["first/rollouts.jsonl"]
    page.reload()
    assert page.locator(".dump:visible h1").all_inner_texts() == ["first/rollouts.jsonl"]
    page.go_back()
    page.wait_for_function("document.querySelector('.dump:not([hidden]) h1').textContent.startsWith('second')")


def test_curves_follow_the_keyboard(open_page: Open) -> None:
    page = open_page("curves")
    chart = page.locator(".chart", has_text="Questions whose tries are all wrong")
    chart.locator("canvas").wait_for()
    page.locator("#smoothing").select_option("1")
    chart.locator("canvas").wait_for()
    chart.locator(".plot").focus()
    page.keyboard.press("ArrowLeft")
    shown = chart.locator(".readout").inner_text()
    assert "step 4" in shown
    assert "first all wrong tool 100.0 %" in shown and "second all wrong tool 0.0 %" in shown


def test_a_tap_or_the_focus_shows_a_definition(open_page: Open) -> None:
    page = open_page(**PHONE)
    page.locator(".results td .num").first.tap()
    assert "Rollouts that call a tool." in page.locator("#tip").inner_text()
    page.locator("#overview h1").first.tap()
    assert page.locator("#tip").is_hidden()
    page.locator(".results th[data-def]").first.focus()
    assert "rollout/tool_use_rate" in page.locator("#tip").inner_text()


def test_what_was_left_out_is_one_click_away(open_page: Open) -> None:
    page = open_page()
    badge = page.locator("#overview a.badge.warn")
    assert badge.inner_text() == "2 malformed rows left out"
    badge.click()
    assert page.locator("#limits .files li").count() == 2
