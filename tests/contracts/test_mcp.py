"""Tools of MCP servers: two real ones, and hostile ones over both transports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import ConfigError, MissingExtraError, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ClosableTool, ToolContext
from axpo.tools.mcp import McpTool, mcp_tools
from axpo.types import Content, FailureKind, ToolCall

SERVERS = Path(__file__).with_name("mcp_servers")
RAW = [sys.executable, str(SERVERS / "raw.py")]
Start = Callable[..., McpTool]


@pytest.fixture(autouse=True)
def others() -> Iterator[set[int]]:
    """Children from before the test. Of its own none is left after it."""
    before = children()
    yield before
    assert children() <= before


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server and gives its first tool."""
    started: list[McpTool] = []

    def start(**options: Any) -> McpTool:
        started.append(mcp_tools(**({"command": RAW, "max_result_mb": 1} | options))[0])
        return started[-1]

    yield start
    for tool in started:
        tool.close()


def children() -> set[int]:
    """Processes whose parent is this one, zombies included, but the workers that check schemas."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            is_child = int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid()
            if is_child and b"axpo.worker_process" not in stat.with_name("cmdline").read_bytes():
                found.add(int(stat.parent.name))
    return found


def context() -> ToolContext:
    return ToolContext(rollout_id="r", images=[], store=ContentImageStore())


async def acall(tool: McpTool, how: str, where: ToolContext | None = None) -> tuple[Content, ...]:
    return await tool.run(ToolCall(id="c", name=tool.spec.name, arguments={"how": how}), where or context())


def call(tool: McpTool, how: str, where: ToolContext | None = None) -> tuple[Content, ...]:
    return asyncio.run(acall(tool, how, where))


def text(tool: McpTool, how: str) -> str | None:
    (block,) = call(tool, how)
    return block.text


def deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return {"type": "object"} | schema


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not check() and time.monotonic() < deadline:
        time.sleep(0.02)
    return check()


# -- real servers -----------------------------------------------------------------------------------------------------


def test_the_time_server_of_pypi() -> None:
    tools = mcp_tools(name="time", command=[sys.executable, "-m", "mcp_server_time"], prefix="t_")
    try:
        now, convert = tools
        assert isinstance(now, ClosableTool)
        assert (now.spec.name, convert.spec.name) == ("t_get_current_time", "t_convert_time")
        assert now.spec.parameters["required"] == ["timezone"]
        arguments = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        (block,) = asyncio.run(convert.run(ToolCall(id="c", name="t_convert_time", arguments=arguments), context()))
        assert json.loads(block.text or "")["time_difference"] == "+9.0h"
        wrong = ToolCall(id="c", name="t_get_current_time", arguments={"timezone": "Atlantis"})
        with pytest.raises(ToolError, match=r"t_get_current_time: .*Atlantis") as caught:
            asyncio.run(now.run(wrong, context()))
        assert caught.value.kind == FailureKind.EXECUTION_ERROR
    finally:
        tools[0].close()


def test_the_git_server_of_pypi(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "bird.txt").write_text("owl")
    (status,) = mcp_tools(
        name="git", command=[sys.executable, "-m", "mcp_server_git", "-r", str(tmp_path)], tools=["git_status"]
    )
    try:
        ours = ToolCall(id="c", name="git_status", arguments={"repo_path": str(tmp_path)})
        (block,) = asyncio.run(status.run(ours, context()))
        assert "bird.txt" in (block.text or "")
        for path in ("/etc", 3, "\0"):  # a model's nonsense is its own fault
            with pytest.raises(ToolError):
                asyncio.run(status.run(ToolCall(id="c", name="git_status", arguments={"repo_path": path}), context()))
    finally:
        status.close()


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "texts"),
    [
        ("text", ["x"]),
        ("empty", ["(no output)"]),
        ("structured", ['{"n": 1, "name": "ü"}']),
        (
            "bombs",
            [
                "(an image that cannot be read is left out: DecompressionBombError)",
                "x",
                "(an image of 9000x9000 px is left out)",
            ],
        ),
        ("stripe", ["(an image of 2000x2 px is left out)"]),
        ("broken image", ["(an image that cannot be read is left out: UnidentifiedImageError)"]),
        ("chatty", ["x"]),
        ("megabytes on stderr", ["x"]),
        (
            "others",
            [
                "(audio is left out)",
                "inside",
                "(application/zip is left out)",
                "img_idx 0:",
                None,
                "(a link to file:///d)",
            ],
        ),
    ],
)
def test_results_become_blocks_of_the_dialogue(start: Start, how: str, texts: list[str | None]) -> None:
    assert [block.text for block in call(start(), how)] == texts


def test_pictures_are_announced_by_the_index_they_will_have(start: Start) -> None:
    where = context()
    where.images.append(call(start(), "images", where)[2].image)  # type: ignore[arg-type]  # it is a picture
    blocks = call(start(), "images", where)
    assert [block.text for block in blocks] == ["x", "img_idx 1:", None, "y", "img_idx 2:", None]
    sizes = [(b.image.width_px, b.image.height_px) for b in blocks if b.image is not None]
    assert sizes == [(5, 4), (3, 4)]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("error", FailureKind.EXECUTION_ERROR, r"act: no such bird"),
        ("invalid params", FailureKind.BAD_ARGUMENTS, r"act: because"),
        ("internal error", FailureKind.EXECUTION_ERROR, r"act: because"),
        ("own error", FailureKind.EXECUTION_ERROR, r"act: because"),
        ("huge", FailureKind.EXECUTION_ERROR, r"act: the result is larger than 1 MB\. Ask for less"),
        ("huge, id last", FailureKind.EXECUTION_ERROR, r"act: the result is larger than 1 MB\. Ask for less"),
    ],
)
def test_what_the_model_is_to_blame_for(start: Start, how: str, kind: FailureKind, message: str) -> None:
    tool = start()
    with pytest.raises(ToolError, match=message) as caught:
        call(tool, how)
    assert caught.value.kind == kind
    assert text(tool, "text") == "x"


@pytest.mark.parametrize("arguments", [{"how": "\ud800"}, {"how": float("nan")}, {"how": 10**5000}, {"how": {1, 2}}])
def test_arguments_that_json_cannot_carry_are_the_models_fault(start: Start, arguments: dict[str, Any]) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    tool = start()
    for each in (arguments, {"how": deep}):
        with pytest.raises(ToolError, match="cannot be sent") as caught:
            asyncio.run(tool.run(ToolCall(id="c", name="act", arguments=each), context()))
        assert caught.value.kind == FailureKind.BAD_ARGUMENTS


def offer(output_schema: Any) -> dict[str, str]:
    """Environment of a server whose tool promises results of this form."""
    schema = {"type": "object", "properties": {"how": {"type": "string"}}}
    return {"TOOLS": json.dumps([{"name": "act", "inputSchema": schema, "outputSchema": output_schema}])}


def test_a_result_that_breaks_the_servers_own_schema_is_a_fault(start: Start) -> None:
    tool = start(env=offer({"type": "object", "properties": {"name": {"type": "integer"}}}))
    with pytest.raises(ToolFault, match=r"answered with what is no result of act: 'ü' is not of type 'integer'"):
        call(tool, "structured")
    with pytest.raises(ToolFault, match=r"answered with what is no result of act: None is not of type 'object'"):
        call(tool, "text")
    with pytest.raises(ToolError, match="no such bird"):  # an error needs no structured content
        call(tool, "error")
    assert text(start(env=offer({"type": "object"})), "structured") == '{"n": 1, "name": "ü"}'


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"name": {"pattern": "^(a+)+$"}}},
        {
            "type": "object",
            "$ref": "#/$defs/f0",
            "$defs": {f"f{n}": {"allOf": [{"$ref": f"#/$defs/f{n + 1}"}] * 2} for n in range(40)} | {"f40": {}},
        },
    ],
)
def test_a_result_whose_check_takes_long_is_given_up(
    start: Start, schema: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = start(env=offer(schema))
    monkeypatch.setattr("axpo.tools.mcp.schema.CHECK_CPU_S", 0.3)

    async def together() -> tuple[Any, float]:
        """The call, and the longest time for which the event loop stood still meanwhile."""
        waiting, longest_s = asyncio.create_task(acall(tool, "backtracking")), 0.0
        while not waiting.done():
            before_s = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - before_s)
        return waiting.exception(), longest_s

    error, longest_s = asyncio.run(together())
    assert isinstance(error, ToolError) and error.kind == FailureKind.EXECUTION_ERROR
    assert str(error) == "act: the result cannot be checked: it takes too long"
    assert longest_s < 0.25


# -- faults of the server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("not a list", r"answered with what is no result of act"),
        ("unknown block", r"answered with what is no result of act"),
        ("no result", r"the answer is no JSON-RPC message"),
        ("surrogate", r"the answer is no JSON-RPC message"),
        ("no such method", r"answered act with an error: because"),
        ("die", r"was lost during a call of act: it ended, saying 'fatal: out of cheese'"),
        ("endless line", r"was lost during a call of act: it sent \d+ bytes without an answer"),
        ("endless notifications", r"was lost during a call of act: it sent \d+ bytes without an answer"),
        ("endless requests", r"was lost during a call of act: it sent \d+ requests without"),
    ],
)
def test_a_fault_of_the_server_is_ours_and_the_next_call_works(start: Start, how: str, message: str) -> None:
    tool = start()
    with pytest.raises(ToolFault, match=message) as caught:
        call(tool, how)
    assert caught.value.can_retry
    assert text(tool, "text") == "x"


def test_calls_that_lose_the_server_together_share_one_restart(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = start()
    first = text(tool, "pid")

    async def together() -> list[Any]:
        waiting = [asyncio.create_task(acall(tool, "hang")) for _ in range(8)]
        await asyncio.sleep(0)
        lost = await asyncio.gather(*waiting, acall(tool, "die"), return_exceptions=True)
        assert {type(each) for each in lost} == {ToolFault}
        return await asyncio.gather(*(acall(tool, "pid") for _ in range(8)))

    pids = {blocks[0].text for blocks in asyncio.run(together())}
    assert len(pids) == 1 and pids != {first}


def test_a_server_killed_between_two_calls_is_started_again(start: Start, others: set[int]) -> None:
    tool = start()
    pid = int(text(tool, "pid") or "")
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert eventually(lambda: children() <= others)
    assert text(tool, "pid") != str(pid)


def test_arguments_that_take_the_server_down_again_and_again_are_the_models_fault(start: Start) -> None:
    tool = start()
    assert text(tool, "text") == "x"
    for _ in range(2):
        with pytest.raises(ToolFault):
            call(tool, "die")
    pid = text(tool, "pid")
    for _ in range(2):
        with pytest.raises(ToolError, match=r"act: these arguments make it crash or hang\. Use others\.") as caught:
            call(tool, "die")
        assert caught.value.kind == FailureKind.EXECUTION_ERROR
    assert text(tool, "pid") == pid  # it died on a server of its own


def test_a_call_given_up_leaves_the_session_usable(start: Start) -> None:
    tool = start()
    pid = text(tool, "pid")

    async def given_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(acall(tool, "hang"), 0.2)

    asyncio.run(given_up())
    assert text(tool, "pid") == pid


def test_a_call_that_takes_too_long_is_the_models_while_the_server_answers_others(start: Start) -> None:
    tool = start(call_timeout_s=1)
    pid = text(tool, "pid")
    with pytest.raises(ToolError, match=r"act: no result within 1 s") as caught:
        call(tool, "hang")
    assert caught.value.kind == FailureKind.TIMEOUT
    assert text(tool, "pid") == pid


def test_calls_without_an_answer_of_a_server_that_hangs_are_no_fault_of_the_model(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.tools.mcp.connection.PROBE_TIMEOUT_S", 0.2)
    tool = start(call_timeout_s=1)
    pid = int(text(tool, "pid") or "")

    async def together() -> list[Any]:
        os.kill(pid, signal.SIGSTOP)
        return await asyncio.gather(*(acall(tool, how) for how in ("text", "pid", "cwd")), return_exceptions=True)

    outcomes = asyncio.run(together())
    assert {type(each) for each in outcomes} == {ToolFault}
    assert "was lost during a call of act: it no longer answered after a call was given up" in str(outcomes[0])
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert text(tool, "text") == "x"


def test_a_call_that_makes_the_server_hang_again_and_again_is_the_models(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.tools.mcp.connection.PROBE_TIMEOUT_S", 0.2)
    tool = start(call_timeout_s=1)
    assert text(tool, "text") == "x"
    for _ in range(2):
        with pytest.raises(ToolFault, match="it no longer answered"):
            call(tool, "wedge")
    for _ in range(2):  # the second time it is known
        with pytest.raises(ToolError, match=r"act: these arguments make it crash or hang\. Use others\."):
            call(tool, "wedge")
        monkeypatch.setattr("axpo.tools.mcp.server.Connection", None)


def test_waiting_for_a_restart_is_not_the_rollouts_time(start: Start) -> None:
    tool, where = start(), context()
    assert call(tool, "text", where)[0].text == "x"
    assert where.waited_s < 0.01
    with pytest.raises(ToolFault):
        call(tool, "die")
    assert call(tool, "text", where)[0].text == "x"
    assert where.waited_s > 0.01  # a process was started


def test_a_server_of_its_own_is_waited_for_in_bounds_and_at_our_cost(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.tools.mcp.server.MAX_LONE_SERVERS", 1)
    monkeypatch.setattr("axpo.tools.mcp.server.LONE_WAIT_S", 0.01)
    tool = start(call_timeout_s=2)
    assert text(tool, "text") == "x"
    places = [context(), context()]

    async def together(*further: str) -> list[Any]:
        slow = [ToolCall(id="c", name="act", arguments={"how": "hang", "n": n}) for n in range(2)]
        runs = [tool.run(each, place) for each, place in zip(slow, places, strict=True)]
        return await asyncio.gather(*runs, *(acall(tool, how) for how in further), return_exceptions=True)

    for _ in range(2):
        assert {type(each) for each in asyncio.run(together("die"))} == {ToolFault}
    before_s = [place.waited_s for place in places]
    tried, untried = asyncio.run(together())
    assert isinstance(tried, ToolError) and tried.kind == FailureKind.TIMEOUT
    assert isinstance(untried, ToolFault) and "wait for a server of their own" in str(untried)
    assert all(place.waited_s > before for place, before in zip(places, before_s, strict=True))


def test_a_server_that_comes_back_with_other_tools_is_a_fault(start: Start, tmp_path: Path) -> None:
    listing = tmp_path / "tools.py"
    listing.write_text("import os, sys\nos.environ['TOOLS'] = open(sys.argv[1]).read()\n")
    tools = tmp_path / "tools.json"
    schema = {"type": "object", "properties": {"how": {"type": "string"}}}
    tools.write_text(json.dumps([{"name": "act", "inputSchema": schema}]))
    program = f"import os, sys; os.environ['TOOLS'] = open({str(tools)!r}).read(); os.execv(sys.executable, {RAW!r})"
    tool = start(command=[sys.executable, "-c", program])
    tools.write_text(json.dumps([{"name": "react", "inputSchema": schema}]))
    with pytest.raises(ToolFault, match="was lost"):
        call(tool, "die")
    with pytest.raises(ToolFault, match=r"its tools are no longer those that the model was told|react"):
        call(tool, "text")


@pytest.mark.skipif(sys.platform != "linux", reason="resets the kernel's peak of this process")
@pytest.mark.parametrize("how", ["endless line", "endless notifications"])
def test_memory_stays_bounded_under_a_flood(start: Start, how: str) -> None:
    def peak_kb() -> int:
        (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1])

    tool = start()
    Path("/proc/self/clear_refs").write_text("5")
    before_kb = peak_kb()
    with pytest.raises(ToolFault):
        call(tool, how)
    assert peak_kb() - before_kb < 32 * 1024


def test_a_closed_server_is_a_fault_and_takes_waiting_calls_along(start: Start) -> None:
    tool = start()

    async def close_during_a_call() -> None:
        waiting = asyncio.create_task(acall(tool, "hang"))
        await asyncio.sleep(0)
        await asyncio.to_thread(tool.close)
        with pytest.raises(ToolFault, match=r"lost|closed"):
            await waiting

    asyncio.run(close_during_a_call())
    with pytest.raises(ToolFault, match="is closed") as caught:
        call(tool, "text")
    assert not caught.value.can_retry


# -- processes --------------------------------------------------------------------------------------------------------


def test_the_server_sees_no_secret_of_ours(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AXPO_SECRET", "s3cret")
    monkeypatch.setenv("AXPO_TOKEN", "t0ken")
    tool = start(env={"LEVEL": "3"}, env_from=["AXPO_TOKEN"], cwd=str(tmp_path))
    environment = json.loads(text(tool, "environment") or "")
    assert "s3cret" not in environment.values()
    assert (environment["LEVEL"], environment["AXPO_TOKEN"]) == ("3", "t0ken")
    allowed = {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LEVEL", "AXPO_TOKEN", "LC_CTYPE"}
    assert set(environment) <= allowed
    assert text(tool, "cwd") == str(tmp_path)


TRAINER = """
import asyncio, sys, time
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.mcp import mcp_tools
from axpo.types import ToolCall
(tool,) = mcp_tools(command=sys.argv[1:])
context = ToolContext(rollout_id="r", images=[], store=ContentImageStore())
(block,) = asyncio.run(tool.run(ToolCall(id="c", name="act", arguments={"how": "pid"}), context))
print(block.text, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_no_process_outlives_a_killed_trainer() -> None:
    # the process that answers is in a session of its own and ignores the end of its input
    command = [sys.executable, "-c", TRAINER, *RAW, "ignores the end of its input"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        trainer.kill()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_close_ends_a_server_that_does_not_want_to_leave(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.tools.mcp.stdio.GRACE_S", 0.3)
    tool = start(command=[*RAW, "ignores the end of its input"])
    pid = text(tool, "pid")
    tool.close()
    assert not Path(f"/proc/{pid}").exists()


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": ["no-such-program"]}, r"MCP server mcp: there is no program 'no-such-program'\. Install it"),
        ({"command": [*RAW, "dies at start"]}, r"(?s)raw\.py dies at start' cannot be used: .*no licence found"),
        ({"command": [*RAW, "silent"], "start_timeout_s": 1}, r"(?s)did not answer within 1 s; it printed:.*a sign"),
        ({"command": RAW, "tools": ["fly"]}, r"it has no tool 'fly'\. It offers act\."),
        ({"command": RAW, "prefix": "my birds "}, r"a tool is called 'my birds act'; a name has 1 to 64"),
        ({"command": RAW, "cwd": "/no/such/folder"}, r"cwd '/no/such/folder' is no folder"),
        ({"command": RAW, "env_from": ["AXPO_UNSET"]}, r"the environment variable AXPO_UNSET is not set"),
        ({"command": "raw.py"}, r"command is 'raw\.py'\. It is a list of texts"),
        ({"command": RAW, "env": {"A": 3}}, r"env does not have texts only"),
        ({}, r"needs either command or url"),
        ({"command": RAW, "url": "http://127.0.0.1:1/mcp"}, r"needs either command or url"),
        ({"url": "127.0.0.1:1/mcp"}, r"url is '127\.0\.0\.1:1/mcp'\. It starts with http://"),
        ({"url": "http://127.0.0.1:1/mcp", "env": {"A": "b"}}, r"are for a command, and it has a url"),
        ({"command": RAW, "headers_env": {"A": "B"}}, r"headers_env is for a url"),
        ({"command": RAW, "comand": RAW}, r"there is no option 'comand'; there are name, command, .*Correct it"),
        ({"command": RAW, "prefix": 3}, r"prefix is 3\. It is a text"),
        ({"command": RAW, "call_timeout_s": "60"}, r"call_timeout_s is '60'\. It is a number above 0"),
        ({"url": "http://127.0.0.1:1/mcp", "headers_env": {"A": "AXPO_UNSET"}}, r"variable AXPO_UNSET is not set"),
        ({"command": RAW, "call_timeout_s": 0}, r"call_timeout_s is 0\. It is a number above 0"),
        ({"command": RAW, "call_timeout_s": 900.0}, r"call_timeout_s is 900\.0\. It is a number above 0, at most 300"),
        ({"url": "http://127.0.0.1:1/mcp"}, r"'http://127\.0\.0\.1:1/mcp' cannot be used: .*ConnectError"),
    ],
)
def test_a_server_that_cannot_be_used_is_a_config_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mcp_tools(**options)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([], r"it offers no tools"),
        ([{"name": "a b", "inputSchema": {"type": "object"}}], r"a tool is called 'a b'"),
        ([{"name": "a", "inputSchema": {"type": "object"}}] * 2, r"it has two tools called 'a'"),
        ([{"name": "a", "inputSchema": {"type": "array"}}], r"array"),
        ([{"name": "a", "inputSchema": {"type": "object", "properties": 3}}], r"a"),
        ([{"name": "a", "inputSchema": {"type": "object", "required": 3}}], r"a"),
        (
            [{"name": "a", "inputSchema": {"type": "object", "properties": {"b": {"type": "strin"}}}}],
            r"the argument schema of a is no JSON schema: 'strin'",
        ),
        (
            [{"name": "a", "inputSchema": {"type": "object", "properties": {"b": {"$ref": "http://h/s"}}}}],
            r"the argument schema of a refers to 'http://h/s', which is not in it\. Choose other tools",
        ),
        (
            [{"name": "a", "inputSchema": {"type": "object", "anyOf": [{}] * 26_000}}],
            r"MCP server mcp: the argument schema of a has 1\d+ characters, more than 100000\. Choose other tools",
        ),
        (
            [{"name": "a", "inputSchema": {"type": "object"}, "outputSchema": deep_schema(70)}],
            r"MCP server mcp: the result schema of a is nested more than 64 levels deep\. Choose other tools",
        ),
        ("x", r"tools"),
    ],
)
def test_tools_that_no_model_can_be_offered_are_a_config_error(tools: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mcp_tools(command=RAW, env={"TOOLS": json.dumps(tools)})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'axpo\[mcp\]'"):
        mcp_tools(command=RAW)


# -- streamable HTTP --------------------------------------------------------------------------------------------------


class Birds:
    """The server of `birds.py` on a port of its own."""

    def __init__(self, mode: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.mode = mode
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SERVERS / "birds.py"), str(self.port), self.mode]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        assert eventually(self.is_listening)

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["stateful", "json"])
def birds(request: pytest.FixtureRequest) -> Iterator[Birds]:
    server = Birds(request.param)
    yield server
    server.stop()


