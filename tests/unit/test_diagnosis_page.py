"""The page of a diagnosis: its numbers are the record's, each says what it is, and no text of a dump becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.diagnose import run_diagnose
from axpo.diagnostics.diagnosis import Diagnosis, PartDiagnosis, diagnose
from axpo.diagnostics.gap_text import verdict
from axpo.errors import ConfigError
from axpo.measures.rates import RATES
from axpo.measures.sums import Rate
from axpo.reports import diagnosis as pages
from axpo.reports import diagnosis_views as views
from axpo.reports.definitions import define
from axpo.reports.diagnosis import build_diagnosis_page, write_diagnosis
from axpo.reports.diagnosis_views import AFTER_RESAMPLING, bars, cell, percent_text

HOSTILE = "</p></script><script>alert(1)</script><!--<img src=x onerror=alert(1)>{{ 7 * 7 }}"
VOID = ("meta", "link", "br", "wbr", "rect", "path", "img")


class Page(HTMLParser):
    """Tags with attributes, visible text, text by the element around it, scripts, style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, list[tuple[str, dict[str, str]]]]] = []
        self.code: list[tuple[dict[str, str], str]] = []
        self.styles: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append((tag, values))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "script":
            self.code.append((self.open[-1][1], data))
        elif self.open and self.open[-1][0] == "style":
            self.styles.append(data)
        elif data.strip():
            self.texts.append((data, list(self.open)))

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.texts)

    def data(self, name: str) -> Any:
        return json.loads("".join(text for attrs, text in self.code if attrs.get("id") == f"data-{name}"))

    def rows(self) -> list[str]:
        """The text of each row of each table, words apart."""
        found: list[list[str]] = []
        before: dict[str, str] | None = None
        for text, around in self.texts:
            row = next((attrs for tag, attrs in around if tag == "tr"), None)
            if row is None:
                continue
            if row is not before:
                found.append([])
            before = row
            found[-1].append(text.strip())
        return [" | ".join(texts) for texts in found]


def rows_of(num_questions: int, *, tool: str = "zoom") -> list[dict[str, Any]]:
    """Four tries a question: two with a tool, right on every fourth question; two without, wrong on every fourth."""
    return [
        {
            "question": f"q{index}",
            "step": index % 5,
            "reward": reward,
            "calls": [{"tool": tool, "failure": "timeout" if index % 8 == 3 else None}] * calls,
            "num_tokens": 10 + index,
            "num_turns": 1 + calls,
            "truncated": index % 10 == 0,
        }
        for index in range(num_questions)
        for calls, reward in ((1, float(index % 4 == 0)), (1, 0.0), (0, float(index % 4 != 1)), (0, 0.0))
    ]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    """Two dumps, one of them without steps and rewards; a malformed row."""
    folder = tmp_path_factory.mktemp("dumps")
    write(folder / "gap.jsonl", rows_of(80))
    bare = [{key: value for key, value in row.items() if key in ("question", "calls")} for row in rows_of(6)]
    write(folder / "bare.jsonl", [{**row, "reward": None} for row in bare])
    with (folder / "gap.jsonl").open("a") as file:
        file.write('{"question": 1, <b>\n')
    return diagnose([folder], format="minimal")


@pytest.fixture(scope="module")
def page(record: Diagnosis) -> Page:
    return Page(build_diagnosis_page(record))


def gap_of(record: Diagnosis) -> PartDiagnosis:
    return next(part for part in record.parts if part.steps)


# -- the page as a file -----------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_allows_only_its_own_scripts(page: Page) -> None:
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "style", "action"})
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "base", "form"}
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if "href" in attrs)
    assert not re.findall(r"url\(|@import", "".join(page.styles))
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def hashes(texts: Sequence[str]) -> str:
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)

    scripts = [text for attrs, text in page.code if "type" not in attrs]
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    assert rules["script-src"] == hashes(scripts) and len(scripts) == 2
    assert rules["style-src"] == hashes(["".join(page.styles)])


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    rows = rows_of(12, tool=HOSTILE)
    for row in rows:
        row["question"] = f"{HOSTILE}{row['question']}"
    write(tmp_path / "<script>alert(1)<x>.jsonl", rows)
    with (tmp_path / "<script>alert(1)<x>.jsonl").open("ab") as file:
        file.write(b'{"' + HOSTILE.encode() + b'": \xff\n')
    source = build_diagnosis_page(diagnose([tmp_path]))
    page = Page(source)
    assert "<script>alert" not in source and "<img" not in source
    assert "<script>alert(1)<x>.jsonl" in page.text
    assert any(text.strip().startswith(HOSTILE[:30]) for text, around in page.texts if around[-1][0] == "code")
    assert len([attrs for tag, attrs in page.tags if tag == "script" and "type" not in attrs]) == 2
    assert "<" not in "".join(text for attrs, text in page.code if "type" in attrs)
    assert page.data("page")["arms"][0]["label"] == "<script>alert(1)<x>.jsonl"


