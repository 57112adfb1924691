"""Image search over captions on disk and over an endpoint of the user's."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.errors import ConfigError, DataError, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ClosableTool, ToolContext
from axpo.tools.search import ImageSearchTool, build_index
from axpo.tools.search import images as images_module
from axpo.tools.search.images import read_picture
from axpo.types import Content, ToolCall
from search_servers import KEY, Reply, Request, serving

COLORS = {"red": (200, 0, 0), "blue": (0, 0, 200)}


def png(color: str, size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(buffer, format="PNG")
    return buffer.getvalue()


def context(num_images: int = 0) -> ToolContext:
    store = ContentImageStore()
    images = [store.add_image(Image.new("RGB", (8, 8 + n))) for n in range(num_images)]
    return ToolContext(rollout_id="r", images=images, store=store)


def run(tool: ImageSearchTool, into: ToolContext, **arguments: Any) -> tuple[Content, ...]:
    return asyncio.run(tool.run(ToolCall(id="c", name="x", arguments=arguments), into))


def shown(content: tuple[Content, ...], into: ToolContext) -> list[Any]:
    """Texts, and (size, colour) of pictures."""
    result: list[Any] = []
    for block in content:
        if block.image is None:
            result.append(block.text)
        else:
            picture = into.store.load(block.image)
            result.append((picture.size, picture.getpixel((0, 0))))
    return result


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for color in COLORS:
        (tmp_path / "pictures" / f"{color}.png").write_bytes(png(color, (400, 100)))
    rows = [
        {"image": "pictures/red.png", "caption": "A red barn in the snow.", "title": "Barn"},
        {"image": "pictures/blue.png", "caption": "A blue lake."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(tmp_path / "rows.jsonl", tmp_path / "index")
    return tmp_path / "index"


def test_pictures_follow_their_captions_and_indices(index: Path) -> None:
    tool = ImageSearchTool(index=str(index), max_pixels=10_000)
    assert isinstance(tool, ClosableTool) and tool.spec.name == "image_search"
    into = context(num_images=2)
    assert shown(run(tool, into, query="blue or red"), into) == [
        "1. A blue lake.\nimg_idx 2:",
        ((200, 50), COLORS["blue"]),
        "2. Barn A red barn in the snow.\nimg_idx 3:",
        ((200, 50), COLORS["red"]),
    ]
    assert run(tool, into, query="zebra") == (Content(text="No results."),)
    with pytest.raises(ToolError, match="max_results must be a whole number from 1 to 10"):
        run(tool, into, query="red", max_results=11)
    assert tool.stats() == {}
    tool.close()


def test_a_folder_of_pictures_is_a_source(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    (source / "red_barn-door.png").write_bytes(png("red"))
    (source / "x.jpg").write_bytes(png("blue"))
    (source / "x.txt").write_text("A lake")
    build_index(source, tmp_path / "index")
    tool, into = ImageSearchTool(index=str(tmp_path / "index")), context()
    assert shown(run(tool, into, query="barn"), into)[0] == "1. red barn door\nimg_idx 0:"
    assert shown(run(tool, into, query="lake"), into) == ["1. A lake\nimg_idx 0:", ((40, 20), COLORS["blue"])]


def test_what_is_no_picture_index_is_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "x"}\n')
    build_index(tmp_path / "texts.jsonl", tmp_path / "texts")
    with pytest.raises(ConfigError, match="holds texts, not pictures"):
        ImageSearchTool(index=str(tmp_path / "texts"))
    (tmp_path / "mixed.jsonl").write_text('{"text": "x"}\n{"image": "pictures/red.png", "caption": "y"}\n')
    with pytest.raises(DataError, match="1 of 2 entries are pictures"):
        build_index(tmp_path / "mixed.jsonl", tmp_path / "mixed")
    with pytest.raises(ConfigError, match=r"give either index .* or url"):
        ImageSearchTool()
    with pytest.raises(ConfigError, match="cache is for an endpoint"):
        ImageSearchTool(index=str(index), cache="c.sqlite", cache_mode="record")
    tool = ImageSearchTool(index=str(index))
    (tmp_path / "pictures" / "red.png").unlink()
    with pytest.raises(ConfigError, match=r"picture .*red\.png of the index cannot be read"):
        run(tool, context(), query="red")


def stripe() -> bytes:
    return png("red", (401, 2))


def huge() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., ImageSearchTool]:
    def make_tool(**options: Any) -> ImageSearchTool:
        tool = ImageSearchTool(**options)
        request.addfinalizer(tool.close)
        return tool

    return make_tool


def test_an_endpoint_is_recorded_with_its_pictures(
    make: Callable[..., ImageSearchTool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def respond(request: Request) -> Reply:
        if request.method == "GET":
            return Reply(200, png("red"), {"Content-Type": "image/png"})
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.json == {"query": "barn", "max_results": 10}
        pictures = [png("blue"), b"no picture", stripe(), huge(), png("red")[:50]]
        results: list[dict[str, Any]] = [
            {"title": f"T{number}", "image_base64": base64.b64encode(data).decode()}
            for number, data in enumerate(pictures)
        ]
        results += [
            {"title": "by address", "image_url": f"{server.url}/red.png"},
            {"title": "private", "image_url": "http://localhost/x.png"},
            {"title": ["no"], "image_base64": "%%%"},
            {"title": "none"},
        ]
        return Reply(200, {"results": results})

    with serving(respond) as server:
        options = {"url": server.url, "cache": str(tmp_path / "c.sqlite"), "api_key_env": "MY_KEY", "max_pixels": 200}
        into = context()
        recorded = shown(run(make(cache_mode="record", **options), into, query="barn", max_results=10), into)
    assert recorded[:4] == [
        "1. T0\nimg_idx 0:",
        ((20, 10), COLORS["blue"]),
        "2. T1\n(its picture cannot be shown)",
        "3. T2\n(its picture cannot be shown)",
    ]
    assert recorded[4:] == [
        "4. T3\n(its picture cannot be shown)",
        "5. T4\n(its picture cannot be shown)",
        "6. by address\nimg_idx 1:",
        ((20, 10), COLORS["red"]),
        "7. private\n(its picture cannot be shown)",
        "8.\n(its picture cannot be shown)",
        "9. none\n(its picture cannot be shown)",
    ]
    replaying, into = make(cache_mode="replay", **options), context()
    assert shown(run(replaying, into, query="barn", max_results=10), into) == recorded
    assert into.is_cached and replaying.stats()["requests"] == 0


@pytest.mark.parametrize("error", [SyntaxError, NotImplementedError, MemoryError])
def test_a_decoder_that_fails_costs_one_picture_and_runs_beside_the_searches(
    make: Callable[..., ImageSearchTool], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    threads: list[str] = []

    def read(data: bytes, **bounds: int) -> Image.Image:
        threads.append(threading.current_thread().name)
        if data == b"odd":
            raise error("broken PNG file")
        return read_picture(data, **bounds)

    items = [{"title": "T", "image_base64": base64.b64encode(data).decode()} for data in (b"odd", png("red"))]
    with serving(lambda request: Reply(200, {"results": items})) as server:
        tool, into = make(url=server.url), context()
        monkeypatch.setattr(images_module, "read_picture", read)
        found = shown(run(tool, into, query="barn"), into)
    assert found == ["1. T\n(its picture cannot be shown)", "2. T\nimg_idx 0:", ((40, 20), COLORS["red"])]
    assert "axpo-search" not in threads


@pytest.mark.parametrize("max_pixels", [1, 300, 1000])
@pytest.mark.parametrize("size", [(4000, 20), (20, 4000)])
def test_no_picture_becomes_a_stripe(max_pixels: int, size: tuple[int, int]) -> None:
    picture = read_picture(png("red", size), max_pixels=max_pixels)
    assert max(picture.size) <= 200 * min(picture.size)


def test_an_endpoint_that_refuses_one_query_or_all(make: Callable[..., ImageSearchTool]) -> None:
    def guarded(request: Request) -> Reply:
        return Reply(403) if "<script>" in request.json["query"] else Reply(200, {"results": []})

    with serving(guarded) as server:
        with pytest.raises(ToolError, match="HTTP 403"):
            run(make(url=server.url), context(), query="<script>")
        server.respond = lambda request: Reply(403)
        with pytest.raises(ConfigError, match="Check api_key_env"):
            run(make(url=server.url), context(), query="barn")


@pytest.mark.parametrize("body", [b"<html>", [], {"results": 3}, {"results": [3]}, {}])
def test_an_endpoint_that_answers_nonsense_is_a_fault_of_ours(make: Callable[..., ImageSearchTool], body: Any) -> None:
    with serving(lambda request: Reply(200, body)) as server, pytest.raises(ToolFault, match="image_search"):
        run(make(url=server.url), context(), query="barn")
