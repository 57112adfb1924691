"""Search against servers shaped like Tavily and SearXNG: recorded, replayed, and when they misbehave."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import ConfigError, QuotaError, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ClosableTool, ToolContext
from axpo.tools.search import SearchTool
from axpo.tools.search.proof import PROBE_QUERY
from axpo.types import FailureKind, ToolCall
from search_servers import KEY, PAGES, Reply, Request, Server, searxng, serving, tavily

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", KEY)


@pytest.fixture
def tavily_server() -> Iterator[Server]:
    with serving(tavily) as server:
        yield server


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., SearchTool]:
    """Tools that are closed at the end."""

    def make_tool(**options: Any) -> SearchTool:
        tool = SearchTool(**{"backend": "tavily", "timeout_s": 10.0} | options)
        request.addfinalizer(tool.close)
        return tool

    return make_tool


def context() -> ToolContext:
    return ToolContext(rollout_id="r", images=[], store=ContentImageStore())


def search(tool: SearchTool, query: str, into: ToolContext | None = None, **arguments: Any) -> str:
    call = ToolCall(id="c", name="search", arguments={"query": query, **arguments})
    (block,) = asyncio.run(tool.run(call, into or context()))
    assert block.text is not None
    return block.text


Make = Callable[..., SearchTool]


# -- what comes back --------------------------------------------------------------------------------------------------


def test_tavily_results_are_numbered_and_bounded(tavily_server: Server, make: Make) -> None:
    tool = make(url=tavily_server.url, max_snippet_chars=12)
    assert isinstance(tool, ClosableTool)
    assert search(tool, "otter\n\x00 river", max_results=2) == (
        "1. Otter 1\nhttps://a.org/otter/1\nThe otter…\n\n2. Otter 2\nhttps://www.b.com/otter/2\nThe otter…"
    )
    assert tavily_server.requests[0].json == {
        "query": "otter river",
        "max_results": 2,
        "search_depth": "basic",
        "include_domains": [],
        "exclude_domains": [],
    }
    assert search(tool, "zebra") == "No results."


def test_one_tool_serves_several_event_loops_over_one_connection(tavily_server: Server, make: Make) -> None:
    tool = make(url=tavily_server.url)
    assert search(tool, "otter") == search(tool, "otter")
    tool.close()
    tool.close()


@pytest.mark.parametrize("backend", ["tavily", "searxng"])
def test_excluded_domains_never_reach_the_model(make: Make, backend: str) -> None:
    leaks = [
        {"title": "copy", "url": "https://archive.example/web/2024/https://b.com/otter", "content": ""},
        {"title": "upper", "url": "https://B.COM./otter", "content": ""},
        {"title": "translated", "url": "https://t.example/?u=https%253A%252F%252Fwww.b.com%252Fotter", "content": ""},
        {"title": "kept", "url": "https://notb.com/otter", "content": ""},
        {"title": "kept, too", "url": "https://b.com.evil.example/", "content": ""},
    ]

    def careless(request: Request) -> Reply:
        return Reply(200, {"results": [*PAGES, *leaks]})

    with serving(careless) as server:
        tool = make(backend=backend, url=server.url, exclude_domains=["www.B.com"])
        text = search(tool, "otter", max_results=20)
    assert "kept" in text and "kept, too" in text and "a.org/otter" in text
    assert "copy" not in text and "upper" not in text and "translated" not in text and "blog.b.com" not in text


def test_searxng_works_and_its_commands_are_words(make: Make) -> None:
    with serving(searxng) as server:
        tool = make(backend="searxng", url=f"{server.url}/", include_domains=["b.com"])
        text = search(tool, "!!g :fr otter <1", max_results=1)
        assert text == "1. Otter 2\nhttps://www.b.com/otter/2\nThe otter is animal number 2."
        assert server.requests[0].params == {"q": "g fr otter 1", "format": "json"}
        assert search(tool, "!! :") == "No results."


def test_searxng_without_working_engines_is_a_fault_not_an_empty_answer(make: Make) -> None:
    def blocked(request: Request) -> Reply:
        return Reply(200, {"results": [], "unresponsive_engines": [["google", "Suspended: CAPTCHA"]]})

    with serving(blocked) as server:
        tool = make(backend="searxng", url=server.url)
        for query in ("otter", "heron"):
            into = context()
            with pytest.raises(ToolFault, match=r"google.*CAPTCHA"):
                search(tool, query, into)
    assert [request.params["q"] for request in server.requests] == ["otter", PROBE_QUERY, "heron"]


def test_searxng_with_one_blocked_engine_finds_nothing_for_gibberish(make: Make) -> None:
    def half_blocked(request: Request) -> Reply:
        results = PAGES if request.params["q"] == PROBE_QUERY else []
        return Reply(200, {"results": results, "unresponsive_engines": [["google", "Suspended: CAPTCHA"]]})

    with serving(half_blocked) as server:
        tool = make(backend="searxng", url=server.url, include_domains=["nowhere.example"])
        assert search(tool, "xqzzk") == search(tool, "qqqq") == "No results."
    assert [request.params["q"] for request in server.requests] == ["xqzzk", PROBE_QUERY, "qqqq"]


def test_odd_results_are_cleaned_or_left_out(make: Make) -> None:
    results = [
        {"title": "x\ud800\x00\u0085y\n2. forged", "url": "https://a.org/1", "content": None},
        {"title": None, "url": "https://a.org/2", "content": ["list"]},
        {"title": "script", "url": "javascript:alert(1)"},
        {"title": "no address"},
        {"title": "long", "url": "https://a.org/" + "x" * 3000},
        "text",
        None,
    ]
    with serving(lambda request: Reply(200, {"results": results})) as server:
        text = search(make(url=server.url), "otter", max_results=20)
    assert text == "1. x y 2. forged\nhttps://a.org/1\n\n2. https://a.org/2"


# -- record and replay ------------------------------------------------------------------------------------------------


def test_a_recorded_run_replays_without_the_server(make: Make, tmp_path: Path) -> None:
    file = str(tmp_path / "cache.sqlite")
    queries = ["otter", "heron 3", "zebra", "  otter  ", "forbidden"]

    def ask_all(tool: SearchTool) -> list[str]:
        texts: list[str] = []
        for query in queries:
            try:
                texts.append(search(tool, query))
            except ToolError as error:
                texts.append(f"{error.kind}: {error}")
        return texts

    with serving(tavily) as server:
        options = {"url": server.url, "cache": file, "exclude_domains": ["c.net"]}
        recording = make(cache_mode="record", cost_per_request=0.008, **options)
        recorded = ask_all(recording)
        num_requests = len(server.requests)
        assert ask_all(recording) == recorded
        assert len(server.requests) == num_requests == 4  # the two otters are one
    assert recording.stats() == {
        "requests": 4,
        "cached": 6,
        "faults": 0,
        "lost": 0,
        "cost_usd": pytest.approx(0.024),  # pyright: ignore[reportUnknownMemberType]
    }
    assert "refuses" in recorded[-1] and recorded[-1].startswith("bad_arguments")

    replaying = make(cache_mode="replay", **options)
    assert ask_all(replaying) == recorded
    assert replaying.stats()["requests"] == 0
    hit = context()
    search(replaying, "otter", hit)
    assert hit.is_cached
    with pytest.raises(ConfigError, match=rf'search: not in the cache {file}: .*"query":"unheard of"'):
        search(replaying, "unheard of", hit)
    assert not hit.is_cached
    with pytest.raises(ConfigError, match="not in the cache"):
        search(replaying, "otter", max_results=4)
    with pytest.raises(ConfigError, match="not in the cache"):
        search(make(cache_mode="replay", **options | {"exclude_domains": []}), "otter")


def test_a_replay_needs_no_key(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "cache.sqlite")
    with serving(tavily) as server:
        recorded = search(make(url=server.url, cache=file, cache_mode="record"), "otter")
    monkeypatch.delenv("TAVILY_API_KEY")
    assert search(make(url=server.url, cache=file, cache_mode="replay"), "otter") == recorded
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="environment variable TAVILY_API_KEY holds no key"):
        make(url=server.url)


def test_a_recorded_fault_is_asked_again_while_recording_and_met_again_in_a_replay(make: Make, tmp_path: Path) -> None:
    options = {"cache": str(tmp_path / "cache.sqlite")}
    with serving(lambda request: Reply(503)) as server:
        options["url"] = server.url
        recording = make(cache_mode="record", **options)
        for query in ("otter", "heron"):
            with pytest.raises(ToolFault, match="HTTP 503"):
                search(recording, query)
        server.respond = tavily
        assert "Otter 1" in search(recording, "otter")
    replaying = make(cache_mode="replay", **options)
    assert "Otter 1" in search(replaying, "otter")
    with pytest.raises(ToolFault, match="HTTP 503"):
        search(replaying, "heron")


def test_equal_searches_at_once_are_one_request_while_recording(
    tavily_server: Server, make: Make, tmp_path: Path
) -> None:
    tool = make(url=tavily_server.url, cache=str(tmp_path / "c.sqlite"), cache_mode="record")

    async def siblings() -> tuple[set[str | None], int]:
        contexts = [context() for _ in range(32)]
        calls = [tool.run(ToolCall(id="c", name="search", arguments={"query": "otter"}), c) for c in contexts]
        return {block.text for (block,) in await asyncio.gather(*calls)}, sum(c.is_cached for c in contexts)

    texts, num_cached = asyncio.run(siblings())
    assert (len(texts), num_cached, len(tavily_server.requests)) == (1, 31, 1)


PROGRAM = """
import asyncio, sys
from axpo.errors import QuotaError
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.search import SearchTool
from axpo.types import ToolCall
url, cache, max_requests, word = sys.argv[1:]
tool = SearchTool(backend="tavily", url=url, cache=cache, cache_mode="record", max_requests=int(max_requests))
for number in range(6):
    context = ToolContext(rollout_id="r", images=[], store=ContentImageStore())
    call = ToolCall(id="c", name="search", arguments={"query": f"otter {word} {number}"})
    try:
        print(asyncio.run(tool.run(call, context))[0].text.count("otter"))
    except QuotaError:
        print("quota")
