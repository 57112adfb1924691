"""The paper's table and the page of a benchmark evaluation."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.errors import DataError
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.scorecard import BenchmarkSummary
from axpo.evaluation.summary import summarize
from axpo.images import ContentImageStore
from axpo.reports.benchmarks import BenchmarkRecords, Evaluation, write_page
from axpo.reports.dialogues import PictureShelf, choose_questions
from axpo.reports.paper_table import build_paper_table, paper_html, paper_markdown
from axpo.types import FailureKind, ImageRef
from benchmark_records import ZOOM, answered, info, lost, question, three_questions

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</pre></details><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> \" ' & \ud800"


class _Page(HTMLParser):
    """Collects tags and attributes; fails on markup that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f"{data} "

    @property
    def words(self) -> str:
        """The text with single blanks."""
        return " ".join(self.text.split()).replace(" :", ":").replace(" ,", ",")


def _summary(share: float, *, n: int = 2, asked: int = 4, **changes: Any) -> BenchmarkSummary:
    described = info(**changes)
    problems = [question(f"q{i}") for i in range(asked)]
    rollouts = [
        answered(f"q{i}", s, right=i < share * asked, calls=[(ZOOM, None)] if s == 0 else [])
        for i in range(asked)
        for s in range(n)
    ]
    return summarize(described, problems, rollouts, num_samples=n)


def _method(*shares: float) -> list[BenchmarkSummary]:
    """Two benchmarks of Reasoning, one of Search."""
    places = [("one", "Reasoning"), ("two", "Reasoning"), ("far", "Search")]
    return [_summary(share, name=name, title=name.title(), area=area) for share, (name, area) in zip(shares, places)]  # noqa: B905


# -- the table --------------------------------------------------------------------------------------------------------


def test_columns_stand_under_their_areas_with_an_average_of_each_and_of_all() -> None:
    table = build_paper_table([("ours", _method(1, 0.5, 0))])
    assert [(column.area, column.title, column.size) for column in table.columns] == [
        ("Reasoning", "One", "N = 4"),
        ("Reasoning", "Two", "N = 4"),
        ("Reasoning", "Average", "of 2"),
        ("Search", "Far", "N = 4"),
        ("All", "Average", "of 3"),
    ]
    ((_, cells),) = table.sections[0].rows
    assert [cell.interval.estimate for cell in cells] == pytest.approx([1, 1 / 2, 3 / 4, 0, 1 / 2])
    assert [section.title for section in table.sections] == [
        "Pass@1",
        "Pass@2",
        "Tool use, of rollouts",
        "Tool use, of questions",
    ]
    of_rollouts, of_questions = (section.rows[0][1][0].interval.estimate for section in table.sections[2:])
    assert (of_rollouts, of_questions) == (1 / 2, 1.0)


def test_a_method_without_a_benchmark_has_dashes_and_no_average_over_it() -> None:
    table = build_paper_table([("ours", _method(1, 0.5, 0)), ("theirs", _method(1))])
    estimates = [cell.interval.estimate for cell in table.sections[0].rows[1][1]]
    assert estimates == [1.0, None, None, None, None]
    assert "| theirs | 100.0<br><sub>51.0–100.0</sub> | – | – | – | – |" in paper_markdown(table)


def test_methods_with_different_n_share_a_k_that_both_have() -> None:
    table = build_paper_table([("many", [_summary(0.5, n=6)]), ("few", [_summary(0.5, n=3)])])
    assert [section.title for section in table.sections[:2]] == ["Pass@1", "Pass@3"]
    assert table.sections[1].rows[0][1][0].interval.estimate == 0.5