def test_what_json_calls_text_may_hold_half_a_character(tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text("".join(json.dumps(row).replace("zoom", "zo\\ud800om") + "\n" for row in rows_of(8)))
    write_diagnosis(diagnose([path]), tmp_path / "deep" / "page.html")
    assert "zo?om" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_is_said(record: Diagnosis, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--html .*page\.html: cannot be written"):
        write_diagnosis(record, tmp_path / "file" / "page.html")


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = write(tmp_path / "dump.jsonl", rows_of(8))
    assert run_diagnose([dump], html_path=tmp_path / "page.html", write_html=write_diagnosis) == 0
    assert "thinking" in (tmp_path / "page.html").read_text() and capsys.readouterr().out


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_every_number_of_the_record_is_on_the_page(record: Diagnosis, page: Page) -> None:
    part = gap_of(record)
    rows = page.rows()
    for name, rate in part.total.rates.items():
        shown = [row for row in rows if row.startswith(f"{RATES[name].title} | ")]
        if rate.estimate is None or name in AFTER_RESAMPLING:
            assert not shown, name
            continue
        show = percent_text if RATES[name].is_share else views.number_text
        wanted = f"{RATES[name].title} | {show(rate.estimate)} | {show(rate.low)} to {show(rate.high)} | n = "
        assert any(row.startswith(wanted) for row in shown), (wanted, shown)
    gap = part.total.gap
    assert gap.estimate is not None and gap.estimate > 0
    assert any(f"+{percent_text(gap.estimate)} | {percent_text(gap.low)} to" in row for row in rows)
    assert verdict(part).replace(" %", "\u00a0%") in page.text
    assert f"{part.recovery.expected_recovered:,.1f}" in page.text
    for assumption in part.recovery.assumptions:
        assert assumption in page.text


def test_reasons_failures_turns_and_steps_are_counted(record: Diagnosis, page: Page) -> None:
    part, rows = gap_of(record), page.rows()
    counts = part.total.counts
    others = counts["groups"] - counts["no_signal_all_wrong"]
    assert counts["no_signal_all_wrong"] == 20
    assert f"all wrong | 25.0 % | {counts['no_signal_all_wrong']}" in rows
    assert f"others | 75.0 % | {others}" in rows
    assert "timeout | 100.0 % | 20" in rows
    assert {"1 | 50.0 % | 160", "2 | 50.0 % | 160"} <= set(rows)
    step = part.steps[2].numbers
    rate = step.rates["all_wrong_tool"]
    assert rate.estimate is not None and rate.low is not None and rate.high is not None
    [line] = [row for row in rows if row.startswith("2 | 64 | ")]
    assert f"{100 * rate.estimate:.1f} % ({100 * rate.low:.0f}–{100 * rate.high:.0f})" in line


def test_what_is_missing_or_malformed_is_said(record: Diagnosis, page: Page) -> None:
    for part in record.parts:
        for missing in part.missing:
            assert missing.needed.replace("`", "") in page.text and missing.why[1:] in page.text
    assert "no rollout has a reward" in page.text.lower()
    assert "1 malformed row left out" in page.text
    assert record.num_malformed == 1 and record.malformed[0] in page.text
    clean = Page(build_diagnosis_page(Diagnosis(**{**_fields(record), "num_malformed": 0, "malformed": ()})))
    assert "malformed" not in clean.text and "Every row of every file was read." in clean.text


def _fields(record: Diagnosis) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Diagnosis.__dataclass_fields__}


def test_every_number_has_a_definition(page: Page) -> None:
    is_number = re.compile(r"[-+−]?\d[\d,.]*( ?%)?( to .*)?|n = .*|[\d,]+ groups?|–")
    checked = 0
    for text, around in page.texts:
        inside = [tag for tag, _ in around]
        if not is_number.fullmatch(text.strip()) or "th" in inside or "h1" in inside or "summary" in inside:
            continue
        assert any(attrs.get("title") for _, attrs in around), (text, inside)
        checked += 1
    assert checked > 150
    assert not [attrs for _, attrs in page.tags if "data-def" in attrs and not attrs.get("title")]
    assert not [attrs for _, attrs in page.tags if attrs.get("title") == ""]


def test_definitions_are_those_of_the_record_and_the_guide(record: Diagnosis, page: Page) -> None:
    titles = {attrs["title"] for _, attrs in page.tags if "title" in attrs}
    for name, rule in record.definitions.items():
        rate = gap_of(record).total.rates[name]
        if rate.estimate is None or name in AFTER_RESAMPLING:
            continue
        [title] = {title for title in titles if title.lower().startswith(f"{rule.title.lower()}.")}
        assert not rule.logged_as or title.endswith(f"A run logs it as {rule.logged_as}.")
        assert not rule.paper or f"{rule.paper} of the paper." in title
    assert define("diagnose/all_wrong_tool").startswith("questions without a right answer")
    assert any(define("diagnose/all_wrong_tool") in title for title in titles)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_bar_stands_where_its_number_is() -> None:
    share = Rate(estimate=0.5, low=0.25, high=0.75, numerator=2, denominator=4, num_groups=4)
    shown = cell("x", share, "", is_share=True)
    assert (shown.place, shown.start, shown.width, shown.of) == (49.0, 25.0, 50.0, "n = 4 groups")
    lower = Rate(estimate=-0.5, low=-1.2, high=0.0, numerator=-0.5, denominator=1, num_groups=4)
    shown = cell("x", lower, "", is_share=True, is_signed=True)
    assert (shown.text, shown.place, shown.start, shown.width, shown.zero) == ("−50.0 %", 24.5, 0.0, 50.0, 50.0)
    alone = Rate(estimate=1.0, low=None, high=None, numerator=1, denominator=1, num_groups=1)
    shown = cell("x", alone, "", is_share=True)
    assert (shown.interval, shown.width, shown.of) == ("no interval", 0.0, "n = 1 group")
    nothing = Rate(estimate=None, low=None, high=None, numerator=0, denominator=0, num_groups=0)
    assert (cell("x", nothing, "", is_share=True).text, cell("x", nothing, "", is_share=True).place) == ("–", None)


def test_a_long_histogram_ends_in_one_bar() -> None:
    found = bars({str(value): 1 for value in range(100)}, "")
    assert [bar.label for bar in found] == [*map(str, range(14)), "more"]
    assert found[-1].count == 86 and sum(bar.share for bar in found) == pytest.approx(1)


def test_curves_are_the_rates_of_the_steps(record: Diagnosis, page: Page) -> None:
    part = gap_of(record)
    curves = page.data("curves")
    [series] = curves["series"]
    assert series["steps"] == [0, 1, 2, 3, 4]
    for name in ("tool_use_rate", "all_wrong_tool", "all_wrong_no_tool", "reward_mean", "response_length"):
        expected = [step.numbers.rates[name].estimate for step in part.steps]
        assert series["values"][f"step/{name}"] == pytest.approx(expected, rel=1e-4)
    keys = {key["key"] for section in curves["sections"] for panel in section["panels"] for key in panel["keys"]}
    assert keys <= set(series["values"]) and "step/all_wrong_tool_post" not in keys
    assert all(key["def"] for section in curves["sections"] for panel in section["panels"] for key in panel["keys"])


def test_steps_of_a_long_dump_are_pooled(record: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MAX_POINTS", 2)
    part = gap_of(record)
    curves = views.step_curves([part], lambda name: name)
    [series] = curves["series"]
    assert series["steps"] == [2, 4]
    rates = [step.numbers.rates["accuracy_tool"] for step in part.steps[:3]]
    pooled = sum(rate.numerator for rate in rates) / sum(rate.denominator for rate in rates)
    assert series["values"]["step/accuracy_tool"][0] == pytest.approx(pooled, rel=1e-4)


def test_many_dumps_are_cut_and_it_is_said(record: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_DUMPS", 2)
    monkeypatch.setattr(pages, "MAX_ROWS", 3)
    monkeypatch.setattr(pages, "MAX_CURVES", 1)
    part = gap_of(record)
    page = Page(build_diagnosis_page(Diagnosis(**{**_fields(record), "parts": (part,) * 5})))
    assert [attrs["data-dump"] for _, attrs in page.tags if "data-dump" in attrs] == ["0", "1"]
    assert "2 more dumps are not in this page" in page.text
    assert "4 more are not" in page.text
    assert page.text.count(verdict(part).replace(" %", "\u00a0%")) == 2 + 2 + 1  # overview, details, further


def test_names_lose_what_they_share() -> None:
    assert pages._names([_named("a/b/x.jsonl"), _named("a/c/x.jsonl")]) == ["b/x.jsonl", "c/x.jsonl"]
    assert pages._names([_named("a/b/x.jsonl")]) == ["x.jsonl"]
    assert pages._names([_named("a"), _named("a/b")]) == ["a", "a/b"]
    assert pages._labels(["b/x.jsonl", "c/x.jsonl"]) == ["b", "c"]
    assert pages._labels(["x.jsonl"]) == ["x.jsonl"]


def _named(name: str) -> Any:
    class Part:
        pass

    part = Part()
    part.name = name
    return part
