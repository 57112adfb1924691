"""Opening pages that a search returned: readable, bounded, and never a way into the user's network."""

from __future__ import annotations

import asyncio
import socket
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import ConfigError, ToolError
from axpo.images import ContentImageStore
from axpo.protocols import StatefulTool, ToolContext
from axpo.rollout.executor import ToolExecutor
from axpo.tools.search import SearchTool
from axpo.tools.search.pages import is_public
from axpo.tools.search.results import clean
from axpo.tools.search.text import html_text
from axpo.types import FailureKind, ToolCall
from search_servers import Reply, Request, Server, serving

PAGE = b"""<!doctype html><html><head><meta charset="windows-1252"><title>Otters &amp; more</title></head><body>
<nav>Home</nav><main><h1>Otters</h1><p>They   swim &eacute;t\xe9.</p><ul><li>one</li><li>two</li></ul></main>
<footer>Imprint</footer><script>alert("x")</script></body></html>"""


def context() -> ToolContext:
    return ToolContext(rollout_id="r", images=[], store=ContentImageStore())


def run(tool: Any, into: ToolContext | None = None, **arguments: Any) -> str:
    call = ToolCall(id="c", name="x", arguments=arguments)
    (block,) = asyncio.run(tool.run(call, into or context()))
    return str(block.text)


class Web:
    """A search service whose results are pages of the same server."""

    def __init__(self) -> None:
        self.server: Server
        self.pages: dict[str, Reply] = {}

    def __call__(self, request: Request) -> Reply:
        if request.path.startswith("/search"):
            results = [{"title": path, "url": self.server.url + path} for path in self.pages]
            return Reply(200, {"results": results})
        return self.pages.get(request.path, Reply(404, b"no"))


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    with serving(web) as server:
        web.server = server
        yield web


@pytest.fixture
def make(web: Web, request: pytest.FixtureRequest) -> Callable[..., tuple[SearchTool, Any]]:
    def make_tools(**options: Any) -> tuple[SearchTool, Any]:
        given = {
            "backend": "searxng",
            "url": web.server.url,
            "fetch": True,
            "allow_hosts": [web.server.url.removeprefix("http://")],
        }
        tool = SearchTool(**given | options)
        request.addfinalizer(tool.close)
        return tool, tool.companions[0]

    return make_tools


Make = Callable[..., tuple[SearchTool, Any]]


def test_a_page_that_was_found_is_read_as_text(web: Web, make: Make) -> None:
    web.pages["/otter"] = Reply(200, PAGE, {"Content-Type": "text/html"})
    (search, page), into = make(), context()
    url = f"{web.server.url}/otter"
    with pytest.raises(ToolError, match="not among the search results"):
        run(page, into, url=url)
    assert all(request.path != "/otter" for request in web.server.requests)
    run(search, into, query="otter")
    assert run(page, into, url=url) == "Otters & more\n\nOtters\n\nThey swim été.\n\none\n\ntwo"


def test_pages_are_recorded_and_replayed_with_their_failures(web: Web, make: Make, tmp_path: Path) -> None:
    web.pages |= {"/text": Reply(200, b"plain", {"Content-Type": "text/plain"}), "/gone": Reply(410)}
    options = {"cache": str(tmp_path / "c.sqlite"), "max_requests": 1}
    search, page = make(cache_mode="record", **options)
    address = web.server.url

    def read_all(search: SearchTool, page: Any, into: ToolContext) -> list[str]:
        run(search, into, query="otter")
        texts = [run(page, into, url=f"{address}/text")]
        with pytest.raises(ToolError, match=r"The page cannot be opened: HTTP 410") as caught:
            run(page, into, url=f"{address}/gone")
        assert caught.value.kind == FailureKind.EXECUTION_ERROR
        return [*texts, str(caught.value)]

    recorded = read_all(search, page, context())
    num_requests = len(web.server.requests)
    search, page = make(cache_mode="replay", **options)
    into = context()
    assert read_all(search, page, into) == recorded and len(web.server.requests) == num_requests
    run(page, into, url=f"{address}/text")
    assert into.is_cached


def test_what_another_rollout_found_opens_nothing_so_that_runs_repeat(web: Web, make: Make) -> None:
    web.pages["/text"] = Reply(200, b"plain", {"Content-Type": "text/plain"})
    (search, page), finder, guesser = make(), context(), context()
    run(search, finder, query="otter")
    with pytest.raises(ToolError, match="not among the search results"):
        run(page, guesser, url=f"{web.server.url}/text")
    assert run(page, finder, url=f"{web.server.url}/text") == "plain"
    assert isinstance(search, StatefulTool)
    asyncio.run(search.close_rollout(finder))
    assert finder.state == {}