def test_a_server_over_http(birds: Birds) -> None:
    (tool,) = mcp_tools(url=birds.url, max_result_mb=1)
    try:
        assert tool.spec.description == "Does what it is told."
        assert text(tool, "hello") == "hello"
        announced, picture = call(tool, "picture")
        assert announced.text == "img_idx 0:" and picture.image is not None and picture.image.width_px == 1
        with pytest.raises(ToolError, match="no such bird"):
            call(tool, "raise")
        with pytest.raises(ToolError, match=r"act: the result is larger than 1 MB"):
            call(tool, "huge")
        assert text(tool, "hello") == "hello"
    finally:
        tool.close()


def test_a_server_over_http_that_dies_is_a_fault_until_it_is_back(birds: Birds) -> None:
    (tool,) = mcp_tools(url=birds.url)
    try:
        for _ in range(3):  # never the model's fault: the server is not ours to try out
            with pytest.raises(ToolFault):
                call(tool, "die")
        birds.stop()
        with pytest.raises(ToolFault):
            call(tool, "hello")
        birds.start()

        def is_back() -> bool:
            with contextlib.suppress(ToolFault):
                return text(tool, "hello") == "hello"
            return False

        assert eventually(is_back)
    finally:
        tool.close()


def test_a_server_over_http_that_hangs_is_a_fault_until_it_goes_on(
    birds: Birds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.tools.mcp.connection.PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("axpo.tools.mcp.connection.CLOSE_TIMEOUT_S", 0.1)
    (tool,) = mcp_tools(url=birds.url, call_timeout_s=2, start_timeout_s=10)
    try:
        with pytest.raises(ToolError, match="no result within 2 s"):
            call(tool, "hang")
        birds.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ToolFault, match="it no longer answered"):
            call(tool, "hello")
        birds.process.send_signal(signal.SIGCONT)
        assert text(tool, "hello") == "hello"
    finally:
        tool.close()