tool.close()
"""


@pytest.mark.parametrize("mode", ["live", "record"])
def test_a_request_without_an_answer_costs_no_quota(make: Make, tmp_path: Path, mode: str) -> None:
    cache = {"cache": str(tmp_path / "c.sqlite")} if mode == "record" else {}
    with serving(lambda request: Reply(503)) as server:
        tool = make(url=server.url, cache_mode=mode, max_requests=1, cost_per_request=0.5, **cache)
        for _ in range(3):
            with pytest.raises(ToolFault):
                search(tool, "otter")
        server.respond = tavily
        search(tool, "otter")
        with pytest.raises(QuotaError):
            search(tool, "heron")
    assert (tool.stats()["requests"], tool.stats()["faults"], tool.stats()["cost_usd"]) == (4, 3, 0.5)


def run_processes(server: Server, cache: str, max_requests: int, words: list[str]) -> list[list[str]]:
    command = [sys.executable, "-c", PROGRAM, server.url, cache, str(max_requests)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    running = [subprocess.Popen([*command, word], stdout=subprocess.PIPE, text=True, env=environment) for word in words]
    outputs = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * len(words)
    return outputs


def test_processes_share_a_cache(tavily_server: Server, make: Make, tmp_path: Path) -> None:
    file = str(tmp_path / "cache.sqlite")
    one, two = run_processes(tavily_server, file, 100, ["same", "same"])
    assert one == two and len(one) == 6
    num_sent = len(tavily_server.requests)
    assert 6 <= num_sent <= 12  # both may ask before either has stored
    search(make(url=tavily_server.url, cache=file, cache_mode="record"), "otter same 3")
    assert len(tavily_server.requests) == num_sent


def test_processes_share_a_quota(tavily_server: Server, make: Make, tmp_path: Path) -> None:
    file = str(tmp_path / "cache.sqlite")
    one, two = run_processes(tavily_server, file, 8, ["one", "two"])
    assert len(tavily_server.requests) == 8
    assert one.count("quota") + two.count("quota") == 4
    tool = make(url=tavily_server.url, cache=file, cache_mode="record", max_requests=9)
    search(tool, "heron 1")
    with pytest.raises(
        QuotaError, match=r"quota of 9 requests sent through .*cache\.sqlite is used up\. Raise max_req"
    ):
        search(tool, "heron 2")
    assert "Heron" in search(tool, "heron 1")  # what is stored needs no request
    assert len(tavily_server.requests) == 9


# -- faults -----------------------------------------------------------------------------------------------------------


def endless(request: Request) -> Reply:
    return Reply(200, iter(lambda: b" " * 65536, None))


def bomb(request: Request) -> Reply:
    return Reply(200, gzip.compress(b" " * 50_000_000), {"Content-Encoding": "gzip"})


def empty_blocks(request: Request) -> Reply:
    """Packed data without end that unpacks to nothing."""
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(b" ") + packer.flush(zlib.Z_FULL_FLUSH)
    return Reply(200, itertools.chain([start], iter(lambda: b"\x00\x00\x00\xff\xff" * 10_000, None)), GZIP)


GZIP = {"Content-Encoding": "gzip"}


def silent(request: Request) -> Reply:
    raise ConnectionError


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (lambda request: Reply(500, b"oops"), "Tavily answered HTTP 500: oops"),
        (lambda request: Reply(429), "Tavily answered HTTP 429: nothing"),
        (lambda request: Reply(200, b"<html>"), "something other than JSON"),
        (lambda request: Reply(200, b"[" * 1_000_000), "something other than JSON"),
        (lambda request: Reply(200, b'{"results": ' + b"9" * 10_000 + b"}"), "something other than JSON"),
        (lambda request: Reply(200, b"\xff\xfe\x00"), "something other than JSON"),
        (lambda request: Reply(200, []), "no JSON object"),
        (lambda request: Reply(200, {"result": []}), "no list of results"),
        (lambda request: Reply(200, {"results": {"a": 1}}), "no list of results"),
        (lambda request: Reply(200, {"results": [1, {}]}), "none of its 2 results has an address"),
        (lambda request: Reply(200, b"{}", {"Content-Encoding": "br"}), "content encoding"),
        (lambda request: Reply(200, b"{}", {"Content-Encoding": "gzip"}), "incorrect header check"),
        (lambda request: Reply(307, b"", {"Location": "/search"}), "TooManyRedirects"),
        (endless, "larger than 4000000 bytes"),
        (bomb, "larger than 4000000 bytes"),
        (empty_blocks, "larger than 4000000 bytes"),
        (silent, "127.0.0.1"),
    ],
)
def test_a_broken_service_is_a_fault_of_ours(make: Make, respond: Callable[[Request], Reply], message: str) -> None:
    with serving(respond) as server, pytest.raises(ToolFault, match=message) as caught:
        search(make(url=server.url), "otter")
    assert caught.value.can_retry and KEY not in str(caught.value)


def test_what_follows_the_end_of_a_packed_answer_is_not_read(make: Make) -> None:
    def respond(request: Request) -> Reply:
        answer = gzip.compress(json.dumps({"results": PAGES}).encode())
        return Reply(200, itertools.chain([answer], iter(lambda: b"\0" * 65536, None)), GZIP)

    with serving(respond) as server:
        assert "Otter 1" in search(make(url=server.url), "otter")


def test_a_service_that_never_ends_its_answer_is_given_up(make: Make) -> None:
    with serving(tavily) as server:

        def drip() -> Iterator[bytes]:
            while not server.ended.wait(0.01):
                yield b" "

        def hang(request: Request) -> Reply:
            server.ended.wait()
            return Reply()

        for respond in (hang, lambda request: Reply(200, drip())):
            server.respond = respond
            with pytest.raises(ToolFault, match=r"127\.0\.0\.1:\d+ did not answer in 0\.2 s"):
                search(make(url=server.url, timeout_s=0.2), "otter")


def test_nobody_there_is_a_fault_of_ours(make: Make) -> None:
    with serving(tavily) as server:
        address = server.url
    with pytest.raises(ToolFault, match="ConnectError"):
        search(make(url=address), "otter")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, ConfigError, "Check the key in the environment variable TAVILY_API_KEY"),
        (403, ConfigError, "Check the key"),
        (404, ConfigError, "Check the option url"),
        (402, QuotaError, "plan is used up"),
        (432, QuotaError, "plan is used up"),
        (433, QuotaError, "plan is used up"),
        (400, ConfigError, "Check the options of the search tool"),
        (451, ConfigError, "Check the options of the search tool"),
    ],
)
def test_what_only_the_user_can_mend_stops_the_run(
    make: Make, status: int, error: type[Exception], message: str
) -> None:
    def refuse(request: Request) -> Reply:
        return Reply(status, f"you sent {request.headers['authorization']}".encode())

    with serving(refuse) as server, pytest.raises(error, match=message) as caught:
        search(make(url=server.url), "otter")
    assert "you sent Bearer ***" in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 413, 418, 451])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_firewall_refuses_is_the_models_mistake_and_stops_nothing(
    make: Make, status: int, is_first: bool
) -> None:
    def guarded(request: Request) -> Reply:
        return Reply(status) if "<script>" in request.json["query"] else tavily(request)

    with serving(guarded) as server:
        tool = make(url=server.url, max_requests=3)
        if not is_first:
            search(tool, "otter")
        with pytest.raises(ToolError, match=f"HTTP {status}") as caught:
            search(tool, "<script>")
        assert caught.value.kind == FailureKind.BAD_ARGUMENTS and "Check" not in str(caught.value)
        assert "Heron 1" in search(tool, "heron")


def test_a_key_withdrawn_during_the_run_stops_it(make: Make) -> None:
    with serving(tavily) as server:
        tool = make(url=server.url)
        search(tool, "otter")
        server.respond = lambda request: Reply(401)
        with pytest.raises(ConfigError, match="Check the key"):
            search(tool, "otter")


def test_a_refused_query_is_nobodys_fault_while_the_probe_fails(make: Make) -> None:
    def broken(request: Request) -> Reply:
        return Reply(503 if request.json["query"] == PROBE_QUERY else 403)

    with serving(broken) as server:
        tool = make(url=server.url)
        for _ in range(3):
            with pytest.raises(ToolFault, match="HTTP 503"):
                search(tool, "otter")
    assert [request.json["query"] for request in server.requests].count(PROBE_QUERY) == 1


def test_searxng_that_offers_no_json_is_explained(make: Make) -> None:
    with serving(lambda request: Reply(403)) as server, pytest.raises(ConfigError, match=r"search\.formats"):
        search(make(backend="searxng", url=server.url), "otter")


def test_a_query_that_the_service_refuses_is_the_models_mistake(tavily_server: Server, make: Make) -> None:
    tool = make(url=tavily_server.url)
    for _ in range(2):
        with pytest.raises(ToolError, match="refuses this") as caught:
            search(tool, "forbidden")
        assert caught.value.kind == FailureKind.BAD_ARGUMENTS
    queries = [request.json["query"] for request in tavily_server.requests]
    assert queries == ["forbidden", "weather", "forbidden"]  # asked once whether it refuses everything


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "query must be a string"),
        ({"query": 3}, "query must be a string"),
        ({"query": ""}, "query is empty"),
        ({"query": " \x00\ud800\n"}, "query is empty"),
        ({"query": "x" * 100_000}, "100000 characters, at most 400"),
        ({"query": "x", "max_results": 0}, "max_results must be a whole number from 1 to 20"),
        ({"query": "x", "max_results": 21}, "max_results must be"),
        ({"query": "x", "max_results": True}, "max_results must be"),
        ({"query": "x", "max_results": 1.5}, "max_results must be"),
        ({"query": "x", "max_results": float("nan")}, "max_results must be"),
        ({"query": "x", "max_results": float("inf")}, "max_results must be"),
        ({"query": "x", "max_results": "5"}, "max_results must be"),
        ({"query": "x", "site": "y"}, "no argument 'site'; the arguments are: query, max_results"),
    ],
)
def test_bad_arguments_are_told_to_the_model(
    tavily_server: Server, make: Make, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ToolError, match=message) as caught:
        asyncio.run(make(url=tavily_server.url).run(ToolCall(id="c", name="s", arguments=arguments), context()))
    assert caught.value.kind == FailureKind.BAD_ARGUMENTS
    assert tavily_server.requests == []


@pytest.mark.parametrize(
    "query", ["otter\x00heron", "\ud83d otter \udc00", "‮otter", "a" * 400, "\\\"';--{}[]", "\r\nX: y"]
)
@pytest.mark.parametrize("backend", ["tavily", "searxng"])
def test_hostile_queries_are_answered(make: Make, backend: str, query: str) -> None:
    respond = tavily if backend == "tavily" else searxng
    with serving(respond) as server:
        assert search(make(backend=backend, url=server.url), query)


def test_a_cancelled_search_leaves_nothing_running_and_costs_no_quota(make: Make) -> None:
    with serving(tavily) as server:
        tool = make(url=server.url, max_requests=1, timeout_s=60.0)

        def hang(request: Request) -> Reply:
            server.ended.wait(30)
            return Reply()

        async def abandon() -> None:
            task = asyncio.create_task(tool.search("otter", 5, context()))
            while not server.requests:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        server.respond = hang
        asyncio.run(abandon())
        server.respond = tavily

        async def search_again() -> None:
            while True:  # the thread learns of the cancellation a moment later
                try:
                    assert await tool.search("otter", 5, context())
                    return
                except QuotaError:
                    await asyncio.sleep(0.001)

        asyncio.run(search_again())
        with pytest.raises(QuotaError, match=r"quota of 1 requests is used up"):
            search(tool, "otter")


def test_the_key_is_in_no_log(tavily_server: Server, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    search(make(url=tavily_server.url), "otter")
    assert KEY not in caplog.text
