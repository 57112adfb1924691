"""The report in a real browser: what a reader clicks, and that the page then shows what the records say."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from axpo.diagnostics.recorder import RolloutRecord, read_metrics, read_rollouts, rollout_files
from axpo.reports.html import write_report
from axpo.reports.runs import load_arms
from axpo.reports.tables import final_table, percent
from axpo.types import SegmentKind
from synthetic_run import write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = sync_api.expect

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One GRPO run, AXPO with two seeds; in this order on the page."""
    root = tmp_path_factory.mktemp("runs")
    for method, seed in (("axpo", 0), ("axpo", 1), ("grpo", 0)):
        write_run(root / f"{method}-{seed}", method=method, seed=seed, num_steps=6, num_questions=4, eval_steps=(0, 6))
    _let_calls_fail(rollout_files(root / "axpo-0", "train")[2])
    return [root / "grpo-0", root / "axpo-0", root / "axpo-1"]


def _let_calls_fail(path: Path) -> None:
    """The calls of every wrong rollout of a step."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for rollout in (line["rollout"] for line in lines):
        if rollout["tool_results"] and rollout["reward"] < 1:
            rollout["images"] = rollout["images"][:1]
            rollout["tool_results"][0] |= {
                "failure": {"kind": "bad_arguments", "message": "No such box."},
                "content": [],
            }
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "report.html"
    write_report(runs, path)
    return path


@pytest.fixture(scope="module")
def records(runs: list[Path]) -> list[tuple[int, str, RolloutRecord]]:
    """(run, kind, record) of everything in the page."""
    return [
        (number, kind, record)
        for number, run in enumerate(runs)
        for kind in ("train", "eval")
        for path in rollout_files(run, kind).values()
        for record in read_rollouts(path)
    ]


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Open]:
    """Open a view. Whatever a page complains about or asks for from elsewhere fails the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def start(view: str = "overview", path: Path = report, tolerated: str = "\0", **device: Any) -> Any:
        contexts.append(browser.new_context(**{**DESKTOP, **device}))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: complaints.extend([message.text] * (tolerated not in message.text)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: complaints.extend(_strangers(request.url, path)))
        page.goto(f"{path.as_uri()}#{view}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def _strangers(url: str, path: Path) -> list[str]:
    is_own = url.startswith((path.as_uri(), path.with_name(f"{path.stem}_images").as_uri() + "/", "data:", "blob:"))
    return [] if is_own else [f"request: {url}"]


def text_of(page: Any, selector: str) -> str:
    return page.locator(selector).first.inner_text()


def count(page: Any, selector: str) -> int:
    return page.locator(selector).count()


# -- every view -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_its_screen_in_both_colours(open_page: Open, device: dict[str, Any], scheme: str) -> None:
    page = open_page(**device, color_scheme=scheme)
    width = device["viewport"]["width"]
    for view in ("overview", "curves", "rollouts", "runs"):
        page.locator(f"nav a[data-view={view}]").click()
        page.wait_for_selector(f"#{view}:not([hidden])")
        if view == "rollouts" and width == 390:
            page.locator("#groups button").first.click()
        page.wait_for_selector({"curves": ".chart canvas", "rollouts": ".talk"}.get(view, f"#{view} h1"))
        assert page.locator(".view:visible").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert (red + green + blue < 150) == (scheme == "dark")


def test_the_button_changes_the_colours(open_page: Open) -> None:
    page = open_page("curves", color_scheme="light")
    page.wait_for_selector(".chart canvas")
    before = page.evaluate("document.querySelector('.chart canvas').toDataURL()")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    after = (
        "new Promise((done) => requestAnimationFrame(() => done(document.querySelector('.chart canvas').toDataURL())))"
    )
    assert page.evaluate(after) != before


def test_the_overview_shows_the_final_table_and_says_what_each_number_is(open_page: Open, runs: list[Path]) -> None:
    page = open_page()
    rows = final_table(load_arms(runs))
    for number, row in enumerate(rows, start=1):
        line = page.locator(f".results tbody tr:nth-child({number})").first
        assert row.label in line.inner_text()
        assert percent(row.cells["pass@1"].estimate) in line.inner_text()
    assert "one sample is right" in page.locator(".results td").first.get_attribute("title")
    assert (
        page.locator(".results td, .story .change, .facts dd").evaluate_all(
            "(all) => all.filter((e) => !e.title).length"
        )
        == 0
    )


def test_a_tap_shows_the_definition_where_there_is_no_mouse(open_page: Open) -> None:
    page = open_page(**PHONE)
    assert page.locator("#tip").is_hidden()
    page.locator(".results td .num").first.tap()
    assert page.locator("#tip").is_visible()
    assert "one sample is right" in text_of(page, "#tip")
    page.locator("h1").first.tap()
    assert page.locator("#tip").is_hidden()


# -- curves -----------------------------------------------------------------------------------------------------------


def test_curves_show_the_logged_values_with_the_band_of_the_seeds(open_page: Open, runs: list[Path]) -> None:
    page = open_page("curves")
    page.locator("#smoothing").select_option("1")
    chart = page.locator(".chart", has=page.locator("h3", has_text=re.compile(r"^Tool use$")))
    chart.locator("canvas").wait_for()
    rates = [[r["rollout/tool_use_rate"] for r in read_metrics(run) if r["kind"] == "train"] for run in runs]
    low, high = sorted(values[-1] for values in rates[1:])
    shown = chart.locator(".readout").inner_text()
    assert "step 6" in shown and f"GRPO {100 * rates[0][-1]:.1f} %" in shown
    assert f"AXPO {50 * (low + high):.1f} % ({100 * low:.1f} % – {100 * high:.1f} %)" in shown
    chart.locator(".plot").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    shown = chart.locator(".readout").inner_text()
    assert "step 3" in shown and f"GRPO {100 * rates[0][2]:.1f} %" in shown
    assert chart.locator("h3").get_attribute("title").startswith("D1: siblings that opened a tool call")


def test_bands_are_drawn_and_can_be_taken_away(open_page: Open) -> None:
    page = open_page("curves")
    page.wait_for_selector(".chart canvas")
    inked = """() => {
      const { width, height } = document.querySelector('.chart canvas');
      const { data } = document.querySelector('.chart canvas').getContext('2d').getImageData(0, 0, width, height);
      return data.filter((value, place) => place % 4 === 3 && value > 0).length;
    }"""
    with_band = page.evaluate(inked)
    page.locator("#bands").uncheck()
    page.wait_for_selector(".chart canvas")
    assert with_band > page.evaluate(inked) + 500


def test_a_click_on_a_curve_opens_the_rollouts_of_its_step(open_page: Open) -> None:
    page = open_page("curves")
    page.wait_for_selector(".chart canvas")
    over = page.locator(".chart .u-over").first
    box = over.bounding_box()
    over.click(position={"x": box["width"] * 0.4, "y": box["height"] / 2})  # steps 1 to 6: 0.4 of the way is step 3
    page.wait_for_selector("#rollouts:not([hidden]) .talk")
    assert page.locator("[name=from]").input_value() == page.locator("[name=to]").input_value() == "3"
    assert text_of(page, "#matches").startswith("12 groups")


# -- filters ----------------------------------------------------------------------------------------------------------


def matching(page: Any) -> tuple[int, int]:
    """Groups and rollouts that the page says match."""
    groups, rollouts = re.match(r"([\d,]+) groups?, ([\d,]+) of", text_of(page, "#matches")).groups()
    return int(groups.replace(",", "")), int(rollouts.replace(",", ""))


def group_key(run: int, kind: str, record: RolloutRecord) -> tuple[int, str, int, str]:
    return run, kind, record.step, record.rollout.problem_id


def test_filters_find_what_the_records_say(open_page: Open, records: list[tuple[int, str, RolloutRecord]]) -> None:
    page = open_page("rollouts")
    page.wait_for_selector(".talk")
    by_group: dict[tuple[int, str, int, str], list[RolloutRecord]] = {}
    for run, kind, record in records:
        by_group.setdefault(group_key(run, kind, record), []).append(record)

    def expected(
        of_rollout: Callable[[RolloutRecord], bool] = lambda record: True,
        of_group: Callable[[tuple[int, str, int, str], list[RolloutRecord]], bool] = lambda key, members: True,
    ) -> tuple[int, int]:
        counts = [sum(map(of_rollout, members)) for key, members in by_group.items() if of_group(key, members)]
        return sum(map(bool, counts)), sum(counts)

    def is_recovered(members: list[RolloutRecord]) -> bool:
        return any(m.phase == "resample" and m.rollout.is_correct for m in members)

    def fails(record: RolloutRecord, kind: str) -> bool:
        return any(result.failure and result.failure.kind == kind for result in record.rollout.tool_results)

    assert matching(page) == expected() == (len(by_group), len(records))
    cases: list[tuple[dict[str, str], tuple[int, int]]] = [
        ({"reward": "right"}, expected(lambda r: r.rollout.reward >= 1)),
        ({"tool": "none"}, expected(lambda r: not r.rollout.uses_tool)),
        ({"tool": "=image_zoom_in"}, expected(lambda r: bool(r.rollout.tool_results))),
        ({"failure": "bad_arguments"}, expected(lambda r: fails(r, "bad_arguments"))),
        ({"state": "recovered"}, expected(of_group=lambda key, m: is_recovered(m))),
        ({"state": "triggered"}, expected(of_group=lambda key, m: m[0].is_triggered)),
        ({"state": "quiet"}, expected(of_group=lambda key, m: not m[0].is_triggered)),
        ({"run": "1"}, expected(of_group=lambda key, m: key[0] == 1)),
        ({"kind": "eval"}, expected(of_group=lambda key, m: key[1] == "eval")),
        ({"from": "2", "to": "4"}, expected(of_group=lambda key, m: 2 <= key[2] <= 4)),
        ({"text": "GREEN tag"}, expected(of_group=lambda key, m: "green tag" in m[0].question)),
        (
            {"run": "0", "tool": "any", "reward": "wrong", "kind": "train"},
            expected(lambda r: r.rollout.uses_tool and r.rollout.reward < 1, lambda key, m: key[:2] == (0, "train")),
        ),
    ]
    for choices, wanted in cases:
        assert wanted[0] > 0, choices
        for name, value in choices.items():
            field = page.locator(f"#filters [name={name}]")
            field.fill(value) if name in ("from", "to", "text") else field.select_option(value)
        assert matching(page) == wanted, choices
        assert count(page, "#groups li") == min(wanted[0], 30)
        page.get_by_role("button", name="Clear").click()
        assert matching(page) == (len(by_group), len(records))
    page.locator("#filters [name=text]").fill("no such words")
    assert matching(page) == (0, 0)


def test_filtering_is_fast_and_marks_what_matches(open_page: Open) -> None:
    page = open_page("rollouts")
    page.wait_for_selector(".talk")
    page.locator("#filters [name=reward]").select_option("wrong")
    assert float(page.locator("#rollouts").get_attribute("data-filter-ms")) < 100
    first = page.locator("#groups button").first
    assert first.locator("i.off.right").count() == first.locator("i.right").count()
    assert first.locator("i:not(.off):not(.right)").count() == first.locator("i:not(.right)").count() > 0
    first.click()
    expect(page.locator("#groups button").first).to_have_attribute("aria-current", "true")
    expect(page.locator(".node.leaf.right:not(.off)")).to_have_count(0)


# -- the tree and the dialogue ----------------------------------------------------------------------------------------


def recovered_group(records: list[tuple[int, str, RolloutRecord]]) -> tuple[int, int, str, list[RolloutRecord]]:
    """Run, step and problem of a group with a right continuation, and its records."""
    run, record = next((run, r) for run, _, r in records if r.phase == "resample" and r.rollout.is_correct)
    problem = record.rollout.problem_id
    members = [
        r for n, kind, r in records if (n, kind, r.step, r.rollout.problem_id) == (run, "train", record.step, problem)
    ]
    return run, record.step, problem, members


def open_recovered(
    open_page: Open, records: list[tuple[int, str, RolloutRecord]], **device: Any
) -> tuple[Any, list[RolloutRecord]]:
    """The page at the group of `recovered_group`."""
    run, step, problem, members = recovered_group(records)
    page = open_page(**device)
    index = json.loads(page.locator("#data-index").text_content())
    part = next(n for n, p in enumerate(index["parts"]) if (p["run"], p["kind"], p["step"]) == (run, "train", step))
    wanted = next(
        group
        for group, (n, p) in enumerate(zip(index["groups"]["part"], index["groups"]["problem"], strict=True))
        if n == part and index["problems"][p] == problem
    )
    page.goto(f"{page.url.split('#')[0]}#rollouts?group={wanted}")
    page.wait_for_selector(".talk")
    return page, members


def test_a_group_is_a_tree_from_the_prompt_to_the_continuations(
    open_page: Open, records: list[tuple[int, str, RolloutRecord]]
) -> None:
    page, members = open_recovered(open_page, records)
    siblings = [record for record in members if record.phase == "train"]
    continuations = [record for record in members if record.phase == "resample"]
    sources = {record.rollout.prefix.source_id for record in continuations if record.rollout.prefix}
    assert count(page, ".tree .leaf") == len(members)
    assert count(page, ".tree .frozen") == len(sources)
    assert count(page, ".tree .leaf.right") == sum(record.rollout.is_correct for record in members)
    assert count(page, ".tree > li > ul > li") == len(siblings)
    first = page.locator(".tree li.ice").first
    assert first.locator("ul > li").count() == 1 + sum(
        record.rollout.prefix.source_id == continuations[0].rollout.prefix.source_id for record in continuations
    )
    right = sum(
        r.rollout.is_correct
        for r in continuations
        if r.rollout.prefix.source_id == continuations[0].rollout.prefix.source_id
    )
    assert f"{right} of {len(continuations) // len(sources)} right" in first.locator(".node.frozen").inner_text()
    assert page.locator(".node[aria-pressed=true]").inner_text().startswith("✓")
    assert "recovered" in text_of(page, ".pane-head")
    names = [
        re.match(r"(try|call) [\d.]+", text)[0] for text in page.locator(".leaf .sub > :first-child").all_inner_texts()
    ]
    assert [name for name in names if name.startswith("try")] == [f"try {n}" for n in range(1, len(siblings) + 1)]
    number = siblings.index(next(r for r in siblings if r.rollout.id == continuations[0].rollout.prefix.source_id)) + 1
    at = names.index(f"try {number}")
    assert names[at : at + 5] == [f"try {number}", *(f"call {number}.{k}" for k in range(1, 5))]


def test_the_frozen_thought_and_its_continuation_read_as_dialogues(
    open_page: Open, records: list[tuple[int, str, RolloutRecord]]
) -> None:
    page, members = open_recovered(open_page, records)
    assert count(page, ".block.inherited") >= 1
    assert page.locator(".shots figure").count() == 2
    assert page.locator(".shots rect.right").count() == page.locator(".shots rect.target").count() == 1
    for image in page.locator(".shots img").all():
        assert image.evaluate("(i) => i.complete && i.naturalWidth > 0")
    call = text_of(page, ".block.tool_call pre")
    assert call.startswith("image_zoom_in\nbbox_2d: [")
    assert "<answer>" in text_of(page, ".block.answer")
    page.locator(".node.frozen").first.click()
    expect(page.locator(".block.tool_call, .block.answer")).to_have_count(0)
    assert "I should zoom in" in text_of(page, ".talk")
    failed = next((r for r in members if any(x.failure for x in r.rollout.tool_results)), None)
    if failed is not None:
        assert "failed call" in text_of(page, ".tree")


def test_the_tree_and_the_groups_are_walked_by_keyboard(
    open_page: Open, records: list[tuple[int, str, RolloutRecord]]
) -> None:
    page = open_page("rollouts")
    page.wait_for_selector(".talk")
    before = page.locator("#groups button[aria-current]").get_attribute("data-group")
    page.keyboard.press("j")
    expect(page.locator("#groups [aria-current]")).not_to_have_attribute("data-group", before)
    page.keyboard.press("k")
    expect(page.locator("#groups [aria-current]")).to_have_attribute("data-group", before)
    page.locator(".tree button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".tree button").nth(2)).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("[...document.querySelectorAll('.tree button')].indexOf(document.activeElement)") == 2


# -- tokens -----------------------------------------------------------------------------------------------------------


def selected_record(page: Any, members: list[RolloutRecord]) -> RolloutRecord:
    """The record whose dialogue is shown."""
    group, place = page.evaluate(
        "(() => [document.querySelector('#groups [aria-current]')?.dataset.group, "
        "[...document.querySelectorAll('.leaf')].findIndex((e) => e.getAttribute('aria-pressed') === 'true')])()"
    )
    assert place >= 0, group
    siblings = [r for r in members if r.phase == "train"]
    order: list[RolloutRecord] = []
    for sibling in siblings:
        order += [
            sibling,
            *(r for r in members if r.rollout.prefix and r.rollout.prefix.source_id == sibling.rollout.id),
        ]
    return order[place]


def test_tokens_are_coloured_by_mask_advantage_and_probability(
    open_page: Open, records: list[tuple[int, str, RolloutRecord]]
) -> None:
    page, members = open_recovered(open_page, records)
    record = selected_record(page, members)
    first = record.rollout.segments[0].stop
    learning = sum(stop - start for start, stop, _ in record.credit)
    inherited = record.rollout.prefix.num_tokens - first
    given = sum(len(s) for s in record.rollout.segments if s.kind is SegmentKind.TOOL_RESULT)

    page.locator(".modes label", has_text="Mask").click()
    page.wait_for_selector(".tok.mask-learns")
    tokens = ".block .tok"
    assert count(page, tokens) == len(record.rollout.token_ids) - first
    assert count(page, ".block .mask-learns") == learning
    assert count(page, ".block .mask-inherited") == inherited
    assert count(page, ".block .mask-given") == given
    assert learning + inherited + given == count(page, tokens)

    page.locator(".modes label", has_text="Advantage").click()
    page.wait_for_selector(".block .tok[class*='adv-']")
    [advantage] = {value for *_, value in record.credit}
    assert advantage > 0 and count(page, ".block .tok[class*='adv-p']") == learning

    page.locator(".modes label", has_text="Probability").click()
    page.wait_for_selector(".legend .prob-5")
    for level, low, high in ((0, 0.9, 1.01), (1, 0.7, 0.9), (2, 0.5, 0.7), (3, 0.25, 0.5), (4, 0.05, 0.25)):
        wanted = sum(
            low <= math.exp(-round(-100 * logprob) / 100) < high
            for segment in record.rollout.segments
            if segment.kind.is_sampled
            for logprob in record.rollout.behavior_logprobs[segment.start : segment.stop]
        )
        selector = f".block .prob-{level}" if level else ".block .tok:not([class*='prob-']):not(.mask-given)"
        assert count(page, selector) == wanted, level
    shown = page.locator(".block.tool_call .tok").all_inner_texts()
    call = record.rollout.segments.index(next(s for s in record.rollout.segments if s.kind is SegmentKind.TOOL_CALL))
    assert "".join(shown) == record.segment_texts[call] and len(shown) == len(record.rollout.segments[call])


def test_what_is_known_of_a_token_is_read_out(open_page: Open, records: list[tuple[int, str, RolloutRecord]]) -> None:
    page, members = open_recovered(open_page, records)
    record = selected_record(page, members)
    page.keyboard.press("2")
    page.wait_for_selector(".legend")
    assert page.locator(".probe").is_hidden()
    page.locator(".talk").focus()
    page.keyboard.press("ArrowRight")
    first = record.rollout.segments[0].stop
    p = math.exp(record.rollout.behavior_logprobs[first])
    shown = text_of(page, ".probe")
    found = re.fullmatch(
        r'token 1 "The" · p ([\d.]+) · ln p −[\d.]+ · no advantage · inherited from the frozen prefix', shown
    )
    assert found and float(found[1]) == pytest.approx(p, rel=0.011)
    page.locator(".block.answer .tok").last.hover()
    assert "advantage +" in text_of(page, ".probe") and "· learns" in text_of(page, ".probe")


def test_without_lengths_of_tokens_whole_segments_are_coloured_and_the_page_says_so(
    open_page: Open, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", num_steps=1, num_questions=2, eval_steps=())
    path = rollout_files(tmp_path / "run", "train")[1]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "token_chars"}) + "\n" for line in lines))
    write_report([tmp_path / "run"], tmp_path / "old.html")
    page = open_page("rollouts?color=probability", path=tmp_path / "old.html")
    page.wait_for_selector(".legend .badge.warn")
    assert count(page, ".block .tok") == count(page, ".block")
    assert page.locator(".block .tok").first.get_attribute("title").startswith("whole segment · geometric mean p")