class NeverLetsGo(BaseHTTPRequestHandler):
    """Speaks MCP of 2025 with sessions; a request to end one is never answered."""

    was_asked_to_end = threading.Event()
    let_go = threading.Event()

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))), {})

    def reply(self, request: Any, further: dict[str, Any]) -> None:
        answers = further | {
            "initialize": {
                "result": {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "clingy", "version": "1"},
                }
            },
            "tools/list": {"result": {"tools": [{"name": "act", "inputSchema": {"type": "object"}}]}},
        }
        unknown = {"error": {"code": -32601, "message": "no such method"}}
        answer = {"jsonrpc": "2.0", "id": request.get("id"), **answers.get(request["method"], unknown)}
        body = json.dumps(answer).encode() if "id" in request else b""
        self.send_response(200 if body else 202)
        for header, value in {
            "Content-Type": "application/json",
            "Mcp-Session-Id": "s",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self) -> None:
        self.was_asked_to_end.set()
        self.let_go.wait()

    def log_message(self, format: str, *args: Any) -> None: ...


def test_close_ends_a_session_that_does_not_want_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.tools.mcp.connection.CLOSE_TIMEOUT_S", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), NeverLetsGo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            (tool,) = mcp_tools(url=f"http://127.0.0.1:{server.server_port}/mcp")
            tool.close()
            assert NeverLetsGo.was_asked_to_end.is_set()
        finally:
            NeverLetsGo.let_go.set()
            server.shutdown()


