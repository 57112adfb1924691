"""Published containers: what is read of them, when, and the one message that each kind of broken file gives."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import ImageFile

from axpo.benchmarks import hub
from axpo.benchmarks.containers import Record, Table, read_list
from axpo.benchmarks.formats import FORMATS
from axpo.benchmarks.layouts import missing_files
from axpo.benchmarks.loaders import hrbench
from axpo.benchmarks.pictures import PictureShelf
from axpo.errors import ConfigError, DataError
from axpo.images import ContentImageStore
from axpo.tasks.fields import Place
from benchmark_files import (
    LARGE_SIZE,
    as_base64,
    as_struct,
    hrbench_rows,
    large_picture,
    picture,
    write_hrbench,
    write_json,
    write_jsonl,
    write_parquet,
    write_saved_to_disk,
    write_tsv,
)

ROWS: list[dict[str, Any]] = [{"id": str(i), "text": f"line {i}\twith\na break", "image": "AAAA" * i} for i in range(9)]


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_saved_to_disk(path.parent, rows, split="test") / "data-00000-of-00001.arrow"


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "tsv": write_tsv,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


def record(**fields: object) -> Record:
    place = Place(path=Path("rows.jsonl"), row="line 1", default_id="rows-1")
    return Record(place=place, fields=dict(fields), file_index=0, position=0)


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_container_gives_rows_first_and_the_pictures_of_kept_rows_later(tmp_path: Path, suffix: str) -> None:
    paths = [WRITERS[suffix](tmp_path / name / f"rows.{suffix}", ROWS) for name in ("a", "b")]
    table = Table(paths, required=("id", "text", "image"), pictures=("image",))
    rows = list(table.rows())
    assert [row.text("id") for row in rows] == [str(i) for i in range(9)] * 2
    assert rows[1].fields["text"] == "line 1\twith\na break"
    assert not any("image" in row.fields for row in rows)
    kept = [rows[2], rows[7], rows[10]]
    full = list(table.with_pictures(kept))
    assert [(row.text("id"), row.fields["image"], row.file_index) for row in full] == [
        ("2", "AAAA" * 2, 0),
        ("7", "AAAA" * 7, 0),
        ("1", "AAAA", 1),
    ]
    assert len(set(table.digests("image"))) == 9


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_columns_are_named_with_the_expected_and_the_found_ones(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"rows.{suffix}", ROWS)
    message = "expected columns id, question, image; found id, text, image; missing question"
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        Table([path], required=("id", "question", "image"))


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_that_is_cut_off_gives_one_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"rows.{suffix}", ROWS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=re.escape(str(path))):
        table = Table([path], required=("id", "text", "image"))
        list(table.rows())


def test_parquet_that_is_broken_in_the_middle_gives_one_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196  # the first pages; the footer stays
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="not a complete Parquet file"):
        list(Table([path], required=("id", "text")).rows())


def test_json_rows_without_a_field_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "text": "a"}, {"id": 2}])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: field text is missing"):
        list(Table([path], required=("id", "text")).rows())


@pytest.mark.parametrize(("content", "message"), [("[1]", "expected a JSON object"), ("3", "expected a JSON array")])
def test_json_of_another_shape_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Table([path], required=("id",))


def test_an_empty_file_says_that_it_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("")
    with pytest.raises(DataError, match="no rows"):
        Table([tmp_path / "rows.tsv"], required=("id",))


def test_a_tsv_cell_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    before = csv.field_size_limit(131_072)
    try:
        path = write_tsv(tmp_path / "rows.tsv", [{"id": "1", "image": "A" * 1_000_000}])
        (row,) = Table([path], required=("id", "image")).rows()
        assert len(row.text("image")) == 1_000_000
    finally:
        csv.field_size_limit(before)


def test_parquet_reads_neither_other_columns_nor_row_groups_without_a_kept_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    read: list[tuple[list[int], list[str]]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, **options: Any) -> Any:
        read.append((options["row_groups"], options["columns"]))
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    path = write_parquet(tmp_path / "rows.parquet", ROWS, row_group_size=3)
    table = Table([path], required=("id", "image"), pictures=("image",))
    rows = list(table.rows())
    assert read == [([0], ["id"]), ([1], ["id"]), ([2], ["id"])]
    read.clear()
    list(table.with_pictures([rows[1], rows[8]]))
    assert read == [([0], ["image"]), ([2], ["image"])]


def test_every_format_reads_the_rows_it_is_asked_for_and_none_when_asked_for_none(tmp_path: Path) -> None:
    for suffix, writer in WRITERS.items():
        path = writer(tmp_path / suffix / f"rows.{suffix}", ROWS)
        rows = FORMATS[path.suffix].rows(path, columns=["id"], positions=[3, 4])
        assert [(position, row) for position, _, row in rows] == [(3, {"id": "3"}), (4, {"id": "4"})]
        assert list(FORMATS[path.suffix].rows(path, positions=[])) == []


def test_fields_are_read_as_texts_numbers_and_lists() -> None:
    row = record(
        a=" x ", n=3, nan=float("nan"), none=None, empty="", json='["a", "b"]', python="['a', \"b'\"]", one="a"
    )
    assert (row.text("a"), row.text("n"), row.integer("n")) == ("x", "3", 3)
    assert [row.maybe_text(name) for name in ("nan", "none", "empty", "absent")] == [None] * 4
    assert row.texts("json") == ("a", "b") and row.texts("python") == ("a", "b'") and row.texts("one") == ("a",)
    gaps = record(list=["a", None, " ", "b"])
    assert gaps.texts("list") == ("a", "b") and gaps.all_texts("list") == ("a", "", "", "b")
    assert row.texts("none") == row.texts("absent") == row.texts("empty") == row.texts("nan") == ()


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        (["x"], Record.text, 'field f: expected a text, got list ["x"]'),
        (True, Record.text, "field f: expected a text, got boolean true"),
        (None, Record.text, "field f: expected a text, got nothing"),
        ("many", Record.integer, 'field f: expected a whole number, got text "many"'),
        ([b"x"], Record.texts, "field f: expected texts"),
        ("\ud800", Record.text, "half of a surrogate pair"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(value: object, read: Callable[..., object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read(record(f=value), "f")


def test_a_list_as_text_is_read_without_evaluating_anything() -> None:
    for text in (
        "[__import__('os').getcwd()]",
        "[" * 100_000,
        "['a'" * 10,
        "['" + "a" * 30_000 + "']",
        "[1, 2)",
        "(1, 2)",
    ):
        assert read_list(text) == text


def test_pictures_come_as_base64_data_urls_bytes_and_structs(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(picture())
    place = Place(path=tmp_path / "rows.parquet", row="row 1", default_id="x")
    shelf = PictureShelf(ContentImageStore())
    text = as_base64(picture())
    cells: list[object] = [
        text,
        f"data:image/png;base64,{text}",
        picture(),
        as_struct(picture(), "elsewhere.png"),
        as_struct(None, "red.png"),
    ]
    assert len({shelf.add_cell(cell, place) for cell in cells}) == 1
    assert [shelf.maybe_add_cell(cell, place) for cell in (None, "", float("nan"), as_struct(None))] == [None] * 4


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("no base64!", "expected a picture in base64"),
        (as_base64(b"no picture"), "not a readable image"),
        (as_base64(picture())[:40], "not a readable image"),
        (None, "expected a picture, got nothing"),
        (3, "expected a picture, got number 3"),
        ({"bytes": None, "path": "gone.png"}, r"no such picture.*Looked for .*gone\.png"),
    ],
)
def test_what_is_no_picture_is_named_with_its_place(tmp_path: Path, cell: object, message: str) -> None:
    place = Place(path=tmp_path / "rows.tsv", row="row 7", default_id="x").at("image")
    with pytest.raises(DataError, match=rf"rows\.tsv, row 7, field image: {message}"):
        PictureShelf(ContentImageStore()).add_cell(cell, place)


@pytest.mark.parametrize("container", ["parquet", "tsv"])
def test_an_8k_picture_of_four_rows_is_decoded_once_stored_once_and_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    data = large_picture()
    rows = [row for row in hrbench_rows(pictures=(data, picture("blue"))) if row["category"] == "cross"]
    folder = write_hrbench(tmp_path / "files", resolution="8k", rows=rows, container=container)

    loaded: list[object] = []
    load = ImageFile.ImageFile.load

    def spy_on_load(image: Any) -> Any:
        loaded.append(image)
        return load(image)

    decoded: list[str] = []
    decode = base64.b64decode

    def spy(text: str, **options: Any) -> bytes:
        decoded.append(text[:10])
        return decode(text, **options)

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy_on_load)
    monkeypatch.setattr(base64, "b64decode", spy)
    store = ContentImageStore(tmp_path / "store")
    problems = hrbench.load_8k(folder, preset="full", store=store, limit=None)
    assert len(problems) == 4 and len(decoded) == len({id(image) for image in loaded}) == 1
    assert {(image.width_px, image.height_px) for problem in problems for image in problem.images} == {LARGE_SIZE}
    assert [path.read_bytes() for path in (tmp_path / "store").iterdir()] == [data]
    assert not store._bytes


def test_a_missing_layout_says_what_was_looked_for_and_what_lies_there(tmp_path: Path) -> None:
    assert "found no such folder" in str(missing_files(tmp_path / "x", "rows", ("a.jsonl",)))
    assert "found an empty folder" in str(missing_files(tmp_path, "rows", ("a.jsonl",)))
    (tmp_path / "images").mkdir()
    (tmp_path / "b.jsonl").touch()
    message = str(missing_files(tmp_path, "rows", ("a.jsonl", "a.tsv")))
    assert "no rows. Looked for a.jsonl, a.tsv; found b.jsonl, images/." in message


def test_a_folder_is_its_own_location_and_nothing_is_fetched(tmp_path: Path) -> None:
    assert hub.resolve(tmp_path, "vstar") == hub.Location(folder=tmp_path)


def test_a_hub_id_is_fetched_at_its_revision_and_its_commit_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(tmp_path / "snapshots" / "0123abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    location = hub.resolve("craigwu/vstar_bench@d9ae62c", "vstar")
    assert (location.hub_id, location.commit, location.folder.name) == ("craigwu/vstar_bench", "0123abc", "0123abc")
    assert asked[0][0] == "craigwu/vstar_bench"
    assert asked[0][1]["revision"] == "d9ae62c" and asked[0][1]["repo_type"] == "dataset"
    assert "test_questions.jsonl" in asked[0][1]["allow_patterns"]


def test_without_a_network_the_error_names_the_id_and_how_to_put_files_by_hand() -> None:
    with pytest.raises(ConfigError, match=r"no folder nobody/nothing@v1, .*hf download .*nobody/nothing .*give that"):
        hub.resolve("nobody/nothing@v1", "mmsearch")


@pytest.mark.parametrize("source", ["no-such-folder", "a/b/c", ""])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder, or a hub id"):
        hub.resolve(source or tmp_path / "x" / "y", "vstar")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder, or a hub id"):
        hub.resolve(tmp_path / "file", "vstar")


def test_memory_of_arrow_is_given_back_after_a_parquet_of_pictures_was_read(tmp_path: Path) -> None:
    rows = [{"id": str(i), "image": bytes([i]) * 500_000} for i in range(40)]
    path = write_parquet(tmp_path / "rows.parquet", rows, row_group_size=40)
    del rows
    table = Table([path], required=("id", "image"), pictures=("image",))
    before = pa.total_allocated_bytes()
    assert sum(len(row.fields["image"]) for row in table.with_pictures(table.rows())) == 40 * 500_000
    assert pa.total_allocated_bytes() - before < 1_000_000