# -- side by side, state, phone ---------------------------------------------------------------------------------------


def test_two_runs_stand_side_by_side_on_the_same_question(
    open_page: Open, records: list[tuple[int, str, RolloutRecord]]
) -> None:
    page, _ = open_recovered(open_page, records)
    page.get_by_role("button", name="Side by side").click()
    page.wait_for_selector(".panes.two")
    questions = page.locator(".pane .question").all_inner_texts()
    assert len(questions) == 2 and questions[0] == questions[1]
    heads = page.locator(".pane-head .row").all_inner_texts()
    run_names = [head.split("\n")[0] for head in heads]
    steps = [re.search(r"step \d+", head)[0] for head in heads]
    assert run_names[0] != run_names[1] and steps[0] == steps[1]
    page.locator(".pane").nth(1).locator(".leaf").last.click()
    expect(page.locator(".pane").nth(1).locator(".leaf").last).to_have_attribute("aria-pressed", "true")
    assert page.locator(".pane").nth(1).locator("[aria-pressed=true]").count() == 1
    assert page.locator(".pane").nth(0).locator("[aria-pressed=true]").count() == 1
    options = page.locator(".actions select option").all_inner_texts()
    other = next(text for text in options if "evaluation" in text)
    page.locator(".actions select").select_option(label=other)
    expect(page.locator(".pane-head").nth(1)).to_contain_text("evaluation")
    page.get_by_role("button", name="One only").click()
    expect(page.locator(".pane")).to_have_count(1)


