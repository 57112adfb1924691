"""The HTML report: its numbers are the logged ones, hostile records stay text, missing parts are left out."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.diagnostics.recorder import read_metrics, read_rollouts, rollout_files
from axpo.errors import DataError
from axpo.reports.browser import build_browser
from axpo.reports.curves import MAX_POINTS, SECTIONS, build_curves
from axpo.reports.definitions import SOURCES, define, load_definitions, parse_definitions
from axpo.reports.html import arm_colors, write_report
from axpo.reports.runs import load_arms, load_run
from axpo.reports.selection import choose_files, scan_groups, spread
from axpo.reports.tables import columns, difference, edge_means, final_table, write_verdict
from axpo.reports.thumbnails import Thumbnails
from axpo.types import ImageRef, RowRole
from synthetic_run import write_run

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "src/axpo/reports/static"
HOSTILE = "</p></script><script>alert(1)</script><!--<img src=x onerror=alert(1)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags, attributes and text of a page; what its script elements hold, by id."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "style":
            self.styles.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.cdata_elem == "style":
            self.styles[-1] += data
        else:
            self.text += data

    def data(self, name: str) -> Any:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == f"data-{name}"))

    def part(self, number: int) -> list[dict[str, Any]]:
        text = next(text for attrs, text in self.scripts if attrs.get("id") == f"part-{number}")
        return json.loads(gzip.decompress(base64.b64decode(text)))

    @property
    def code(self) -> list[str]:
        return [text for attrs, text in self.scripts if "type" not in attrs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods, two seeds each."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("grpo", "axpo"):
        for seed in (0, 1):
            write_run(
                root / f"{method}-{seed}", method=method, seed=seed, num_steps=8, num_questions=4, eval_steps=(0, 8)
            )
    return sorted(root.iterdir())


@pytest.fixture(scope="module")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    write_report(runs, path)
    return path


@pytest.fixture(scope="module")
def source(report: Path) -> str:
    return report.read_text(encoding="utf-8")


# -- the page as a file -----------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside(source: str) -> None:
    page = Page(source)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "img", "object", "base", "form[action]")]
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")} and "src" not in names and "style" not in names
    targets = [attrs["href"] or "" for _, attrs in page.tags if "href" in attrs]
    assert targets and all(target.startswith("#") for target in targets)
    assert not re.findall(r"url\(|@import", "".join(page.styles))
    assert len(source) < 15_000_000


def test_the_policy_allows_the_scripts_and_the_style_of_the_page_and_nothing_else(source: str) -> None:
    page = Page(source)
    [policy] = [
        attrs["content"] or "" for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def hashes(texts: list[str]) -> str:
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)

    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == hashes(page.code) and len(page.code) == 2
    assert rules["style-src"] == hashes(page.styles) and len(page.styles) == 1
    assert rules["img-src"] == "data: 'self'"
    assert {rules["base-uri"], rules["form-action"]} == {"'none'"}


def test_scripts_set_text_and_never_markup() -> None:
    ours = [path for path in STATIC.glob("*.js") if not path.name.startswith("uplot")]
    assert len(ours) == 8
    for path in ours:
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(|fetch\(", path.read_text()
        )
        assert found == (["fetch("] if path.name == "watch.js" else []), path.name


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_one_method(runs: list[Path]) -> None:
    arms = load_arms(runs)
    assert [(arm.label, arm.seeds) for arm in arms] == [("GRPO", (0, 1)), ("AXPO", (0, 1))]
    assert arm_colors(arms) == [("#d55e00", "#ff9a4d"), ("#0072b2", "#56b4e9")]


def test_the_final_table_shows_the_logged_evaluations(runs: list[Path], source: str) -> None:
    arms = load_arms(runs)
    start, grpo, axpo = final_table(arms)
    assert (start.label, grpo.label, axpo.label) == ("Start", "GRPO", "AXPO")
    for row, method in ((grpo, "grpo"), (axpo, "axpo")):
        logged = [read_metrics(run)[-1] for run in runs if run.name.startswith(method)]
        for name in ("pass@1", "pass@4", "tool_use_rate"):
            cell = row.cells[name]
            assert cell.estimate == pytest.approx(sum(record[f"eval/{name}"] for record in logged) / 2)
            assert cell.low is not None and cell.high is not None and cell.low <= cell.estimate <= cell.high
            assert f"{100 * cell.estimate:.1f} %" in source
    assert len(start.evaluations) == 4


def test_a_single_run_has_the_interval_it_logged(runs: list[Path]) -> None:
    [start, row] = final_table(load_arms(runs[:1]))
    logged = read_metrics(runs[0])[-1]
    for name in ("pass@1", "box_hit_rate", "tool_use_any"):
        cell = row.cells[name]
        assert (cell.estimate, cell.low, cell.high) == tuple(
            logged[f"eval/{name}{end}"] for end in ("", "_low", "_high")
        )
    assert start.step == 0


def test_the_verdict_follows_from_the_numbers(runs: list[Path], source: str) -> None:
    arms = load_arms(runs)
    rows = final_table(arms)
    first, second = write_verdict(arms, rows)
    by_label = {row.label: row.cells["pass@1"].estimate for row in rows}
    gap = difference(rows, "AXPO", "GRPO", "pass@1")
    assert by_label["AXPO"] is not None and by_label["GRPO"] is not None and gap.estimate is not None
    assert gap.estimate == pytest.approx(by_label["AXPO"] - by_label["GRPO"])
    assert f"{100 * by_label['AXPO']:.1f} %" in first and f"{100 * gap.estimate:+.1f}".replace("-", "−") in first
    assert second.startswith("Rollouts that call a tool: AXPO")
    assert first in Page(source).text


def test_equal_runs_are_not_told_apart(runs: list[Path], tmp_path: Path) -> None:
    axpo = next(run for run in runs if run.name == "axpo-0")
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("metrics.jsonl", "rollouts", "images", "run.json"):
        (twin / name).symlink_to(axpo / name)
    config = (axpo / "config.toml").read_text().replace("resample_budget_frac = 0.25", "resample_budget_frac = 0.0")
    (twin / "config.toml").write_text(config)
    arms = load_arms([axpo, twin])
    verdict = write_verdict(arms, final_table(arms))[0]
    assert "do not tell them apart" in verdict
    assert verdict.count("One run of each method") == 1


def test_edges_are_means_over_the_first_and_last_steps(runs: list[Path]) -> None:
    [arm] = load_arms([run for run in runs if run.name == "axpo-1"])
    rates = [
        record["rollout/tool_use_rate"] for record in read_metrics(arm.runs[0].folder) if record["kind"] == "train"
    ]
    assert len(rates) == 8, "first and last halves, which share no step"
    assert edge_means(arm, "rollout/tool_use_rate") == pytest.approx((sum(rates[:4]) / 4, sum(rates[-4:]) / 4))
    assert edge_means(arm, "rollout/tool_use_rate", num_steps=1) == pytest.approx((rates[0], rates[-1]))


def test_curves_hold_the_logged_values_run_by_run(runs: list[Path], source: str) -> None:
    curves = Page(source).data("curves")
    arms = load_arms(runs)
    folders = [run.folder for arm in arms for run in arm.runs]
    for folder, series in zip(folders, curves["series"], strict=True):
        records = [record for record in read_metrics(folder) if record["kind"] == "train"]
        assert series["steps"] == [record["step"] for record in records]
        for key in ("reward/mean", "rollout/tool_use_rate", "train/kl", "seconds/train"):
            assert series["values"][key] == pytest.approx([record[key] for record in records], rel=1e-4)
        assert ("resample/restore_rate" in series["values"]) == folder.name.startswith("axpo")
    titles = [panel["title"] for section in curves["sections"] for panel in section["panels"]]
    assert {"Reward", "Tool use", "Restored by resampling", "KL", "Engine against trainer"} <= set(titles)
    assert "Loss" not in titles and "Entropy" not in titles


def test_a_long_run_is_averaged_in_windows_and_what_is_no_number_is_missing(tmp_path: Path) -> None:
    records = [{"kind": "train", "step": s, "reward/mean": s, "rollout/tool_use_rate": 0.5} for s in range(1, 2001)]
    records[0]["rollout/tool_use_rate"] = math.nan
    records[1]["rollout/tool_use_rate"] = "many"
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    [series] = build_curves(load_arms([tmp_path]))["series"]
    assert len(series["steps"]) == MAX_POINTS and series["steps"][:2] == [2, 4]
    assert series["values"]["reward/mean"][:2] == [1.5, 3.5]
    assert series["values"]["rollout/tool_use_rate"][:2] == [None, 0.5]


# -- definitions ------------------------------------------------------------------------------------------------------


def test_the_package_carries_the_definitions_of_the_documentation() -> None:
    texts = [(ROOT / name).read_text() for name in SOURCES]
    found = {key: text for markdown in texts for key, text in parse_definitions(markdown).items()}
    assert load_definitions() == found, "run: python -m axpo.reports.definitions"
    assert len(found) > 100 and all(found.values())


def test_every_number_of_the_page_has_a_definition(runs: list[Path]) -> None:
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js") if not path.name.startswith("uplot"))
    named = set(re.findall(r'def: "([a-z-]+)"', scripts)) | set(re.findall(r'define\("([a-z-]+)"\)', scripts))
    named |= {f"filter-{name}" for name in re.findall(r'select\("([a-z]+)"', scripts)}
    named |= set(re.findall(r'number\("[^"]+", [^\n]*?, "([a-z]+)"\)', scripts))
    assert len(named) >= 40
    assert [name for name in sorted(named) if not define(f"report/{name}")] == []
    keys = {key for panels in SECTIONS.values() for panel in panels for key in panel.keys}
    assert [key for key in sorted(keys) if not define(key)] == []
    assert [name for name in columns(final_table(load_arms(runs))) if not define(f"eval/{name}")] == []
    assert define("eval/photos/pass@4") == define("eval/pass@{n}") != ""
    assert define("tools/search/failures") == define("tools/{name}/failures") != ""
    assert define("no/such/key") == ""


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_every_rollout_of_a_shown_step_is_in_the_page(runs: list[Path], source: str) -> None:
    page = Page(source)
    index = page.data("index")
    folders = [run.folder for arm in load_arms(runs) for run in arm.runs]
    seen = 0
    for number, part in enumerate(index["parts"]):
        records = read_rollouts(rollout_files(folders[part["run"]], part["kind"])[part["step"]])
        groups = page.part(number)
        assert part["shown"] == part["groups"] == len(groups)
        shown = {rollout["id"]: rollout for group in groups for rollout in group["rollouts"]}
        assert sorted(shown) == sorted(record.rollout.id for record in records)
        seen += len(records)
    assert len(index["parts"]) == 4 * (8 + 2)
    assert len(index["rollouts"]["reward"]) == seen
    assert Page(source).text.count("Showing 8 training steps, all 160 groups of them.") == 1


def test_the_index_tells_what_the_records_tell(runs: list[Path], source: str) -> None:
    page = Page(source)
    index = page.data("index")
    folders = [run.folder for arm in load_arms(runs) for run in arm.runs]
    records = {
        (number, record.rollout.id): record
        for number, part in enumerate(index["parts"])
        for record in read_rollouts(rollout_files(folders[part["run"]], part["kind"])[part["step"]])
    }
    columns_of = index["rollouts"]
    at = 0
    recovered = 0
    for group, (part, place) in enumerate(zip(index["groups"]["part"], index["groups"]["place"], strict=True)):
        rollouts = page.part(part)[place]["rollouts"]
        mine = [records[part, rollout["id"]] for rollout in rollouts]
        flags = index["groups"]["flags"][group]
        assert bool(flags & 1) == mine[0].is_triggered
        assert bool(flags & 2) == any(record.phase == "resample" for record in mine)
        assert bool(flags & 4) == any(record.phase == "resample" and record.rollout.is_correct for record in mine)
        recovered += bool(flags & 4)
        for record in mine:
            assert columns_of["group"][at] == group and columns_of["reward"][at] == record.rollout.reward
            bits = columns_of["flags"][at]
            assert [bool(bits & 1 << bit) for bit in range(5)] == [
                record.rollout.is_correct,
                record.rollout.uses_tool,
                record.rollout.prefix is not None,
                record.rollout.stop_reason.is_truncated,
                record.role is RowRole.PREFIX,
            ]
            assert bool(columns_of["tools"][at]) == bool(record.rollout.tool_results)
            failures = {result.failure.kind.value for result in record.rollout.tool_results if result.failure}
            mask = columns_of["failures"][at]
            assert {name for bit, name in enumerate(index["failures"]) if mask & 1 << bit} == failures
            at += 1
    assert at == len(columns_of["group"]) and recovered > 0


def test_tokens_of_the_page_are_those_of_the_record(runs: list[Path], source: str) -> None:
    page = Page(source)
    index = page.data("index")
    number = next(
        part for part, flags in zip(index["groups"]["part"], index["groups"]["flags"], strict=True) if flags & 2
    )
    part = index["parts"][number]
    folder = [run.folder for arm in load_arms(runs) for run in arm.runs][part["run"]]
    records = {r.rollout.id: r for r in read_rollouts(rollout_files(folder, "train")[part["step"]])}
    num_continuations = 0
    for group in page.part(number):
        for place, rollout in enumerate(group["rollouts"]):
            record = records[rollout["id"]]
            first = record.rollout.segments[0].stop
            assert rollout["n"] == len(record.rollout.token_ids) - first
            assert [[a + first, b + first] for a, b, _ in rollout["credit"]] == [[a, b] for a, b, _ in record.credit]
            assert [v for *_, v in rollout["credit"]] == pytest.approx([v for *_, v in record.credit], abs=1e-4)
            for view, segment, text in zip(
                rollout["segs"], record.rollout.segments[1:], record.segment_texts[1:], strict=True
            ):
                assert (view["k"], view["a"] + first, view["n"]) == (segment.kind, segment.start, len(segment))
                assert view["t"] == text and sum(view["c"]) == len(text) and len(view["c"]) == len(segment)
                assert ("q" in view) == segment.kind.is_sampled
                if "q" in view:
                    logprobs = record.rollout.behavior_logprobs[segment.start : segment.stop]
                    assert [-code / 100 for code in view["q"]] == pytest.approx(logprobs, abs=0.005)
            if record.rollout.prefix is not None:
                num_continuations += 1
                assert rollout["from"] + first == record.rollout.prefix.num_tokens
                assert group["rollouts"][rollout["src"]]["id"] == record.rollout.prefix.source_id
                assert rollout["src"] < place
    assert num_continuations > 0


def test_zoom_boxes_stand_on_the_picture_they_were_asked_for(source: str) -> None:
    page = Page(source)
    pictures = page.data("pictures")
    found = [
        (group, result)
        for number, part in enumerate(page.data("index")["parts"])
        if part["kind"] == "train"
        for group in page.part(number)
        for rollout in group["rollouts"]
        for result in rollout["results"]
        if "zoom" in result
    ]
    assert {result["zoom"]["good"] for _, result in found} == {0, 1}
    for group, result in found:
        assert result["zoom"]["pic"] == group["pics"][0]
        x1, y1, x2, y2 = result["zoom"]["box"]
        a1, b1, a2, b2 = group["target"]
        assert result["zoom"]["good"] == (x1 <= a1 and y1 <= b1 and x2 >= a2 and y2 >= b2)
        for picture in (result["zoom"]["pic"], *result.get("pics", ())):
            assert pictures[picture["p"]][0].startswith("data:image/webp;base64,")


def test_every_beginning_of_the_chosen_steps_is_spread_evenly() -> None:
    assert spread([]) == [] and spread([7]) == [7] and spread([7, 9]) == [7, 9]
    for count in (3, 8, 64, 201):
        order = spread(range(count))
        assert sorted(order) == list(range(count)) and order[:2] == [0, count - 1]
        for length in range(2, count):
            taken = sorted(order[:length])
            gaps = [b - a for a, b in itertools.pairwise(taken)]
            assert max(gaps) <= 2 * min(gaps) + 2


def test_what_does_not_fit_is_left_out_and_said(runs: list[Path]) -> None:
    arms = load_arms(runs)
    loaded = [run for arm in arms for run in arm.runs]
    whole = build_browser(loaded, Thumbnails(folder=None), max_steps=None, max_bytes=None)
    few = build_browser(loaded, Thumbnails(folder=None), max_steps=3, max_bytes=None)
    assert {part.file.step for part in few.parts if part.file.kind == "train"} == {1, 4, 8}
    assert few.cut == "Showing 3 of 8 training steps, all 80 groups of them."
    total = sum(len(part.data) for part in whole.parts)
    small = build_browser(loaded, Thumbnails(folder=None), max_steps=None, max_bytes=total // 2)
    assert total / 4 < sum(len(part.data) for part in small.parts) < total * 0.75
    assert re.fullmatch(r"Showing 8 training steps and \d+ of 160 groups of them: recovered, .* first\.", small.cut)
    assert all(1 <= part.num_shown <= part.num_groups for part in small.parts)
    flags = small.index["groups"]["flags"]
    kept_recovered = sum(bool(flag & 4) for flag in flags) / len(flags)
    all_flags = whole.index["groups"]["flags"]
    assert kept_recovered > sum(bool(flag & 4) for flag in all_flags) / len(all_flags)
    by_step: dict[tuple[str, int], list[set[int]]] = {}
    for number, part in enumerate(small.parts):
        problems = {
            p
            for n, p in zip(small.index["groups"]["part"], small.index["groups"]["problem"], strict=True)
            if n == number
        }
        by_step.setdefault((part.file.kind, part.file.step), []).append(problems)
    assert all(set.intersection(*problems) for problems in by_step.values())  # every step can be compared


def test_a_page_with_all_rollouts_leaves_nothing_out(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.reports.html.MAX_STEPS", 2)
    monkeypatch.setattr("axpo.reports.html.MAX_BYTES", 0)
    write_report(runs[:1], tmp_path / "some.html")
    write_report(runs[:1], tmp_path / "all.html", rollouts="all")
    some, everything = (Page((tmp_path / f"{name}.html").read_text()) for name in ("some", "all"))
    assert "Showing 2 of 8 training steps and 4 of 16 groups of them" in some.text
    assert "Showing 8 training steps, all 40 groups of them." in everything.text


def test_the_same_steps_of_all_runs_come_together(runs: list[Path]) -> None:
    files = choose_files([load_run(run) for run in runs], max_steps=4)
    assert [(file.kind, file.step) for file in files[::4]] == [
        ("train", 1),
        ("train", 8),
        ("eval", 8),
        ("eval", 0),
        ("train", 4),
        ("train", 2),
    ]
    assert [file.run_index for file in files] == [0, 1, 2, 3] * 6


# -- hostile records --------------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every record of a rollouts file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def be_hostile(record: dict[str, Any]) -> None:
    """Markup wherever a record holds text."""
    record["answer"] = HOSTILE
    record["segment_texts"] = [HOSTILE for _ in record["segment_texts"]]
    record["token_chars"] = []
    record["metadata"] |= {"category": HOSTILE}
    record["rollout"]["final_text"] = f"<answer>{HOSTILE}</answer>"
    for result in record["rollout"]["tool_results"]:
        result["failure"] = {"kind": "timeout", "message": HOSTILE}
        result["content"] = []
        result["call"]["name"] = HOSTILE


def test_hostile_records_stay_text(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    write_run(run, num_steps=2, num_questions=2, eval_steps=(2,), question=HOSTILE)
    rewrite(rollout_files(run, "train")[1], be_hostile)
    config = (run / "config.toml").read_text().replace("models/tiny", "</style><script>alert(2)</script>")
    (run / "config.toml").write_text(config)
    info = json.loads((run / "run.json").read_text()) | {"commit": 7, "machine": HOSTILE, "versions": [HOSTILE]}
    (run / "run.json").write_text(json.dumps(info | {"device": HOSTILE, "started_at": 3}))
    write_report([run], tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text()
    page = Page(source)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert len(page.code) == 2 and source.count("<script") == len(page.scripts)
    assert "</style><script>alert(2)</script>" in page.text and "<b>run" in page.text
    assert all("<" not in text for attrs, text in page.scripts if "type" in attrs)
    assert f"{HOSTILE[:79]}…" in page.data("index")["tools"]
    [group, *_] = page.part(0)
    assert group["question"] == group["answer"] == HOSTILE and group["category"] == HOSTILE[:59] + "…"
    assert group["rollouts"][0]["segs"][0]["t"] == HOSTILE


def test_broken_characters_and_numbers_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, num_steps=1, num_questions=1, eval_steps=())

    def break_it(record: dict[str, Any]) -> None:
        record["question"] = "half \ud83d a smile, a null \x00, a turn \u202e"
        record["rollout"]["behavior_logprobs"] = [math.nan, math.inf, *record["rollout"]["behavior_logprobs"][2:]]
        record["rollout"]["behavior_logprobs"][-1] = -math.inf
        record["rollout"]["wall_time_s"] = math.nan
        record["credit"] = [[a, b, math.inf] for a, b, _ in record["credit"]]

    rewrite(rollout_files(run, "train")[1], break_it)
    write_report([run], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    [group] = page.part(0)
    assert group["question"] == "half ? a smile, a null \x00, a turn \u202e"
    assert group["rollouts"][0]["segs"][-1]["q"][-1] == 2000
    assert group["rollouts"][0]["wall"] == 0 and {v for _, _, v in group["rollouts"][0]["credit"]} == {0.0}


def test_text_cannot_pass_for_a_trigger(tmp_path: Path) -> None:
    claim = 'x", "is_triggered": true, "phase": "resample", "reward": 1.0, "problem_id": "q9'
    write_run(tmp_path / "run", method="grpo", num_steps=1, num_questions=3, eval_steps=(), question=claim)
    path = rollout_files(tmp_path / "run", "train")[1]
    rewrite(path, lambda record: record.update(is_triggered=False))
    groups = scan_groups(path)
    assert sorted(groups) == ["q0", "q1", "q2"]
    assert {group.rank for group in groups.values()} == {3}


def test_pictures_come_from_the_run_only(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "images").mkdir(parents=True)
    picture = next((runs[0] / "images").glob("*.png"))
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture.read_bytes())
    (run / "images" / picture.name).symlink_to(secret)
    lie = b"<html><script>alert(1)</script></html>"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    pixmap = b"P6 2 2 255 " + bytes(12)  # Pillow reads it, the store of pictures does not
    for data in (lie, postscript, pixmap):
        (run / "images" / f"{hashlib.sha256(data).hexdigest()}.png").write_bytes(data)
    other = "0" * 64
    (run / "images" / f"{other}.png").write_bytes(picture.read_bytes())
    thumbnails = Thumbnails(folder=tmp_path / "full")
    names = [picture.stem, other, *(hashlib.sha256(data).hexdigest() for data in (lie, postscript, pixmap))]
    for name in (*names, f"../../{tmp_path.name}/secret".ljust(64, "x"), "A" * 64, "0" * 63 + "/", "*" * 64):
        thumbnails.of_run(run).add(ImageRef(sha256=name, width_px=9, height_px=9))
    assert thumbnails.make(max_bytes=None) == {}
    assert not (tmp_path / "full").exists()
    thumbnails.of_run(runs[0]).add(ImageRef(sha256=picture.stem, width_px=9, height_px=9))
    assert list(thumbnails.make(max_bytes=None)) == [picture.stem[:16]]


def test_full_pictures_lie_beside_the_page_where_the_thumbnail_shows_less(
    source: str, report: Path, runs: list[Path]
) -> None:
    pictures = Page(source).data("pictures")
    full = {name for _, name in pictures.values() if name}
    assert full and all(re.fullmatch(r"report_images/[0-9a-f]{64}\.png", name) for name in full)
    assert {f"report_images/{path.name}" for path in (report.parent / "report_images").iterdir()} == full
    for name in full:
        data = (report.parent / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == Path(name).stem
        with Image.open(report.parent / name) as image:
            assert max(image.size) == 640
    sizes = {bool(name) for _, name in pictures.values()}
    assert sizes == {True, False}  # crops of 256 px are whole in the page


def test_thumbnails_beyond_the_bound_are_left_out_and_their_pictures_kept(runs: list[Path], tmp_path: Path) -> None:
    run = runs[0]
    names = sorted(path.stem for path in (run / "images").iterdir())
    thumbnails = Thumbnails(folder=tmp_path / "a b_images")
    for name in names:
        thumbnails.of_run(run).add(ImageRef(sha256=name, width_px=9, height_px=9))
    whole = thumbnails.make(max_bytes=None)
    size = sum(len(thumbnail) for thumbnail, _ in whole.values())
    half = thumbnails.make(max_bytes=size // 2)
    assert list(half) == list(whole) == [name[:16] for name in names]
    assert size / 4 < sum(len(thumbnail) for thumbnail, _ in half.values()) <= size / 2
    left_out = [full for thumbnail, full in half.values() if not thumbnail]
    assert left_out and all(full.startswith("a%20b_images/") for full in left_out)
    assert all((tmp_path / "a b_images" / Path(full).name).is_file() for full in left_out)


def test_a_broken_record_names_its_place(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=1, num_questions=1, eval_steps=())
    path = rollout_files(tmp_path / "run", "train")[1]
    lines = path.read_text().splitlines()

    def message(line: str) -> str:
        path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(DataError) as caught:
            write_report([tmp_path / "run"], tmp_path / "report.html")
        return str(caught.value)

    assert f'{path}:2: not a rollout record: no "problem_id"' in message('{"step": 1}')
    assert f"{path}:2: not JSON" in message(lines[1][:-5])
    assert f"{path}:2: not a rollout record: KeyError" in message(lines[1].replace('"behavior_logprobs"', '"b"'))
    assert f"{path}:2: not a rollout record: ValueError" in message(lines[1].replace('"thinking"', '"dreaming"'))
    broken = json.loads(lines[1])
    broken["token_chars"][0] += 1
    assert "token_chars add up to" in message(json.dumps(broken))
    nested = json.loads(lines[1])
    assert f"{path}:2: not JSON" in message(
        json.dumps(nested)[:-1] + ', "deep": ' + "[" * 200_000 + "]" * 200_000 + "}"
    )


# -- what is missing --------------------------------------------------------------------------------------------------


def test_records_without_lengths_of_tokens_keep_their_segments(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=1, num_questions=1, eval_steps=())
    rewrite(rollout_files(tmp_path / "run", "train")[1], lambda record: record.pop("token_chars"))
    write_report([tmp_path / "run"], tmp_path / "report.html")
    [group] = Page((tmp_path / "report.html").read_text()).part(0)
    segments = [segment for rollout in group["rollouts"] for segment in rollout["segs"]]
    assert all("c" not in segment for segment in segments)
    assert all(len(segment["q"]) == segment["n"] for segment in segments if "q" in segment)


def test_a_result_that_the_model_never_saw_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=1, num_questions=1, eval_steps=())
    path = rollout_files(tmp_path / "run", "train")[1]

    def cut(record: dict[str, Any]) -> None:
        rollout = record["rollout"]
        stop = next((s["start"] for s in rollout["segments"] if s["kind"] == "tool_result"), None)
        if stop is not None:
            kept = [s for s in rollout["segments"] if s["stop"] <= stop]
            num_chars = len(record["token_chars"]) - (len(rollout["token_ids"]) - stop)
            record["token_chars"] = record["token_chars"][:num_chars]
            record["segment_texts"] = record["segment_texts"][: len(kept)]
            rollout |= {"segments": kept, "stop_reason": "token_limit", "images": rollout["images"][:1]}
            rollout |= {key: rollout[key][:stop] for key in ("token_ids", "behavior_logprobs")}

    rewrite(path, cut)
    read_rollouts(path)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    [group] = Page((tmp_path / "report.html").read_text()).part(0)
    unseen = [r["segs"][-1] for r in group["rollouts"] if r["segs"][-1]["k"] == "unseen"]
    assert unseen and all(segment["r"] == [0] and segment["n"] == 0 for segment in unseen)
    assert len(group["pics"]) == 1


def test_parts_that_a_run_does_not_have_are_left_out(tmp_path: Path) -> None:
    def report(name: str, config: str, *records: dict[str, object]) -> Page:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.toml").write_text(config)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        write_report([folder], tmp_path / f"{name}.html")
        return Page((tmp_path / f"{name}.html").read_text())

    empty = report("empty", "[run]\nseed = 3\n")
    assert "Nothing was evaluated yet" in empty.text and "Training curves" not in empty.text
    assert not [attrs for _, attrs in empty.tags if attrs.get("id") in ("curves", "rollouts", "alarms")]
    sft = report("sft", "", *({"kind": "train", "step": s, "train/loss": 2 / s} for s in (1, 2, 3)))
    assert "SFT: loss 2 at the first step, 0.667 at the last" in sft.text and "The gap between" not in sft.text
    assert [panel["title"] for section in sft.data("curves")["sections"] for panel in section["panels"]] == ["Loss"]
    plain_eval = report(
        "plain", "", {"kind": "eval", "step": 5, "eval/pass@1": 0.4375, "eval/pass@1_low": 0.4, "eval/pass@1_high": 0.5}
    )
    assert "43.8 %" in plain_eval.text and "40.0 – 50.0" in plain_eval.text
    assert not list(tmp_path.glob("*_images"))


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(DataError, match="No run directory"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "config.toml").write_text("= broken")
    with pytest.raises(DataError, match=r"config\.toml: not readable TOML"):
        write_report([tmp_path], tmp_path / "report.html")


def test_reading_runs_loads_no_torch() -> None:
    code = "import sys, axpo.reports.html, axpo.reports.results; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
