"""`axpo watch` in a real browser and by hand-made requests: pages follow the run, and nothing else comes out."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.cli import watch
from axpo.cli.watch import WatchServer, run_watch
from axpo.diagnostics.recorder import read_metrics, rollout_files
from axpo.errors import ConfigError, DataError
from axpo.reports.live import LOOKED_AT_S, LiveReport
from synthetic_run import write_run

NUM_STEPS = 6
GONE = "Failed to load resource: net::ERR_"
"""A page may outlive its server, and says so itself."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done."""
    run = tmp_path_factory.mktemp("runs") / "axpo-0"
    write_run(run, method="axpo", num_steps=NUM_STEPS, num_questions=3, eval_steps=(0,))
    return run


def copy_until(whole: Path, run: Path, step: int) -> None:
    """The run as it was after a step."""
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("rollouts", "metrics.jsonl"))
    (run / "rollouts").mkdir()
    append(whole, run, 0, step)


def append(whole: Path, run: Path, first: int, last: int) -> None:
    """What training writes from one step to another, in its order: rollouts, then the line of metrics."""
    for record in read_metrics(whole):
        if first <= record["step"] <= last:
            source = rollout_files(whole, record["kind"])[record["step"]]
            shutil.copy(source, run / "rollouts" / f"{source.name}.partial")
            (run / "rollouts" / f"{source.name}.partial").rename(run / "rollouts" / source.name)
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")


@contextmanager
def serving(*runs: Path, **options: Any) -> Iterator[WatchServer]:
    server = WatchServer(LiveReport(run_dirs=runs, poll_ms=50, still_ms=0, **options))
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server(whole: Path) -> Iterator[WatchServer]:
    """Of the finished run."""
    with serving(whole) as started:
        yield started