def test_a_reload_shows_the_same(open_page: Open, records: list[tuple[int, str, RolloutRecord]]) -> None:
    page, _ = open_recovered(open_page, records)
    page.locator("#filters [name=state]").select_option("recovered")
    page.locator(".modes label", has_text="Mask").click()
    page.wait_for_selector(".tok.mask-learns")
    page.locator(".leaf").first.click()
    expect(page.locator(".leaf").first).to_have_attribute("aria-pressed", "true")
    before = (text_of(page, "#matches"), text_of(page, ".pane"), page.url)
    page.reload()
    page.wait_for_selector(".talk")
    assert (text_of(page, "#matches"), text_of(page, ".pane"), page.url) == before
    page.locator("nav a[data-view=overview]").click()
    page.locator("nav a[data-view=rollouts]").click()
    page.wait_for_selector(".talk")
    assert text_of(page, "#matches") == before[0]


def test_on_a_phone_a_group_takes_the_screen_and_back_leads_to_the_list(open_page: Open) -> None:
    page = open_page("rollouts", **PHONE)
    page.wait_for_selector("#groups button")
    assert not page.locator("#filters").is_visible() and not page.locator(".detail").is_visible()
    page.locator("#groups button").first.tap()
    page.wait_for_selector(".talk")
    assert not page.locator("#groups").is_visible()
    page.go_back()
    page.wait_for_selector("#groups button")
    assert page.locator("#groups").is_visible() and not page.locator(".talk").is_visible()
    page.locator("#groups button").nth(1).tap()
    page.get_by_role("button", name="← Groups").tap()
    page.wait_for_selector("#groups button")
    assert page.locator("#groups").is_visible()