class Floods(NeverLetsGo):
    """Speaks MCP with sessions and breaks its rules in the way that `mode` says, until `let_go`."""

    mode = ""
    num_requests = 0
    num_open = 0
    let_go = threading.Event()
    PING = b'data: {"jsonrpc": "2.0", "id": "p%d", "method": "ping"}\n\n'

    def do_GET(self) -> None:
        type(self).num_requests += 1
        if self.mode == "retry":
            self.stream(lambda: False)
        elif self.mode in ("pings", "comments"):
            data = self.PING % self.num_requests if self.mode == "pings" else b":" + b"a" * 4096 + b"\n"
            type(self).num_open += 1
            self.stream(lambda: self.chunk(data) and not self.let_go.wait(0.02))
            type(self).num_open -= 1
        else:
            self.send_error(405)

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        request = json.loads(self.rfile.read(length))
        if "result" in request or "error" in request:  # of our pings: never answered
            self.let_go.wait()
        elif request.get("method") == "tools/call" and request["params"]["arguments"] != {"how": "hello"}:
            type(self).num_open += 1
            with contextlib.suppress(OSError):
                self.misbehave()
            type(self).num_open -= 1
        else:
            answer = {"content": [{"type": "text", "text": "hello"}]}
            self.reply(request, {"tools/call": {"result": answer}})

    def misbehave(self) -> None:
        if self.mode == "continue":
            while not self.let_go.is_set():
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
                time.sleep(0.005)
        elif self.mode == "retry":
            self.stream(lambda: False)
        elif self.mode == "pings in a call":
            self.stream(lambda: self.chunk(self.PING % self.num_requests) and not self.let_go.wait(0.001))

    def stream(self, more: Callable[[], bool]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"id: 1\nretry: 0\ndata:\n\n")
        while not self.let_go.is_set() and more():
            type(self).num_requests += 1

    def chunk(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            return False
        return True


@pytest.fixture
def floods(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., McpTool]]:
    monkeypatch.setattr("axpo.tools.mcp.http.ABORT_GRACE_S", 0.2)
    monkeypatch.setattr("axpo.tools.mcp.connection.CLOSE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("axpo.tools.mcp.connection.PROBE_TIMEOUT_S", 1.0)
    started: list[McpTool] = []
    Floods.let_go.clear()
    Floods.num_requests = Floods.num_open = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Floods) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def start(mode: str, **options: Any) -> McpTool:
            Floods.mode = mode
            url = f"http://127.0.0.1:{server.server_port}/mcp"
            started.append(mcp_tools(**{"url": url, "call_timeout_s": 0.5, "start_timeout_s": 5.0} | options)[0])
            return started[-1]

        yield start
        Floods.let_go.set()
        for tool in started:
            tool.close()
        server.shutdown()