def ask(server: WatchServer, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body, headers; the path is sent as it is."""
    _, address = server.url.rstrip("/").split("//")
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, body, {name.lower(): value for name, value in reply.getheaders()}


def send_raw(server: WatchServer, data: bytes) -> bytes:
    host, port = server.url.rstrip("/").split("//")[1].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# -- what comes out ---------------------------------------------------------------------------------------------------


def picture_of(run: Path) -> Path:
    return next((run / "images").glob("*.png"))


def test_a_picture_comes_by_its_hash_with_its_type(server: WatchServer, whole: Path) -> None:
    path = picture_of(whole)
    status, body, headers = ask(server, f"/images/{path.name}")
    assert (status, body, headers["content-type"]) == (200, path.read_bytes(), "image/png")
    assert headers["x-content-type-options"] == "nosniff" and "sandbox" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_head_is_get_without_the_body(server: WatchServer) -> None:
    status, body, headers = ask(server, "/status", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) == len(ask(server, "/status")[1])


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(server: WatchServer, method: str) -> None:
    status, _, headers = ask(server, "/", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_a_method_that_nobody_knows_is_refused(server: WatchServer) -> None:
    assert send_raw(server, b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n").split()[1] == b"501"


@pytest.mark.parametrize(
    "path",
    [
        "/config.toml",
        "/metrics.jsonl",
        "/rollouts/",
        "/images",
        "/images/",
        "/images/../config.toml",
        "/images/%2e%2e/config.toml",
        "/images/..%2fconfig.toml",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/images//etc/passwd",
        "/images/" + "a" * 64,
        "/images/" + "a" * 64 + ".png",
        "/images/" + "A" * 64 + ".png",
        "/images/" + "a" * 64 + ".png/../../config.toml",
        "/images/" + "a" * 64 + ".jsonl",
        "/images/" + "a" * 63 + "\x00.png",
        "/status/",
        "/status?x",
        "http://localhost/",
        "*",
        "/" + "a" * 60_000,
    ],
    ids=lambda path: path[:40].replace("\x00", "NUL"),
)
def test_no_path_leads_to_a_file(server: WatchServer, whole: Path, path: str) -> None:
    reply = send_raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert reply.split()[1] == b"404", reply[:200]
    assert b"[run]" not in reply and b"root:" not in reply


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "[::2]",
        "",
        "a b",
    ],
)
def test_a_name_that_is_not_this_machine_is_refused(server: WatchServer, host: str) -> None:
    for path in ("/", "/status", "/images/" + "a" * 64 + ".png"):
        assert ask(server, path, Host=host)[0] == 403
    assert ask(server, "/", "POST", Host=host)[0] == 405


def test_this_machine_has_several_names_and_ports(server: WatchServer) -> None:
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:8000", "127.1.2.3", "[::1]:80"):
        assert ask(server, "/status", Host=host)[0] == 200
    assert send_raw(server, b"GET /status HTTP/1.0\r\n\r\n").split()[1] == b"403"
    two = b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert send_raw(server, two).split()[1] == b"403"


def test_only_plain_pictures_of_the_run_are_served(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_until(whole, run, 1)
    outside = tmp_path / "outside.png"
    Image.new("RGB", (9, 9), "red").save(outside)

    def put(data: bytes, suffix: str = "png") -> Path:
        path = run / "images" / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        path.write_bytes(data)
        return path

    link = run / "images" / f"{hashlib.sha256(outside.read_bytes()).hexdigest()}.png"
    link.symlink_to(outside)
    html = put(b"<script>alert(1)</script>")
    svg = put(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    lying = put(outside.read_bytes() + b"\0", "gif")
    other = run / "images" / f"{'0' * 64}.png"
    other.write_bytes(outside.read_bytes())
    with serving(run) as server:
        for path in (link, html, svg, other):
            assert ask(server, f"/images/{path.name}")[0] == 404, path
        status, _, headers = ask(server, f"/images/{lying.name}")
        assert (status, headers["content-type"]) == (200, "image/png")  # what it is, not what it says
        link.unlink()
        link.write_bytes(outside.read_bytes())
        assert ask(server, f"/images/{link.name}")[0] == 200  # it was the link that was refused


def test_connections_are_bounded_and_a_silent_one_holds_up_nobody(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_CONNECTIONS", 2)
    with serving(whole) as server, ExitStack() as stack:
        address = ("127.0.0.1", int(server.url.rstrip("/").rsplit(":", 1)[1]))
        stack.enter_context(socket.create_connection(address))
        assert ask(server, "/status")[0] == 200
        stack.enter_context(socket.create_connection(address))
        third = stack.enter_context(socket.create_connection(address, timeout=20))
        assert third.recv(1) == b""  # closed at once


# -- starting and ending ----------------------------------------------------------------------------------------------


def test_watching_needs_no_more_than_a_name(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def look() -> None:
        url = capsys.readouterr().out.split(" at ")[1].split(";")[0]
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
        connection.request("GET", "/")
        seen.append(connection.getresponse().status)
        connection.close()
        raise KeyboardInterrupt

    assert run_watch([whole, tmp_path / "later"], port=0, wait=look) == 0
    assert seen == [200]
    assert capsys.readouterr().out == "\nended\n"
    assert not [thread for thread in threading.enumerate() if thread.name == "axpo-watch-http" and thread.is_alive()]


def test_what_cannot_work_is_said_before_anything_starts(whole: Path, server: WatchServer) -> None:
    with pytest.raises(DataError, match="not a folder"):
        run_watch([whole / "config.toml"])
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 is not this machine"):
        run_watch([whole], host="0.0.0.0")
    with pytest.raises(ConfigError, match="cannot listen at 127"):
        run_watch([whole], port=int(server.url.rstrip("/").rsplit(":", 1)[1]))
    with pytest.raises(ConfigError, match="cannot listen at 127"):
        run_watch([whole], port=70_000)


# -- when it renders --------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_renders_only_what_changed_while_somebody_looks(whole: Path, tmp_path: Path) -> None:
    run, clock = tmp_path / "run", Clock()
    copy_until(whole, run, 2)
    report = LiveReport(run_dirs=(run,), clock=clock)
    waiting = report.snapshot().version
    assert report.check() and report.snapshot().version != waiting
    assert not report.check()
    append(whole, run, 3, 3)
    clock.now += LOOKED_AT_S + 1
    assert not report.check()  # nobody looks
    before = report.status()["version"]
    assert report.check() and report.status()["version"] != before
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "model.bin").write_bytes(b"weights")
    assert not report.check()


def test_it_rests_after_rendering(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = tmp_path / "run", Clock()
    copy_until(whole, run, 1)
    report = LiveReport(run_dirs=(run,), clock=clock)

    def slow(*arguments: Any, **options: Any) -> str:
        clock.now += 5
        return "page"

    monkeypatch.setattr("axpo.reports.live.build_page", slow)
    assert report.check()
    append(whole, run, 2, 2)
    clock.now += 19
    assert not report.check()
    clock.now += 2
    assert report.check()


def test_requests_do_not_wait_for_the_page(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_end = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> str:
        started.set()
        may_end.wait(30)
        return "page"

    monkeypatch.setattr("axpo.reports.live.build_page", slow)
    with serving(whole) as server:
        assert started.wait(20)
        assert b"Reading the run" in ask(server, "/")[1]
        assert ask(server, "/status")[0] == 200
        may_end.set()


def test_half_a_line_is_not_read_and_a_broken_one_leaves_the_page_as_it_was(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_until(whole, run, 2)
    report = LiveReport(run_dirs=(run,), clock=(clock := Clock()))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert report.check() and report.status()["message"] == ""
    good = report.snapshot()
    assert b'"steps":[1,2]' in good.page
    (run / "rollouts" / "train-000002.jsonl").write_text("no record\n")
    clock.now += 1000
    report.snapshot()
    assert report.check()
    assert report.snapshot() == good and "train-000002.jsonl:1: not a rollout record" in report.status()["message"]
    shutil.copy(rollout_files(whole, "train")[2], run / "rollouts")
    clock.now += 1000
    report.snapshot()
    assert report.check() and report.status()["message"] == "" and report.snapshot().version != good.version


def test_a_run_is_only_read(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_until(whole, run, 3)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(tmp_path.rglob("*"))}
    assert LiveReport(run_dirs=(run,)).check()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(tmp_path.rglob("*"))} == before


# -- in a browser -----------------------------------------------------------------------------------------------------

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a view of a server. Whatever a page complains about or asks for from elsewhere fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def start(server: WatchServer, view: str = "overview", width: int = 1280, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: complaints.extend([message.text] * (GONE not in message.text)))
        page.on(
            "request",
            lambda r: complaints.extend([] if r.url.startswith((server.url, "data:", "blob:")) else [r.url]),
        )
        page.goto(f"{server.url}#{view}")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def at_step(step: int) -> str:
    return f"#live:has-text('step {step}')"


def test_a_page_waits_for_a_run_and_then_follows_it(open_page: Open, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serving(run) as server:
        page = open_page(server, "curves")
        page.wait_for_selector("h1:has-text('Waiting for the first step')")
        assert page.locator(".awaited li").all_inner_texts() == [f"{run}\nnot there yet"]
        copy_until(whole, run, 2)
        page.wait_for_selector(at_step(2))
        page.wait_for_selector("#curves:not([hidden]) .chart canvas")
        append(whole, run, 3, 3)
        page.wait_for_selector(at_step(3))
        assert "step 3" in page.locator(".readout").first.inner_text()


def test_the_view_is_kept_when_a_step_comes(open_page: Open, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_until(whole, run, 4)
    with serving(run) as server:
        page = open_page(server, "rollouts?kind=train", color_scheme="light")
        page.wait_for_selector(".talk")
        page.locator("#theme").click()
        page.locator("#filters [name=from]").fill("2")
        group = page.locator("#groups button", has_text="step 4").last
        group.click()
        page.locator(".leaf").nth(1).click()
        page.locator(".modes label", has_text="Mask").click()
        page.wait_for_selector(".tok.mask-learns")
        page.evaluate("scrollTo(0, 300)")
        shown = page.locator(".pane").inner_text()
        hash_before, y = page.evaluate("[location.hash, scrollY]")
        assert "step 4" in shown and y > 100
        append(whole, run, 5, 5)
        page.wait_for_selector(at_step(5))
        page.wait_for_function("(y) => scrollY === y", arg=y)
        assert page.evaluate("location.hash") == hash_before
        assert page.locator(".pane").inner_text() == shown
        assert page.locator("#filters [name=from]").input_value() == "2"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        assert page.locator("#groups button", has_text="step 5").count() > 0


def test_a_page_that_is_held_still_says_that_there_is_more(open_page: Open, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_until(whole, run, 2)
    with serving(run) as server:
        page = open_page(server)
        page.wait_for_selector(at_step(2))
        page.locator("#live").click()
        append(whole, run, 3, 3)
        page.wait_for_selector("#live:has-text('paused · step 2 · newer')")
        page.locator("#live").click()
        page.wait_for_selector(at_step(3))


def test_a_broken_record_and_a_server_that_ended_are_told(open_page: Open, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy_until(whole, run, 2)
    with serving(run) as server:
        page = open_page(server)
        page.wait_for_selector(at_step(2))
        (run / "rollouts" / "train-000002.jsonl").write_text("no record <b>\n")
        page.wait_for_selector("#live:has-text('! live')")
        assert "not a rollout record" in page.locator("#live").get_attribute("title")
        page.context.set_offline(True)
        page.wait_for_selector("#live:has-text('not connected')")


def test_full_pictures_open_from_the_server(open_page: Open, whole: Path) -> None:
    with serving(whole) as server:
        page = open_page(server, "rollouts")
        page.wait_for_selector(".picture img")
        link = page.locator(".detail a[href^='images/']").first
        size = page.evaluate(
            "(url) => new Promise((done) => Object.assign(new Image(), "
            "{ onload: (event) => done(event.target.naturalWidth), src: url }))",
            link.get_attribute("href"),
        )
        assert size == 640
        with page.context.expect_page() as opened:
            link.click()
        opened.value.wait_for_load_state()
        assert opened.value.evaluate("document.images[0].naturalWidth") == 640


def test_two_runs_are_compared_once_the_second_begins(open_page: Open, whole: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    copy_until(whole, first, 2)
    with serving(first, second) as server:
        page = open_page(server, "runs")
        page.wait_for_selector("#live[title*='two: not there yet']")
        assert page.locator("#runs tbody tr").count() == 1
        copy_until(whole, second, 1)
        page.wait_for_selector("#runs tbody tr >> nth=1")
        page.wait_for_selector("#live[title^='This page follows']")


def test_a_run_whose_last_step_is_recorded_is_finished(whole: Path, tmp_path: Path) -> None:
    run, clock = tmp_path / "run", Clock()
    copy_until(whole, run, 2)
    report = LiveReport(run_dirs=(run,), clock=clock)
    assert report.check() and report.status()["finished"] == ""
    done = LiveReport(run_dirs=(whole,), clock=clock)
    assert done.check() and done.status()["finished"] == "yes"
    assert LiveReport(run_dirs=(whole, tmp_path / "later"), clock=clock).status()["finished"] == ""


def test_a_run_that_is_not_there_is_named_with_the_nearest_that_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mini_axpo").mkdir()
    (tmp_path / "mini_axpo" / "config.toml").touch()
    run_watch([tmp_path / "mini_apxo"], wait=lambda: None)
    told = f"{tmp_path / 'mini_apxo'}: not there yet. Waiting for it. Did you mean {tmp_path / 'mini_axpo'}?\n"
    assert capsys.readouterr().out.startswith(told)