@pytest.mark.parametrize("mode", ["live", "record"])
def test_a_branch_opens_what_its_prefix_found_and_asks_for_nothing_again(
    web: Web, make: Make, tmp_path: Path, mode: str
) -> None:
    web.pages["/text"] = Reply(200, b"plain", {"Content-Type": "text/plain"})
    cache = {"cache": str(tmp_path / "c.sqlite")} if mode == "record" else {}
    search, page = make(cache_mode=mode, **cache)
    executor = ToolExecutor(tools={"search": search, "open_page": page})
    open_it = ToolCall(id="s/1-0", name="open_page", arguments={"url": f"{web.server.url}/text"})

    async def branch() -> None:
        source = ToolContext(rollout_id="s", images=[], store=ContentImageStore())
        queries = ["otter", "", "otter"]
        calls = [ToolCall(id=f"s/0-{n}", name="search", arguments={"query": query}) for n, query in enumerate(queries)]
        results = [await executor.run(call, source) for call in calls]
        assert [result.failure is None for result in results] == [True, False, True]
        web.pages["/new"] = Reply(404)  # the service would answer something else by now
        num_requests = len(web.server.requests)
        into = ToolContext(rollout_id="s+0", images=[], store=ContentImageStore())
        await executor.replay(results, into)
        assert len(web.server.requests) == num_requests
        assert (await executor.run(open_it, into)).content[0].text == "plain"
        fresh = ToolCall(id="s+0/1-0", name="search", arguments={"query": "heron"})
        assert "/new" in str((await executor.run(fresh, into)).content[0].text)

    asyncio.run(branch())


def test_searches_without_pages_are_not_replayed(web: Web) -> None:
    search = SearchTool(backend="searxng", url=web.server.url)
    assert not isinstance(search, StatefulTool)
    search.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(404), "HTTP 404"),
        (Reply(500), "HTTP 500"),
        (Reply(200, b"%PDF", {"Content-Type": "application/pdf"}), "application/pdf, not text"),
        (Reply(200, b"x", {"Content-Type": "text/html", "Content-Encoding": "zstd"}), "content encoding"),
        (Reply(200, b"x" * 2_000_001, {"Content-Type": "text/html"}), "larger than 2000000 bytes"),
        (Reply(302, b"", {"Location": "/page"}), "too many redirects"),
        (Reply(302, b"", {"Location": "http://localhost/secret"}), "not on the public web"),
        (Reply(302, b"", {"Location": "http://[::1]:80/"}), "not on the public web"),
        (Reply(302, b"", {"Location": "http://0x7f000001/"}), "not on the public web"),
        (Reply(302, b"", {"Location": "http://169.254.169.254/latest/meta-data"}), "not on the public web"),
        (Reply(302, b"", {"Location": "file:///etc/passwd"}), "no plain web address"),
        (Reply(302, b"", {"Location": "http://user:pass@127.0.0.1/"}), "no plain web address"),
        (Reply(302, b"", {"Location": "http://127.0.0.1:99999999/"}), "malformed"),
        (Reply(302, b"", {"Location": "http://[::1/"}), "malformed"),
        (Reply(302, b"", {"Location": "http://" + "a" * 300 + "/"}), "cannot be resolved"),
        (Reply(302, b"", {"Location": "https://www.leak.org/answer"}), "domain is not allowed"),
    ],
)
def test_a_page_that_cannot_be_had_is_told_to_the_model(web: Web, make: Make, reply: Reply, message: str) -> None:
    web.pages["/page"] = reply
    (search, page), into = make(exclude_domains=["leak.org"]), context()
    run(search, into, query="otter")
    with pytest.raises(ToolError, match=f"The page cannot be opened: .*{message}"):
        run(page, into, url=f"{web.server.url}/page")


def test_without_permission_no_private_address_is_asked(web: Web, make: Make) -> None:
    web.pages["/page"] = Reply(200, PAGE)
    (search, page), into = make(allow_hosts=[]), context()
    run(search, into, query="otter")
    with pytest.raises(ToolError, match="not on the public web"):
        run(page, into, url=f"{web.server.url}/page")
    assert [request.path.partition("?")[0] for request in web.server.requests] == ["/search"]


def test_an_exception_for_a_host_is_none_for_its_other_ports(web: Web, make: Make) -> None:
    web.pages["/page"] = Reply(200, PAGE)
    (search, page), into = make(allow_hosts=["127.0.0.1", "127.0.0.1:1"]), context()
    run(search, into, query="otter")
    with pytest.raises(ToolError, match="not on the public web"):
        run(page, into, url=f"{web.server.url}/page")
    for written in ("http://a.org", "a.org/x", "a.org:x", ""):
        with pytest.raises(ConfigError, match=r"allow_hosts: .* is no host\. Write it as wiki\.local"):
            make(allow_hosts=[written])