@pytest.mark.parametrize("mode", ["continue", "retry", "hang"])
def test_the_request_of_a_call_that_was_given_up_is_ended(floods: Callable[..., McpTool], mode: str) -> None:
    tool = floods(mode)

    async def together() -> list[Any]:
        return await asyncio.gather(*(acall(tool, "misbehave") for _ in range(4)), return_exceptions=True)

    outcomes = asyncio.run(together())
    assert {type(each) for each in outcomes} <= {ToolError, ToolFault}
    # they last for as long as the longest call may take; then only the stream on which a server may speak is left
    assert eventually(lambda: Floods.num_open == 0)
    time.sleep(5.5 if mode == "retry" else 0)
    num_requests = Floods.num_requests
    time.sleep(1.2)
    assert Floods.num_requests - num_requests <= 4
    assert num_requests <= 5 * 2 * 7
    assert text(tool, "hello") == "hello"


@pytest.mark.parametrize("mode", ["pings", "comments"])
def test_a_server_that_floods_between_two_calls_is_cut_off(floods: Callable[..., McpTool], mode: str) -> None:
    tool = floods(mode, max_result_mb=0.05)

    def connection() -> Any:
        return tool._server._connection  # pyright: ignore[reportPrivateUsage]

    first = connection()
    assert eventually(lambda: not first.is_open)
    assert "without" in first._log.cut_off
    assert eventually(lambda: Floods.num_open == 0)
    Floods.mode = ""
    assert text(tool, "hello") == "hello"