def test_a_picture_without_its_thumbnail_comes_from_the_folder_beside_the_page(
    open_page: Open, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.reports.html.MAX_PAGE_BYTES", 0)
    write_report([runs[1]], tmp_path / "small.html")
    page = open_page("rollouts", path=tmp_path / "small.html", tolerated="ERR_FILE_NOT_FOUND")
    page.wait_for_selector(".picture img")
    picture = page.locator(".picture img").first
    assert picture.get_attribute("src").startswith("small_images/")
    expect(picture).to_have_js_property("naturalWidth", 640)
    shutil.rmtree(tmp_path / "small_images")
    page.reload()
    page.wait_for_selector(".picture.absent")
    assert "small_images/" in text_of(page, ".picture.absent")


# -- hostile content --------------------------------------------------------------------------------------------------


def test_nothing_that_a_record_holds_is_executed(open_page: Open, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, num_steps=2, num_questions=2, eval_steps=(2,), question=HOSTILE)
    for path in rollout_files(run, "train").values():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line |= {"answer": HOSTILE, "token_chars": [], "segment_texts": [HOSTILE] * len(line["segment_texts"])}
            line["metadata"] |= {"category": HOSTILE}
            line["rollout"]["final_text"] = HOSTILE
            for result in line["rollout"]["tool_results"]:
                result["call"]["name"] = HOSTILE
                result |= {"failure": {"kind": "timeout", "message": HOSTILE}, "content": []}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([run], tmp_path / "hostile.html")
    page = open_page(path=tmp_path / "hostile.html")
    for view in ("curves", "runs", "rollouts"):
        page.locator(f"nav a[data-view={view}]").click()
    page.wait_for_selector(".talk")
    page.locator(".leaf", has=page.locator(".badge.bad")).first.click()
    for mode in ("Probability", "Advantage", "Mask", "Text"):
        page.locator(".modes label", has_text=mode).click()
        expect(page.locator(".modes label", has_text=mode).locator("input")).to_be_checked()
    page.locator(".prompt summary").click()
    assert HOSTILE in text_of(page, ".question") and HOSTILE in text_of(page, ".prompt pre")
    assert HOSTILE in text_of(page, ".result pre")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('#rollouts script, #rollouts [onerror]').length") == 0