def test_the_connection_goes_to_the_address_that_was_checked(
    web: Web, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves anew at connection time would let a page turn private after the check."""
    web.pages["/page"] = Reply(302, b"", {"Location": f"{web.server.url.replace('127.0.0.1', 'pages.example')}/real"})
    (search, page), into = make(), context()
    run(search, into, query="otter")  # /real is no result
    web.pages["/real"] = Reply(200, b"real", {"Content-Type": "text/plain"})
    lookups: list[str] = []

    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("axpo.tools.search.pages.is_public", lambda address: True)  # pyright: ignore
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert run(page, into, url=f"{web.server.url}/page") == "real"
    assert lookups == ["pages.example"]
    port = web.server.url.rpartition(":")[2]
    assert web.server.requests[-1].headers["host"] == f"pages.example:{port}"


def test_a_page_that_never_ends_is_given_up(web: Web, make: Make) -> None:
    (search, page), into = make(timeout_s=0.2), context()
    web.pages["/slow"] = Reply(200, iter(lambda: web.server.ended.wait(0.01) or b" ", True))
    run(search, into, query="otter")
    with pytest.raises(ToolError, match=r"The page cannot be opened: .*0\.2 s"):
        run(page, into, url=f"{web.server.url}/slow")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::7f00:1", False),
        ("64:ff9b:1::5db8:d822", False),
        ("fec0::1", False),
        ("feff::1", False),
        ("::127.0.0.1", False),
        ("::10.1.2.3", False),
        ("::ffff:0:7f00:1", False),
    ],
)
def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "piece",
    [b"<div>", b"<b>", b"<a ", b"<!--", b"<![CDATA[", b"<p>x<table>", b"&", b"<", b"<article>", b"\0", b"<b><p>"],
)
def test_hostile_pages_take_no_time(piece: bytes) -> None:
    start_s = time.process_time()
    html_text(piece * (2_000_000 // len(piece)))
    assert time.process_time() - start_s < 20  # quadratic parsers need minutes


@pytest.mark.parametrize("marks", ["\u0301", "\u0323\u0301", "\u0344", "\u0f73", "\u0f71\u0301", "\U0001e8d0\u0301"])
def test_combining_marks_without_end_take_no_time(marks: str) -> None:
    text = "e" + marks * (200_000 // len(marks))
    started_s = time.process_time()
    assert len(clean(text)) <= 200
    assert time.process_time() - started_s < 2  # normalizing them takes 10 seconds and more


def test_marks_that_languages_use_are_kept() -> None:
    for text in (
        "Cafe\u0301",
        "Tiê\u0301ng Viê\u0323t",
        "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
        "e" + "\u0316\u0301" * 15,
    ):
        assert clean(text) == unicodedata.normalize("NFC", text)


def test_a_page_that_takes_long_to_read_is_given_up_at_the_time_limit(web: Web, make: Make) -> None:
    (search, page), into = make(timeout_s=1.0), context()
    attributes = " ".join(f"a{n}" for n in range(100_000))  # takes a minute
    web.pages["/slow"] = Reply(200, f"<p {attributes}>x".encode(), {"Content-Type": "text/html"})
    run(search, into, query="otter")
    started_s = time.monotonic()
    with pytest.raises(ToolError, match=r"The page cannot be opened: its text cannot be read: it takes too long"):
        run(page, into, url=f"{web.server.url}/slow")
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("charset", ["iso-8859-12", "utf16le", "windows-1259"])
def test_a_charset_that_python_lacks_is_read_as_if_it_were_not_named(
    web: Web, make: Make, tmp_path: Path, charset: str
) -> None:
    body = f'<meta charset="{charset}"><p>été'.encode()
    web.pages["/page"] = Reply(200, body, {"Content-Type": f"text/html; charset={charset}"})
    for mode in ("record", "replay"):
        (search, page), into = make(cache=str(tmp_path / "c.sqlite"), cache_mode=mode), context()
        run(search, into, query="otter")
        assert run(page, into, url=f"{web.server.url}/page") == "été"


def test_text_of_pages() -> None:
    assert html_text(b"") == html_text(b"   ") == ("", "")
    assert html_text("<p>ä<br>b</p><textarea>c</textarea>".encode()) == ("", "ä\nb\nc")
    article = "long text " * 40
    page = f"<title>t</title><div>before</div><article><p>{article}</p></article><div>after</div>"
    assert html_text(page.encode()) == ("t", article.strip())
    assert html_text("<p>日本".encode("shift_jis"), charset="Shift_JIS") == ("", "日本")
    assert html_text(b"<p>x", charset="punycode") == html_text(b"<p>x", charset="no-such") == ("", "x")


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match="api_key_env"):
        SearchTool(backend="tavily", api_key_env="AXPO_NO_SUCH_VARIABLE")