def test_a_server_that_floods_a_call_with_requests_is_cut_off(floods: Callable[..., McpTool]) -> None:
    tool = floods("pings in a call", call_timeout_s=20.0)
    with pytest.raises(
        ToolFault, match=r"was lost during a call of act: it sent \d+ requests without reading an answer"
    ):
        call(tool, "misbehave")
    assert Floods.num_requests < 20_000


class Hostile(threading.Thread):
    """Answers every HTTP request by the same bytes, the last of them without end if asked to."""

    def __init__(self, answer: bytes, *, endless: bytes = b"") -> None:
        super().__init__(daemon=True)
        self.answer, self.endless = answer, endless
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/mcp"
        self.requests: list[bytes] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.requests.append(connection.recv(2**16))
            connection.sendall(self.answer)
            while self.endless:
                connection.sendall(self.endless)


JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
SSE = JSON.replace(b"application/json", b"text/event-stream")


@pytest.mark.parametrize(
    ("answer", "endless"),
    [
        (JSON, b"a" * 65536),
        (SSE, b"a" * 65536),
        (SSE, b'data: {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "a"}}\n\n' * 100),
        (JSON.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), b"a" * 65536),
        (JSON + b"garbage", b""),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", b""),
        (b"garbage", b""),
        (b"", b""),
    ],
)
def test_a_hostile_endpoint_is_a_config_error(answer: bytes, endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXPO_AUTH", "Bearer t0ken")
    server = Hostile(answer, endless=endless)
    with pytest.raises(ConfigError, match="cannot be used"):
        mcp_tools(url=server.url, max_result_mb=0.1, start_timeout_s=10, headers_env={"Authorization": "AXPO_AUTH"})
    assert b"authorization: bearer t0ken" in server.requests[0].lower()
    server.listener.close()