def test_what_spoils_a_number_is_a_footnote() -> None:
    full, open_ended = _summary(1, name="one", preset="full"), _summary(1, name="two", needs_judge=True)
    table = build_paper_table([("ours", [full, open_ended])])
    assert [text for _, text in table.footnotes] == [
        "preset full, not the paper's question set",
        "without the judge that it needs: a lower bound",
        "a mean over marked numbers",
    ]
    first, second, mean = (cell.marks for cell in table.sections[0].rows[0][1])
    assert (first, second, mean) == ("†", "‡", "°")
    assert [cell.marks for cell in table.sections[2].rows[0][1]] == ["†", "", "°"]  # nobody judges a tool call
    assert "† preset full" in paper_markdown(table)
    assert "<sup>†</sup>" in paper_html(table)


def test_different_question_counts_stand_beside_each_other() -> None:
    table = build_paper_table([("ours", [_summary(1, asked=4)]), ("theirs", [_summary(1, asked=2)])])
    assert table.columns[0].size == "N = 4 / 2"


def test_runs_of_one_method_make_one_row_whose_interval_knows_that_runs_differ() -> None:
    table = build_paper_table(
        [("ours", _method(1, 0.5, 0)), ("theirs", _method(1, 1, 1)), ("ours", _method(0, 0.5, 1))]
    )
    assert [label for label, _ in table.sections[0].rows] == ["ours (2 runs)", "theirs"]
    ours = table.sections[0].rows[0][1]
    assert [cell.interval.estimate for cell in ours] == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2])
    assert (ours[0].interval.low, ours[0].interval.high) == (0.0, 1.0)  # one run all right, the other all wrong
    with pytest.raises(DataError, match="its 2 runs were not asked the same questions"):
        build_paper_table([("ours", [_summary(1, asked=4)]), ("ours", [_summary(1, asked=2)])])


