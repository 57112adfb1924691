"""Tools made of classes with one instance for each rollout."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from transformers.utils import get_json_schema

from axpo.errors import ConfigError, QuotaError, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import StatefulTool, ToolContext
from axpo.tools.function import FunctionTool
from axpo.tools.stateful import StatefulFunctionTool
from axpo.types import Content, FailureKind, ToolCall

closed: list[list[str]] = []


@pytest.fixture(autouse=True)
def nothing_closed() -> Iterator[None]:
    closed.clear()
    yield


def context(rollout_id: str = "r") -> ToolContext:
    return ToolContext(rollout_id=rollout_id, images=[], store=ContentImageStore())


async def text(tool: StatefulFunctionTool, where: ToolContext, **arguments: Any) -> str | None:
    (block,) = await tool.run(ToolCall(id="c", name=tool.spec.name, arguments=arguments), where)
    return block.text


class NoteBook:
    """A page of notes."""

    def __init__(self, *, title: str = "Notes") -> None:
        self.lines = [title]

    def __call__(self, line: str, *, context: ToolContext) -> str:
        """Writes a line and shows the page.

        Args:
            line: What to write.
        """
        self.lines.append(f"{context.rollout_id}: {line}")
        return "\n".join(self.lines)

    def close(self) -> None:
        closed.append(self.lines)


def test_each_rollout_has_an_instance_of_its_own_and_it_is_closed_at_its_end() -> None:
    (tool,) = StatefulFunctionTool.from_class(NoteBook, {"title": "T"})
    assert isinstance(tool, StatefulTool)
    assert (tool.spec.name, tool.spec.description) == ("note_book", "Writes a line and shows the page.")
    assert tool.spec.parameters == {
        "type": "object",
        "properties": {"line": {"type": "string", "description": "What to write."}},
        "required": ["line"],
    }

    async def two_rollouts() -> None:
        first, second, idle = context("a"), context("b"), context("c")
        assert await text(tool, first, line="1") == "T\na: 1"
        assert await text(tool, second, line="2") == "T\nb: 2"
        assert await text(tool, first, line="3") == "T\na: 1\na: 3"
        for each in (first, second, idle):
            await tool.close_rollout(each)
        assert (first.state, second.state, idle.state) == ({}, {}, {})

    asyncio.run(two_rollouts())
    assert closed == [["T", "a: 1", "a: 3"], ["T", "b: 2"]]


class Safe:
    """As an environment of TRL: public methods are tools, `reset` starts it."""

    def reset(self, **row: Any) -> str:
        self.code = 7
        return "ignored"

    def turn(self, by: int) -> int:
        """Turns the dial.

        Args:
            by: How far.
        """
        self.code += by
        return self.code

    async def read(self) -> str:
        """Reads the dial."""
        return f"at {self.code}"

    @staticmethod
    def version() -> str:
        return "no tool"

    def _hidden(self) -> None: ...

    def get_reward(self) -> float:
        return 1.0

    async def close(self) -> None:
        closed.append([str(self.code)])


def test_the_methods_of_a_class_are_tools_that_share_the_instance() -> None:
    read, turn = StatefulFunctionTool.from_class(Safe)
    assert (read.spec.name, turn.spec.name) == ("read", "turn")

    async def rollout() -> None:
        where = context()
        assert await text(turn, where, by=2) == "9"
        assert await text(read, where) == "at 9"
        await turn.close_rollout(where)
        await read.close_rollout(where)

    asyncio.run(rollout())
    assert closed == [["9"]]


def test_wrong_arguments_are_the_models_and_make_no_instance() -> None:
    (tool,) = StatefulFunctionTool.from_class(NoteBook)
    where = context()
    with pytest.raises(ToolError, match=r"note_book: line: Input should be a valid string, got 3\.") as caught:
        asyncio.run(text(tool, where, line=3))
    assert (caught.value.kind, where.state) == (FailureKind.BAD_ARGUMENTS, {})


class Failing:
    def __init__(self, error: BaseException) -> None:
        raise error

    def __call__(self) -> str:
        """Fails."""
        return ""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("no disk"), ToolFault),
        (ToolError(FailureKind.EXECUTION_ERROR, "no disk"), ToolFault),
        (SystemExit("no disk"), ToolFault),
        (StopIteration("no disk"), ToolFault),
        (QuotaError("no disk"), QuotaError),
    ],
)
def test_what_a_constructor_raises_is_a_fault_of_ours(raised: BaseException, expected: type[Exception]) -> None:
    (tool,) = StatefulFunctionTool.from_class(Failing, {"error": raised})
    where = context()

    async def rollout() -> None:
        for _ in range(2):
            with pytest.raises(expected, match=r"no disk|StopIteration"):
                await text(tool, where)
        await tool.close_rollout(where)

    asyncio.run(rollout())


def test_what_a_method_raises_is_told_to_the_model_and_the_state_stays() -> None:
    class Divider:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, by: int) -> float:
            """Divides.

            Args:
                by: Divisor.
            """
            self.calls += 1
            return self.calls / by

    (tool,) = StatefulFunctionTool.from_class(Divider)
    where = context()

    async def rollout() -> str | None:
        with pytest.raises(ToolError, match=r"divider raised ZeroDivisionError") as caught:
            await text(tool, where, by=0)
        assert caught.value.kind == FailureKind.EXECUTION_ERROR
        return await text(tool, where, by=1)

    assert asyncio.run(rollout()) == "2.0"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_fault_of_a_method_is_not_tried_again_on_the_instance_it_may_have_changed(is_async: bool) -> None:
    class Plain:
        def __call__(self) -> str:
            """Fails."""
            raise ToolFault("backend down")

    class Async:
        async def __call__(self) -> str:
            """Fails."""
            raise ToolFault("backend down")

    (tool,) = StatefulFunctionTool.from_class(Async if is_async else Plain)
    with pytest.raises(ToolFault, match="backend down") as caught:
        asyncio.run(text(tool, context()))
    assert not caught.value.can_retry


def test_a_fault_of_the_constructor_may_be_tried_again() -> None:
    (tool,) = StatefulFunctionTool.from_class(Failing, {"error": ValueError("no disk")})
    with pytest.raises(ToolFault) as caught:
        asyncio.run(text(tool, context()))
    assert caught.value.can_retry


@pytest.mark.parametrize("where_it_hangs", ["constructor", "method"])
def test_a_class_that_never_returns_becomes_a_fault_that_names_it(
    where_it_hangs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.threads.MAX_ABANDONED", 2)
    entered, go_on = threading.Semaphore(0), threading.Event()

    def hang(where: str) -> None:
        if where == where_it_hangs:
            entered.release()
            go_on.wait()

    class Hanging:
        def __init__(self) -> None:
            hang("constructor")

        def __call__(self) -> str:
            """Hangs."""
            hang("method")
            return ""

    (tool,) = StatefulFunctionTool.from_class(Hanging)

    async def rollouts() -> None:
        for _ in range(2):
            running = asyncio.create_task(text(tool, context()))
            await asyncio.to_thread(entered.acquire)
            running.cancel()
            await asyncio.wait({running})
        with pytest.raises(ToolFault, match=r"tool hanging: 2 calls that were given up still run"):
            await text(tool, context())
        go_on.set()

    asyncio.run(rollouts())


def test_a_call_waits_for_one_that_was_given_up_in_its_thread() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.log: list[str] = []

        def slow(self) -> None:
            """Slow."""
            entered.set()
            go_on.wait()
            self.log.append("slow")

        def quick(self) -> list[str]:
            """Quick."""
            return [*self.log, "quick"]

    quick, slow = StatefulFunctionTool.from_class(Slow)

    async def rollout() -> str | None:
        where = context()
        given_up = asyncio.create_task(text(slow, where))
        await asyncio.to_thread(entered.wait)
        given_up.cancel()
        next_call = asyncio.create_task(text(quick, where))
        assert await asyncio.wait({next_call}, timeout=0.3) == (set(), {next_call})
        go_on.set()
        return await next_call

    assert asyncio.run(rollout()) == '["slow", "quick"]'


def test_an_instance_that_is_ready_only_after_the_rollout_is_closed_all_the_same() -> None:
    entered, go_on, was_closed = threading.Event(), threading.Event(), threading.Event()

    class Heavy:
        def __init__(self) -> None:
            entered.set()
            go_on.wait()

        def __call__(self) -> str:
            """Works."""
            return ""

        async def close(self) -> None:
            was_closed.set()

    (tool,) = StatefulFunctionTool.from_class(Heavy)

    async def rollout() -> None:
        where = context()
        call = asyncio.create_task(text(tool, where))
        await asyncio.to_thread(entered.wait)
        call.cancel()
        await asyncio.wait({call})
        await tool.close_rollout(where)
        assert not was_closed.is_set()

    asyncio.run(rollout())
    go_on.set()
    assert was_closed.wait(timeout=60)


class Undocumented:
    def __call__(self, a: int) -> int:
        return a


class NeedsRow:
    def reset(self, row: str) -> None: ...

    def act(self) -> str:
        """Acts."""
        return ""


class Nothing:
    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("stateful", "options", "message"),
    [
        (
            NoteBook,
            {"titel": "T"},
            r"tool class NoteBook: got an unexpected keyword argument 'titel'; it takes title\.",
        ),
        (Failing, {}, r"tool class Failing: missing a required argument: 'error'; it takes error\."),
        (Undocumented, {}, r"tool undocumented: the function has no docstring"),
        (NeedsRow, {}, r"tool class NeedsRow: reset needs arguments and gets none"),
        (Nothing, {}, r"tool class Nothing has neither __call__ nor public methods"),
    ],
)
def test_a_class_that_cannot_be_a_tool_is_a_config_error(stateful: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StatefulFunctionTool.from_class(stateful, options)


def add(a: int, b: float = 1.5, names: list[str] | None = None) -> float:
    """
    Adds two numbers.

    Args:
        a: The first
            number.
        b: The second.
        names: Whose.

    Returns:
        The sum.
    """
    return a + b


def test_a_tool_of_trl_and_transformers_is_a_tool_here() -> None:
    theirs = get_json_schema(add)["function"]
    tool = FunctionTool.from_function(add)
    assert (tool.spec.name, tool.spec.description) == (theirs["name"], theirs["description"])
    ours, expected = tool.spec.parameters, theirs["parameters"]
    assert (list(ours["properties"]), ours["required"]) == (list(expected["properties"]), expected["required"])
    assert [p["description"] for p in ours["properties"].values()] == ["The first number.", "The second.", "Whose."]
    assert [p["description"] for p in expected["properties"].values()] == ["The first number.", "The second.", "Whose."]
    assert asyncio.run(tool.run(ToolCall(id="c", name="add", arguments={"a": 1}), context())) == (Content(text="2.5"),)
