"""The local index: built, reopened, ranked, and asked hostile things; and the search tool on top of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.cli.main import main
from axpo.errors import ConfigError, DataError, ToolError
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.search import LocalIndex, SearchTool, build_index, index_command
from axpo.types import ToolCall

ROWS: list[dict[str, Any]] = [
    {"title": "Otter", "text": "Otters swim in rivers.", "url": "https://a.org/otter", "id": "otter"},
    {"title": "Heron", "text": "Herons wade.\n\n\n\nThey eat an otter's fish. Café."},
    {"title": "", "text": "A river is long and rivers are many: river, river.", "id": 7},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    build_index(write_rows(folder / "rows.jsonl", ROWS), folder / "index")
    return folder / "index"


def urls(index: LocalIndex, query: str, limit: int = 10) -> list[str]:
    return [document.url for document, _ in index.search(query, limit)]


def run(tool: Any, **arguments: Any) -> str:
    context = ToolContext(rollout_id="r", images=[], store=ContentImageStore())
    (block,) = asyncio.run(tool.run(ToolCall(id="c", name="x", arguments=arguments), context))
    return str(block.text)


def test_titles_weigh_more_and_words_are_stemmed(index_folder: Path) -> None:
    index = LocalIndex.open(index_folder)
    assert urls(index, "OTTERS") == ["https://a.org/otter", "local:2"]
    assert urls(index, "rivers") == ["local:7", "https://a.org/otter"]
    assert urls(index, "cafe") == urls(index, "CAFÉ") == ["local:2"]
    assert urls(index, "zebra") == []
    assert index.search("fish", 1)[0][1] == "Herons wade.\n\nThey eat an otter's fish. Café."


def test_an_index_moves_and_reopens(index_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(index_folder, moved)
    assert urls(LocalIndex.open(moved), "river") == urls(LocalIndex.open(index_folder), "river")


def test_equal_scores_rank_in_the_order_of_the_source(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"title": f"T{n}", "text": "the same words"} for n in range(300)])
    for folder in ("one", "two"):
        build_index(source, tmp_path / folder)
    one, two = LocalIndex.open(tmp_path / "one"), LocalIndex.open(tmp_path / "two")
    assert urls(one, "words", 7) == [f"local:{n}" for n in range(1, 8)] == urls(two, "words", 7)
    assert urls(one, "words", 20)[:7] == urls(one, "words", 7)


def test_domains_that_are_not_allowed_make_room_for_others(tmp_path: Path) -> None:
    rows = [{"title": "x", "text": "word", "url": f"https://{'bad' if n < 90 else 'good'}.org/{n}"} for n in range(100)]
    index_command(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "index")
    tool = SearchTool(index=str(tmp_path / "index"), exclude_domains=["bad.org"])
    text = run(tool, query="word", max_results=20)
    assert text.count("good.org") == 10 and "bad.org" not in text


def test_the_tool_answers_in_numbered_results_and_opens_documents(index_folder: Path) -> None:
    tool = SearchTool(index=str(index_folder), name="tavily-search", fetch=True, max_page_chars=20)
    assert tool.spec.name == "tavily-search"
    assert run(tool, query="otters", max_results=1) == "1. Otter\nhttps://a.org/otter\nOtters swim in rivers."
    assert run(tool, query="long") == "1. local:7\nA river is long and rivers are many: river, river."
    assert run(tool, query="zebra") == run(tool, query="(: ~") == "No results."
    (page,) = tool.companions
    assert page.spec.name == "open_page"
    assert run(page, url="https://a.org/otter") == "Otter\n\nOtters swim i\n\n[part 1 of 2]"
    assert run(page, url="https://a.org/otter", part=2) == "n rivers.\n\n[part 2 of 2]"
    for arguments, message in [
        ({"url": "local:99"}, "not among the search results"),
        ({"url": "\ud800" * 9}, "not among the search results"),
        ({"url": 3}, "url must be a string"),
        ({"url": "local:7", "part": 9}, "part 9 does not exist; the page has 3"),
        ({"url": "local:7", "part": 0}, "part must be a whole number"),
        ({"path": "/etc/passwd"}, "no argument 'path'"),
    ]:
        with pytest.raises(ToolError, match=message):
            run(page, **arguments)
    assert tool.stats() == {}
    tool.close()


@settings(max_examples=300, deadline=None)
@given(query=st.text(max_size=60) | st.text(alphabet='abotter:()[]{}"*?~^+-!&|\\/<> ANDORT', max_size=60))
def test_no_query_is_syntax(index_folder: Path, query: str) -> None:
    tool = SearchTool(index=str(index_folder))
    try:
        assert run(tool, query=query)
    except ToolError as error:
        assert "query is empty" in str(error)


@pytest.mark.parametrize(
    "query", ["text:otter", "+otter -otter", '"otter otter"', "title:[a TO z] otter", "otter^99 /o.*/"]
)
def test_operators_are_words(index_folder: Path, query: str) -> None:
    assert "https://a.org/otter" in urls(LocalIndex.open(index_folder), query)


def test_threads_share_an_index(index_folder: Path) -> None:
    index = LocalIndex.open(index_folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tuple(urls(index, "otter river fish")), range(400)))
    assert len(set(found)) == 1 and len(found[0]) == 3


# -- building ---------------------------------------------------------------------------------------------------------


def test_building_tells_its_progress_and_what_it_read(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"title": "t", "text": "x"}] * 2500)
    seen: list[int] = []
    info = index_command(source, tmp_path / "index", progress=seen.append)
    assert seen == [1000, 2000, 2500] and info.num_documents == 2500
    again = index_command(source, tmp_path / "index")
    assert again == info
    source.write_text('{"title": "t", "text": "y"}\n')
    assert index_command(source, tmp_path / "index").source_sha256 != info.source_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "rows.jsonl"]


def test_a_folder_of_texts_is_a_source(tmp_path: Path) -> None:
    source = tmp_path / "texts"
    (source / "deep").mkdir(parents=True)
    (source / "a b.txt").write_text("plain otter")
    (source / "deep" / "page.html").write_text(
        "<html><head><title>The  title</title><style>otter{}</style></head><body><nav>menu</nav>"
        "<p>heron <b>b</b>old<br>line</p><script>evil()</script></body></html>"
    )
    (source / "notes.md").write_bytes(b"\xff\xfe broken bytes heron")
    (source / "ignored.pdf").write_bytes(b"%PDF")
    build_index(source, tmp_path / "index")
    index = LocalIndex.open(tmp_path / "index")
    assert index.info.num_documents == 3
    assert urls(index, "otter") == ["local:a b.txt"]
    page = index.document("local:deep/page.html")
    assert page is not None and (page.title, page.text) == ("The title", "heron bold\nline")
    assert urls(index, "menu") == urls(index, "evil") == []


def test_other_languages_have_terms_too(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "水獺住在河裡"}, {"text": "Die Häuser am Fluss"}])
    build_index(source, tmp_path / "cjk", language="cjk")
    assert urls(LocalIndex.open(tmp_path / "cjk"), "河裡的水獺")[0] == "local:1"
    build_index(source, tmp_path / "german", language="german")
    assert urls(LocalIndex.open(tmp_path / "german"), "haus häusern") == ["local:2"]
    with pytest.raises(ConfigError, match="language 'klingon' is unknown"):
        build_index(source, tmp_path / "klingon", language="klingon")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows\.jsonl:2: not JSON"),
        ("[" * 100_000, r"rows\.jsonl:2: not JSON"),
        ("[]", r"rows\.jsonl:2: expected a JSON object"),
        ('{"title": "x"}', r"rows\.jsonl:2: text must be text, got null"),
        ('{"title": 3, "text": "x"}', r"rows\.jsonl:2: title must be text, got 3"),
        ('{"text": "x", "id": [1]}', r"rows\.jsonl:2: id must be text or a whole number"),
        ('{"text": "x", "id": "one"}', r"rows\.jsonl:2: another document has the address local:one"),
        ('{"text": "x", "url": "https://a b"}', r"rows\.jsonl:2: url must have no spaces"),
        ('{"text": " "}', r"rows\.jsonl:2: neither title nor text"),
        (json.dumps({"text": "x" * 1_000_001}), r"rows\.jsonl:2: 1000001 characters, at most 1000000\. Split it"),
        ('{"image": "no.png", "caption": "x"}', r"rows\.jsonl:2: cannot read image .*no\.png"),
    ],
)
def test_a_bad_row_is_named_and_the_old_index_stays(tmp_path: Path, line: str, message: str) -> None:
    good = write_rows(tmp_path / "good.jsonl", [{"text": "otter"}])
    build_index(good, tmp_path / "index")
    (tmp_path / "rows.jsonl").write_text('{"text": "first", "id": "one"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        build_index(tmp_path / "rows.jsonl", tmp_path / "index")
    assert urls(LocalIndex.open(tmp_path / "index"), "otter") == ["local:1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.jsonl", "index", "rows.jsonl"]


def test_what_killed_builds_left_is_removed_and_an_index_they_were_replacing_is_put_back(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    build_index(source, tmp_path / "index")
    pid = subprocess.Popen(["true"])
    pid.wait()
    running = tmp_path / f"index.{os.getppid()}.partial"
    running.mkdir()
    (tmp_path / "index").rename(tmp_path / f"index.{pid.pid}.old")
    (tmp_path / f"index.{pid.pid}.partial" / "tantivy").mkdir(parents=True)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="nothing to index"):
        build_index(tmp_path / "empty.jsonl", tmp_path / "index")
    assert urls(LocalIndex.open(tmp_path / "index"), "otter"), "the old index serves until there is another"
    build_index(source, tmp_path / "index")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["empty.jsonl", "index", running.name, "rows.jsonl"], "a build that runs is left alone"


def test_a_misspelt_field_of_a_row_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"titel": "a", "text": "b"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: unknown field 'titel'\. Did you mean title\?"):
        build_index(source, tmp_path / "index")


def test_files_of_a_folder_that_are_not_indexed_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.md", "table.csv", "other.csv", "c.pdf"):
        (tmp_path / "texts" / name).write_text("words")
    assert main(["index", str(tmp_path / "texts"), "--out", str(tmp_path / "index")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 documents indexed")
    assert "left out: 2 .csv files\n" in printed and "left out: 1 .pdf file\n" in printed


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / os.fsdecode(b"caf\xe9.txt")).write_text("words")
    with pytest.raises(DataError, match=r"caf\\udce9\.txt': the name of this file is not UTF-8\. Rename it\."):
        build_index(tmp_path / "texts", tmp_path / "index")


def test_what_is_no_index_is_neither_overwritten_nor_opened(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").touch()
    with pytest.raises(ConfigError, match="photos exists and is no search index"):
        build_index(source, tmp_path / "photos")
    assert (tmp_path / "photos" / "dear.jpg").exists()
    with pytest.raises(ConfigError, match=r"source .*none does not exist"):
        build_index(tmp_path / "none", tmp_path / "index")
    (tmp_path / "photos" / "dear.jpg").unlink()
    with pytest.raises(DataError, match="nothing to index"):
        build_index(tmp_path / "photos", tmp_path / "index")
    for broken in ("missing", "photos", "cut"):
        if broken == "cut":
            build_index(source, tmp_path / "cut")
            next((tmp_path / "cut" / "tantivy").glob("*.store")).unlink()
        with pytest.raises(ConfigError, match=rf"index .*{broken} .*Build it: axpo index SOURCE --out .*{broken}"):
            LocalIndex.open(tmp_path / broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"search: index is missing: made by: axpo index"),
        ({"index": "x", "url": "http://a"}, "url is for tavily and searxng; backend is local"),
        ({"backend": "searxng"}, "url is missing: the address of the SearXNG server"),
        ({"backend": "searxng", "url": "ftp://x"}, "expected an address as"),
        ({"backend": "searxng", "url": "http://u:p@x"}, "holds a password"),
        ({"backend": "searxng", "url": "http://x:99999"}, "expected an address as"),
        ({"backend": "bing"}, "backend must be local, tavily or searxng, got 'bing'"),
        ({"backend": "searxng", "url": "http://x", "index": "i"}, "index is for the backend local"),
        (
            {"backend": "searxng", "url": "http://x", "exclude_domains": ["http://a.org/x"]},
            "'http://a.org/x' is no domain",
        ),
        ({"backend": "searxng", "url": "http://x", "timeout_s": 0}, "timeout_s > 0"),
        (
            {"backend": "searxng", "url": "http://x", "fetch": True, "max_page_chars": 0},
            "max_page_chars must be at least",
        ),
    ],
)
def test_wrong_options_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchTool(**options)


def test_a_html_file_that_takes_long_to_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.tools.search.build._READ_CPU_S", 0.5)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "bad.html").write_text(f"<p {' '.join(f'a{n}' for n in range(100_000))}>x")
    with pytest.raises(DataError, match=r"bad\.html: its text cannot be read: it takes too long\. Remove it"):
        build_index(tmp_path / "pages", tmp_path / "index")


def test_a_charset_that_python_lacks_does_not_stop_an_index(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "old.html").write_text('<meta charset="iso-8859-12"><p>heron')
    build_index(tmp_path / "pages", tmp_path / "index")
    assert [hit.text for hit, _ in LocalIndex.open(tmp_path / "index").search("heron", 1)] == ["heron"]
