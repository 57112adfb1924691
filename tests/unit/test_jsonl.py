"""Question files: what a good row becomes, and the one message that each kind of broken row gives."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.rewards import REWARDS
from axpo.tasks.jsonl import load_problems
from axpo.tasks.schema import ANSWER_KINDS
from axpo.types import Content, Message, Problem


def encoded(color: str, size: tuple[int, int] = (8, 6), image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format=image_format)
    return buffer.getvalue()


RED, BLUE = encoded("red"), encoded("blue", (5, 4))
DATA_URL = "data:image/png;base64," + base64.b64encode(RED).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(RED)
    (tmp_path / "pictures" / "blue.png").write_bytes(BLUE)
    return tmp_path


def load(folder: Path, *rows: object, **options: Any) -> tuple[Problem, ...]:
    path = folder / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return load_problems(path, store=ContentImageStore(), **options)


def blocks(problem: Problem) -> list[str]:
    """The last user message: its texts, and the widths of its images."""
    return [
        b.text if b.text is not None else f"{b.image.width_px}px"
        for b in problem.messages[-1].content
        if b.image or b.text
    ]


def test_a_full_row_becomes_a_problem(folder: Path) -> None:
    row = {
        "id": "clock-7",
        "question": "Which hour?",
        "images": ["pictures/red.png"],
        "answer": "B",
        "answer_kind": "choice",
        "choices": ["one", "two"],
        "tools": ["image_zoom_in"],
        "metadata": {"source": "own", "level": 3},
    }
    (problem,) = load(folder, row)
    store = ContentImageStore()
    assert problem == Problem(
        id="clock-7",
        messages=(Message(role="user", content=(Content(image=store.add_bytes(RED)), Content(text="Which hour?"))),),
        answer="B",
        answer_kind="choice",
        tools=("image_zoom_in",),
        metadata={"source": "own", "level": 3, "choices": ["one", "two"]},
    )


def test_ids_default_to_file_and_line_and_blank_lines_count(folder: Path) -> None:
    problems = load(folder, {"question": "a", "answer": 1}, "", {"question": "b", "answer": 2.5})
    assert [(p.id, p.answer, p.answer_kind) for p in problems] == [
        ("questions-1", "1", "text"),
        ("questions-3", "2.5", "text"),
    ]


def test_byte_order_mark_and_windows_line_ends_are_read(folder: Path) -> None:
    path = folder / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "\xc3\xbc"}\r\n\r\n{"question": "b", "answer": "2"}\r\n')
    assert [p.answer for p in load_problems(path, store=ContentImageStore())] == ["ü", "2"]


def test_a_list_of_answers_becomes_answer_and_aliases(folder: Path) -> None:
    (problem,) = load(folder, {"question": "a", "answer": ["New York", "NYC", 3]})
    assert (problem.answer, problem.metadata) == ("New York", {"aliases": ["NYC", "3"]})


@pytest.mark.parametrize(("answer", "letter"), [("b", "B"), ("(C)", "C"), ("green", "C"), ("C", "A")])
def test_a_choice_answer_becomes_the_letter_of_its_option(folder: Path, answer: str, letter: str) -> None:
    # the last case: an option whose text is itself a letter is taken as text
    row = {"question": "a", "answer": answer, "answer_kind": "choice", "choices": ["C", "blue", "green"]}
    if answer == "(C)":
        row["choices"] = ["red", "blue", "green"]
    assert load(folder, row)[0].answer == letter


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"question": "What is it?", "images": ["pictures/red.png", "pictures/blue.png"]},
            ["8px", "5px", "What is it?"],
        ),
        (
            {"question": "From <image> to <image>", "images": ["pictures/red.png", "pictures/blue.png"]},
            ["From ", "8px", " to ", "5px"],
        ),
        ({"question": "x", "image": {"path": "pictures/blue.png"}}, ["5px", "x"]),
        ({"question": "x", "image": DATA_URL}, ["8px", "x"]),
        ({"question": "x", "image": {"bytes": base64.b64encode(BLUE).decode(), "path": "gone.png"}}, ["5px", "x"]),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}],
                "image": "pictures/red.png",
            },
            ["x", "8px"],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}]}, ["8px"]),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "pictures/blue.png"}, {"type": "text", "text": "y"}],
                    }
                ]
            },
            ["5px", "y"],
        ),
        ({"messages": [{"role": "user", "content": "x"}], "images": ["pictures/red.png"]}, ["8px", "x"]),
    ],
)
def test_images_stand_where_they_were_put(folder: Path, fields: dict[str, Any], expected: list[str]) -> None:
    assert blocks(load(folder, fields | {"answer": "1"})[0]) == expected


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_read_whole_or_not_at_all(folder: Path, image_format: str) -> None:
    data = encoded("red", (200, 200), image_format)
    path = folder / "picture"
    path.write_bytes(data + b"appended by a camera")
    assert load(folder, GOOD | {"image": "picture"})[0].images[0].width_px == 200
    path.write_bytes(data[:-10])
    with pytest.raises(DataError, match=r"line 1, field image: (the image ends too early|not a readable image)"):
        load(folder, GOOD | {"image": "picture"})


def test_one_picture_under_many_names_is_stored_once(folder: Path) -> None:
    problems = load(
        folder,
        {"question": "a", "answer": "1", "image": "pictures/red.png"},
        {"question": "b", "answer": "1", "image": str(folder / "pictures" / "red.png")},
        {"question": "c", "answer": "1", "image": DATA_URL},
    )
    assert len({problem.images for problem in problems}) == 1


def test_the_system_prompt_stands_only_before_questions_without_one(folder: Path) -> None:
    own = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}], "answer": 1}
    problems = load(folder, {"question": "a", "answer": 1}, own, system_prompt="ours")
    assert [[(m.role, m.text) for m in p.messages] for p in problems] == [
        [("system", "ours"), ("user", "a")],
        [("system", "own"), ("user", "b")],
    ]


def test_max_rows_stops_reading_before_a_broken_row(folder: Path) -> None:
    assert len(load(folder, {"question": "a", "answer": 1}, "{broken", max_rows=1)) == 1


def test_the_kinds_of_the_schema_are_the_keys_of_the_rewards() -> None:
    assert list(REWARDS) == list(ANSWER_KINDS)


GOOD = {"question": "a", "answer": "1"}
HALF_PNG = "data:image/png;base64," + base64.b64encode(RED[:20]).decode()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "a"', r"line 2: not valid JSON \(.*\), got text .*\. Write one complete JSON object a line"),
        ("[" * 100_000, r"line 2: not valid JSON"),
        ('{"question": "a", "answer": NaN}', r"line 2: not valid JSON \(NaN is no JSON number\)"),
        ([1], r"line 2: expected a JSON object, got list \[1\]\."),
        ({"question": "a"}, r"line 2: field answer is missing\. Write the right answer"),
        ({"answer": "1"}, r"line 2: exactly one of question and messages must be given, got list \[\]"),
        (GOOD | {"messages": []}, r"exactly one of question and messages must be given"),
        (
            GOOD | {"anwser": 3},
            r"line 2: unknown field 'anwser'\. Did you mean answer\? Anything else goes into metadata",
        ),
        (GOOD | {"question": 5}, r"line 2, field question: expected text, got number 5\."),
        (GOOD | {"answer": True}, r"field answer: expected text or a number, got boolean true\."),
        (GOOD | {"answer": []}, r"field answer: no answer in the list, got list \[\]\. Write at least one"),
        (GOOD | {"answer": ["1", {}]}, r"field answer\[1\]: expected text or a number, got object \{\}"),
        (
            GOOD | {"answer_kind": "maths"},
            r"field answer_kind: unknown kind, got text \"maths\"\. Known are text, choice, math",
        ),
        (
            GOOD | {"answer_kind": "choice", "answer": "E", "choices": ["x", "y"]},
            r"field answer: expected a letter A to B or the text",
        ),
        (GOOD | {"choices": "ABCD"}, r"field choices: expected a list of texts, got text \"ABCD\""),
        (GOOD | {"choices": ["x"] * 27}, r"field choices: more than 26 options"),
        (GOOD | {"tools": "image_zoom_in"}, r"field tools: expected a list of texts"),
        (GOOD | {"metadata": [1]}, r"field metadata: expected an object, got list \[1\]"),
        (
            GOOD | {"metadata": {"choices": []}},
            r"field metadata\.choices: a reserved name, .* Write the field `choices`",
        ),
        (GOOD | {"id": 1.5}, r"field id: expected text or an integer, got number 1\.5"),
        (GOOD | {"id": "first"}, r"line 2, field id: used before, in line 1, got text \"first\"\. Ids must be unique"),
        (GOOD | {"image": "gone.png"}, r"line 2, field image: cannot read image .*gone\.png: No such file"),
        (GOOD | {"image": "questions.jsonl"}, r"line 2, field image: not a readable image"),
        (GOOD | {"image": HALF_PNG}, r"line 2, field image: not a readable image \(20 bytes\)"),
        (GOOD | {"image": "data:image/png;base64,@@"}, r"field image: not base64 .* Write data:image/png;base64"),
        (GOOD | {"image": "https://x.org/a.png"}, r"field image: a web address, .* save the image and write its path"),
        (GOOD | {"image": 7}, r"field image: expected an image, got number 7"),
        (
            GOOD | {"image": {"file": "a"}},
            r"field image: expected an image, got object .* Give one of: image, path, bytes",
        ),
        (GOOD | {"images": "pictures/red.png"}, r"field images: expected a list, got text .*use the field `image`"),
        (GOOD | {"images": [DATA_URL], "image": DATA_URL}, r"field image: both image and images are given"),
        (
            GOOD | {"question": "<image> <image>", "images": [DATA_URL]},
            r"field images: 2 places for images .*, 1 images",
        ),
        (GOOD | {"question": "see <image>"}, r"field images: 1 places for images .*, 0 images, got nothing"),
        (GOOD | {"question": "\ud800"}, r"field question: half of a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": 1},
            r"field messages: a question must end with the user, got text \"assistant\"",
        ),
    ],
)
def test_a_broken_row_is_answered_with_its_place_and_what_to_do(folder: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(folder, GOOD | {"id": "first"}, row)
    assert str(caught.value).startswith(f"{folder / 'questions.jsonl'}, line 2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"a,b", r"q\.csv: unknown file type '\.csv'\. Expected \.jsonl .* or \.parquet"),
        ("q.jsonl", b"\n \n", r"q\.jsonl: no rows\. Expected one JSON object a line"),
        ("q.jsonl", "é".encode("latin-1"), r"line 1: not UTF-8 text, .* Save the file as UTF-8"),
        ("q.parquet", b"PAR1 and nothing else", r"q\.parquet: not a complete Parquet file .* Write or copy it again"),
    ],
)
def test_a_broken_file_is_answered_with_its_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path / name, store=ContentImageStore())


def test_a_missing_file_names_the_nearest_one(folder: Path) -> None:
    load(folder, GOOD)
    with pytest.raises(DataError, match=r"question\.jsonl: no such file\. Did you mean .*questions\.jsonl\?"):
        load_problems(folder / "question.jsonl", store=ContentImageStore())
    with pytest.raises(DataError, match=r"no such file\. The folder .*nowhere does not exist either"):
        load_problems(folder / "nowhere" / "q.jsonl", store=ContentImageStore())


def test_parquet_rows_equal_jsonl_rows(folder: Path) -> None:
    rows = [
        {
            "id": "a",
            "question": "x",
            "images": [{"bytes": RED, "path": "red.png"}],
            "answer": "1",
            "metadata": {"k": 1},
        },
        {
            "id": "b",
            "question": "y",
            "images": [{"bytes": None, "path": "pictures/blue.png"}],
            "answer": "2",
            "metadata": {"l": "z"},
        },
        {"id": "c", "question": "z", "images": None, "answer": "3", "metadata": None},
    ]
    path = folder / "questions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    problems = load_problems(path, store=ContentImageStore())
    assert [(p.id, blocks(p), p.answer, p.metadata) for p in problems] == [
        ("a", ["8px", "x"], "1", {"k": 1}),  # no "l": Arrow's null fields are absent fields
        ("b", ["5px", "y"], "2", {"l": "z"}),
        ("c", ["z"], "3", {}),
    ]


def test_a_cut_or_damaged_parquet_file_is_one_error(folder: Path) -> None:
    path = folder / "questions.parquet"
    pq.write_table(pa.Table.from_pylist([{"question": f"q{n}", "answer": str(n)} for n in range(2000)]), path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4] + b"\x00" * 400 + whole[404:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=re.escape(f"{path}: not a complete Parquet file")):
            load_problems(path, store=ContentImageStore())


def test_a_broken_parquet_row_is_counted_from_one(folder: Path) -> None:
    path = folder / "questions.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD, {"question": "b", "answer": None}]), path)
    with pytest.raises(DataError, match=r"questions\.parquet, row 2: field answer is missing"):
        load_problems(path, store=ContentImageStore())