def test_labels_stay_text_in_both_formats() -> None:
    table = build_paper_table([("<b>a|b</b> *", [_summary(1, title="V*")])])
    assert "| &lt;b>a\\|b&lt;/b> \\* |" in paper_markdown(table)
    html = paper_html(table)
    assert "&lt;b&gt;a|b&lt;/b&gt;" in html
    assert "b" not in [tag for tag, _ in _Page(html).tags]


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ([], "no benchmark"),
        ([("ours", [])], "no benchmark"),
        ([("ours", [_summary(1), _summary(0)])], "ours: benchmark 'puzzles' is there twice"),
        ([("ours", [_summary(1, area="Cooking")])], "area 'Cooking' is none of"),
    ],
)
def test_a_table_of_nothing_or_of_something_else_is_refused(methods: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_paper_table(methods)


# -- the page ---------------------------------------------------------------------------------------------------------


def _records(
    problems: Any, rollouts: Any, *, num_samples: int = 1, tools: tuple[str, ...] = (), **changes: Any
) -> BenchmarkRecords:
    summary = summarize(info(**changes), problems, rollouts, num_samples=num_samples, tools=tools)
    return BenchmarkRecords(summary=summary, problems=tuple(problems), rollouts=tuple(rollouts))


def _write(folder: Path, *parts: BenchmarkRecords, **changes: Any) -> str:
    write_page(Evaluation(label="ours", folder=folder, benchmarks=parts), folder / "page.html", **changes)
    return (folder / "page.html").read_text(encoding="utf-8")


def _picture(folder: Path, color: str = "red") -> ImageRef:
    store = ContentImageStore(folder / "images")
    ref = store.add_image(Image.new("RGB", (900, 600), color))
    store.persist(ref)
    return ref


def test_the_page_tells_the_numbers_and_shows_every_part(tmp_path: Path) -> None:
    problems, rollouts = three_questions()
    part = _records(problems, rollouts, num_samples=4, breakdowns=("subject",), tools=(ZOOM, "python"), title="Quiz")
    text = _Page(_write(tmp_path, part)).words
    for words in (
        "Quiz: 25.0 % right at the first try (95% interval 2.0–73.8), 66.7 % of the questions solved within 4 tries.",
        "50.0 % of the rollouts call a tool. All tool-using rollouts of a question are wrong in 66.7 %",
        "Read the 5 alarms below",
        "By subject",
        "algebra 2 25.0 %",
        "Worst case: all of a group right 12.5 %",
        "N = 3 questions × n = 4 samples · 2 lost",
        "malformed call 1, unknown tool 1",
        "Verdicts by rule letter 4",
        "Pixels that reached the model",
        "Lost: the server went away",
    ):
        assert words in text


def test_a_dialogue_is_told_in_its_order_with_gold_and_rule(tmp_path: Path) -> None:
    problem = question("q", text="Which number?")
    rollout = answered("q", 0, calls=[("python", FailureKind.TIMEOUT)], rule="number", text="It is 41.", thinking="Hm.")
    text = _Page(_write(tmp_path, _records([problem], [rollout]))).words
    story = (
        "Which number? Right answer: 42",
        "thinks · 3 characters Hm.",
        "calls python n: 0",
        "gets back timeout: Error: timeout",
        "answers It is 41.",
        "Judged wrong by rule number: 42 against 42",
    )
    assert [text.index(part) for part in story] == sorted(text.index(part) for part in story)


def test_nothing_that_a_model_wrote_becomes_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    problem = question("q", text=HOSTILE, categories={"subject": HOSTILE})
    rollout = answered("q", 0, text=HOSTILE, thinking=HOSTILE, calls=[(HOSTILE, None)], rule=HOSTILE)
    part = _records([problem], [rollout], breakdowns=("subject",), title=HOSTILE, tools=(HOSTILE,))
    html = _write(tmp_path, part)
    page = _Page(html)
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") >= 6
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes), tag
        assert tag != "a" or (attributes["href"] or "").startswith("#")
    assert re.findall(r"url\((?!data:image/webp;base64,)", html) == []
    policy = next(a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")
    assert not any("style" in attributes for _, attributes in page.tags), "an inline style, which the policy refuses"


def test_pictures_are_thumbnails_and_a_missing_one_is_said(tmp_path: Path) -> None:
    seen, crop = _picture(tmp_path), _picture(tmp_path, "blue")
    gone = ImageRef(sha256="0" * 64, width_px=10, height_px=10)
    problems = [question("a", images=[seen]), question("b", images=[gone])]
    rollouts = [answered("a", 0, calls=[(ZOOM, None)], crop=crop), answered("b", 0)]
    html = _write(tmp_path, _records(problems, rollouts))
    assert html.count("data:image/webp;base64,") == 2
    assert re.search(
        rf'class="picture p-{seen.sha256[:16]} s\d+" role="img" aria-label="picture of the question"', html
    )
    assert re.search(rf'class="picture p-{crop.sha256[:16]} s\d+" role="img" aria-label="what the tool returned"', html)
    assert html.count("picture not shown") == 1
    assert "1 pictures are left out" in html


def test_an_image_comes_from_the_run_under_its_own_hash_and_upright(tmp_path: Path) -> None:
    """A link out of the folder or other bytes under the name of an image are not shown; EXIF turns are applied."""
    outside, run = tmp_path / "outside", tmp_path / "run"
    real = _picture(outside)
    (run / "images").mkdir(parents=True)
    (run / "images" / f"{real.sha256}.png").symlink_to(next((outside / "images").iterdir()))
    fake = ImageRef(sha256="a" * 64, width_px=9, height_px=9)
    (run / "images" / f"{fake.sha256}.png").write_bytes(next((outside / "images").iterdir()).read_bytes())
    shelf = PictureShelf(folder=run, max_bytes=10**6)
    assert [shelf.view(ref).css_class for ref in (real, fake)] == [None, None]

    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: width and height are exchanged
    Image.new("RGB", (60, 20), "red").save(turned, format="JPEG", exif=exif)
    sha256 = hashlib.sha256(turned.getvalue()).hexdigest()
    (run / "images" / f"{sha256}.jpg").write_bytes(turned.getvalue())
    name = shelf.view(ImageRef(sha256=sha256, width_px=20, height_px=60)).css_class
    data = base64.b64decode(shelf.thumbnails[name or ""].partition(",")[2])
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.size == (20, 60)


def test_a_shelf_takes_pictures_until_it_is_full(tmp_path: Path) -> None:
    refs = [_picture(tmp_path, color) for color in ("red", "green", "blue")]
    size = PictureShelf(folder=tmp_path, max_bytes=10**6)
    size.view(refs[0])
    shelf = PictureShelf(folder=tmp_path, max_bytes=size.num_bytes + 1)
    views = [shelf.view(ref) for ref in (*refs, refs[0])]
    assert [view.css_class is not None for view in views] == [True, True, False, True]  # one over, then no more
    assert shelf.num_left_out == 1


def test_the_page_stays_below_15_mb_whatever_was_written(tmp_path: Path) -> None:
    wall = '"' * 100_000
    calls = [(ZOOM, None)] * 8
    problems = [question(f"q{i}", text=wall) for i in range(80)]
    rollouts = [answered(f"q{i}", s, text=wall, thinking=wall, calls=calls) for i in range(80) for s in range(8)]
    parts = [_records(problems, rollouts, num_samples=8, name=name) for name in ("one", "two")]
    size = len(_write(tmp_path, *parts, max_questions=80).encode())
    assert 2_000_000 < size < 6_000_000  # 15 MB less what pictures may take


def _chosen(make: Callable[[int], list[JudgedRollout]], count: int, max_questions: int) -> list[tuple[str, str]]:
    rollouts = [rollout for i in range(count) for rollout in make(i)]
    problems = [question(f"q{i}") for i in range(count)]
    return [
        (kind, problem.id) for kind, problem, _ in choose_questions(problems, rollouts, max_questions=max_questions)
    ]


def _mixed(i: int) -> list[JudgedRollout]:
    """In turn: right, all wrong without a tool, some wrong, all wrong with a tool."""
    use: list[Any] = [(ZOOM, None)] if i % 4 == 3 else []
    return [answered(f"q{i}", s, right=i % 4 == 0 or (i % 4 == 2 and s == 0), calls=use) for s in range(2)]


def test_questions_stand_in_the_order_of_interest() -> None:
    assert _chosen(_mixed, 4, 40) == [
        ("tool users all wrong", "q3"),
        ("all wrong", "q1"),
        ("some wrong", "q2"),
        ("right", "q0"),
    ]


def test_each_kind_has_its_place_and_leaves_what_it_does_not_need() -> None:
    kinds = [kind for kind, _ in _chosen(_mixed, 100, 10)]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "tool users all wrong": 4,
        "all wrong": 2,
        "some wrong": 2,
        "right": 2,
    }
    only_right = _chosen(lambda i: [answered(f"q{i}", 0, right=True)], 20, 10)
    assert [kind for kind, _ in only_right] == ["right"] * 10


def test_a_page_of_losses_or_of_nothing_sampled_is_still_a_page(tmp_path: Path) -> None:
    text = _Page(_write(tmp_path, _records([question("q")], [lost("q", 0)]))).text
    assert "the server went away" in text
    text = _Page(_write(tmp_path, _records([question("q")], []))).text
    assert "Dialogues" not in text
    assert "100.0 % of the rollouts were lost, 1 of them were never sampled" in text


def test_a_page_without_a_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="page of ours: there is no benchmark"):
        _write(tmp_path)


def test_rotations_and_other_methods_stand_on_the_page(tmp_path: Path) -> None:
    problems = [
        question(f"{base}-{r}", cluster=base, categories={"rotation": str(r), "category": kind})
        for base, kind in (("a", "single"), ("b", "cross"))
        for r in range(2)
    ]
    part = _records(problems, [answered(problem.id, 0, right=True) for problem in problems])
    text = _Page(_write(tmp_path, part, others=[("theirs", [part.summary])])).words
    assert "Pass@1 by rotation N cross single all 0 2 100.0 %" in text
    assert "theirs" in text
