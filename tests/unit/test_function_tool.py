"""Tools made of plain functions."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from typing import Annotated, Any, Literal

import pytest
from PIL import Image
from pydantic import BaseModel, Field

from axpo.errors import ConfigError, DataError, QuotaError, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import Tool, ToolContext
from axpo.tools.function import FunctionTool, cut_middle
from axpo.types import Content, FailureKind, ImageRef, ToolCall


def context() -> ToolContext:
    return ToolContext(rollout_id="r7", images=[], store=ContentImageStore())


def run(function: Any, arguments: dict[str, Any] | None = None, **options: Any) -> tuple[Content, ...]:
    tool = FunctionTool.from_function(function, name="tool", **options)
    return asyncio.run(tool.run(ToolCall(id="c", name="tool", arguments=arguments or {}), context()))


class Point(BaseModel):
    x: int
    y: int


def measure(
    points: list[Point],
    unit: Literal["mm", "cm"],
    names: list[str] | None = None,
    factor: Annotated[float, Field(gt=0)] = 1.5,
    *,
    context: ToolContext,
) -> str:
    """Measures a thing.

    In one go.

    Args:
        points: Where to
            look.
        unit (str): Of length.
        names: What it is called: a list.
        factor: Scale.
        context: Never shown.

    Returns:
        unit: Not an argument.
    """
    return f"{points[0].x + points[-1].y}{unit} {names} {factor} {context.rollout_id}"


def test_name_description_and_schema_come_from_the_function() -> None:
    tool = FunctionTool.from_function(measure)
    assert isinstance(tool, Tool)
    assert (tool.spec.name, tool.spec.description) == ("measure", "Measures a thing. In one go.")
    assert tool.spec.parameters == {
        "type": "object",
        "properties": {
            "points": {"items": {"$ref": "#/$defs/Point"}, "type": "array", "description": "Where to look."},
            "unit": {"enum": ["mm", "cm"], "type": "string", "description": "Of length."},
            "names": {
                "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "null"}],
                "description": "What it is called: a list.",
            },
            "factor": {"exclusiveMinimum": 0, "type": "number", "default": 1.5, "description": "Scale."},
        },
        "required": ["points", "unit"],
        "$defs": {
            "Point": {
                "properties": {"x": {"title": "X", "type": "integer"}, "y": {"title": "Y", "type": "integer"}},
                "required": ["x", "y"],
                "title": "Point",
                "type": "object",
            }
        },
    }


def test_arguments_arrive_typed_and_the_context_is_the_rollouts() -> None:
    assert run(measure, {"points": [{"x": 1, "y": 2}], "unit": "mm"}) == (Content(text="3mm None 1.5 r7"),)
    full = {"points": [{"x": 1, "y": 2}], "unit": "cm", "names": ["a"], "factor": 2}
    assert run(measure, full) == (Content(text="3cm ['a'] 2.0 r7"),)


GOOD = {"points": [{"x": 1, "y": 2}], "unit": "mm"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "mm"}, r"tool: the argument points is missing\."),
        (GOOD | {"factor": "2"}, r"tool: factor: Input should be a valid number, got \"2\"\."),
        (GOOD | {"factor": -1}, r"tool: factor: Input should be greater than 0, got -1\."),
        (GOOD | {"factor": float("nan")}, r"tool: factor: Out of range float values"),
        (GOOD | {"unit": "km"}, r"tool: unit: Input should be 'mm' or 'cm', got \"km\"\."),
        (GOOD | {"points": [{"x": 1, "y": "2"}]}, r"tool: points\.0\.y: Input should be a valid integer, got \"2\"\."),
        (GOOD | {"points": [{"x": True, "y": 2}]}, r"tool: points\.0\.x: Input should be a valid integer"),
        (GOOD | {"names": ["a", 2]}, r"tool: names\..*1: Input should be a valid string, got 2\."),
        (GOOD | {"names": "x" * 5000}, r"tool: names.*characters left out"),
        (
            GOOD | {"context": 1},
            r"tool: there is no argument 'context'; the arguments are: points, unit, names, factor",
        ),
    ],
)
def test_wrong_arguments_name_the_parameter(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError, match=f"(?s){message}") as caught:
        run(measure, arguments)
    assert caught.value.kind == FailureKind.BAD_ARGUMENTS
    assert len(caught.value.message) < 300


def returns(value: Any) -> Any:
    def function() -> Any:
        """Returns a value."""
        return value

    return function


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (3, "3"),
        (None, "null"),
        ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'),
        (["a", "b"], '["a", "b"]'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        ({1, 2}, '"{1, 2}"'),
        ("\ud800!", "?!"),
        ("a" * 60 + "b" * 60, "a" * 50 + "\n[... 20 characters left out ...]\n" + "b" * 50),
    ],
)
def test_results_become_text(value: Any, text: str) -> None:
    assert run(returns(value), max_result_chars=100) == (Content(text=text),)


def test_pictures_become_images_of_the_dialogue() -> None:
    picture = Image.new("RGB", (5, 4))
    (single,) = run(returns(picture))
    assert single.image is not None and (single.image.width_px, single.image.height_px) == (5, 4)
    assert run(returns(["left:", picture, {"n": 1}])) == (Content(text="left:"), single, Content(text='{"n": 1}'))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (201, 1, r"tool: the picture it made cannot be used: it has 201x1 px"),
        (1, 201, r"it has 1x201 px; at most"),
        (0, 3, r"it has 0x3 px"),
        (101, 100, r"it has 101x100 px; at most 10000 px in all and a length of 200 times the width are possible"),
    ],
)
def test_a_picture_that_no_model_can_be_shown_is_no_fault_of_ours(
    width: int, height: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.tools.function.MAX_IMAGE_PX", 100 * 100)
    assert run(returns([Image.new("L", (200, 1)), Image.new("L", (100, 100))]))
    with pytest.raises(ToolError, match=message) as caught:
        run(returns(["a", Image.new("L", (width, height))]))
    assert caught.value.kind == FailureKind.EXECUTION_ERROR


def test_a_picture_that_the_store_refuses_is_no_fault_of_ours() -> None:
    class Refusing(ContentImageStore):
        def add_image(self, image: Image.Image) -> ImageRef:
            raise DataError("image: too green")

    tool = FunctionTool.from_function(returns(Image.new("L", (5, 4))), name="tool")
    where = ToolContext(rollout_id="r", images=[], store=Refusing())
    with pytest.raises(ToolError, match=r"^tool: the picture it made cannot be used: image: too green") as caught:
        asyncio.run(tool.run(ToolCall(id="c", name="tool", arguments={}), where))
    assert caught.value.kind == FailureKind.EXECUTION_ERROR


@pytest.mark.parametrize(
    ("value", "is_cut"), [("a" * 100, False), ("a" * 101, True), (["a" * 101, Image.new("L", (5, 4)), "a"], True)]
)
def test_a_cut_result_is_told(value: Any, is_cut: bool) -> None:
    tool, where = FunctionTool.from_function(returns(value), name="tool", max_result_chars=100), context()
    asyncio.run(tool.run(ToolCall(id="c", name="tool", arguments={}), where))
    assert where.is_cut == is_cut


@pytest.mark.parametrize(("num_chars", "is_cut"), [(10, False), (501, True)])
def test_a_cut_error_is_told(num_chars: int, is_cut: bool) -> None:
    def fails() -> str:
        """Fails."""
        raise ValueError("x" * num_chars)

    tool, where = FunctionTool.from_function(fails), context()
    with pytest.raises(ToolError):
        asyncio.run(tool.run(ToolCall(id="c", name="fails", arguments={}), where))
    assert where.is_cut == is_cut


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("raised", [ValueError("no\nsuch " + "x" * 900), SystemExit(3), StopIteration("end")])
def test_what_a_function_raises_is_told_to_the_model(raised: BaseException, is_async: bool) -> None:
    def fails() -> str:
        """Fails."""
        raise raised

    async def fails_async() -> str:
        """Fails."""
        raise raised

    with pytest.raises(ToolError, match=r"tool raised (ValueError: no|SystemExit: 3|.*StopIteration)") as caught:
        run(fails_async if is_async else fails)
    assert caught.value.kind == FailureKind.EXECUTION_ERROR
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "error", [ToolError(FailureKind.TIMEOUT, "too slow"), ToolFault("backend down"), QuotaError("used up")]
)
def test_a_functions_own_verdict_passes_through(error: Exception) -> None:
    def judges() -> str:
        """Judges."""
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        run(judges)
    assert caught.value is error


def test_a_hung_function_holds_up_neither_its_neighbours_nor_the_timeout() -> None:
    def sleeps(seconds: float) -> str:
        """Sleeps.

        Args:
            seconds: How long.
        """
        time.sleep(seconds)
        return "woke"

    tool = FunctionTool.from_function(sleeps)

    async def both() -> tuple[Content, ...]:
        slow = asyncio.wait_for(tool.run(ToolCall(id="a", name="sleeps", arguments={"seconds": 3.0}), context()), 0.05)
        quick = tool.run(ToolCall(id="b", name="sleeps", arguments={"seconds": 0.01}), context())
        with pytest.raises(TimeoutError):
            await slow
        return await quick

    started = time.monotonic()
    assert asyncio.run(both()) == (Content(text="woke"),)
    assert time.monotonic() - started < 2.5  # asyncio.run did not wait for the abandoned thread


def test_a_function_that_never_returns_becomes_a_fault_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.threads.MAX_ABANDONED", 2)
    entered, go_on, left = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    def hangs() -> str:
        """Hangs."""
        entered.release()
        go_on.wait()
        left.release()
        return "back"

    tool, other = FunctionTool.from_function(hangs), FunctionTool.from_function(returns("x"), name="other")
    call = ToolCall(id="c", name="hangs", arguments={})

    async def give_up() -> None:
        running = asyncio.create_task(tool.run(call, context()))
        await asyncio.to_thread(entered.acquire)
        running.cancel()
        await asyncio.wait({running})

    async def rollouts() -> None:
        for _ in range(2):
            await give_up()
        with pytest.raises(ToolFault, match=r"tool hangs: 2 calls that were given up still run") as caught:
            await tool.run(call, context())
        assert not caught.value.can_retry
        assert await other.run(call, context())

    asyncio.run(rollouts())
    go_on.set()
    for _ in range(2):
        assert left.acquire(timeout=60)
    for thread in threading.enumerate():
        if thread.name == "axpo-hangs":
            thread.join(timeout=60)
    assert asyncio.run(tool.run(call, context())) == (Content(text="back"),)


def test_many_calls_at_once_are_not_taken_for_calls_that_never_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.threads.MAX_ABANDONED", 2)
    together = threading.Barrier(8)

    def meets() -> str:
        """Meets the others."""
        together.wait(timeout=60)
        return "met"

    tool = FunctionTool.from_function(meets)

    async def calls() -> list[tuple[Content, ...]]:
        runs = (tool.run(ToolCall(id="c", name="meets", arguments={}), context()) for _ in range(8))
        return await asyncio.gather(*runs)

    assert asyncio.run(calls()) == [(Content(text="met"),)] * 8


def test_a_system_without_threads_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ToolFault, match=r"no thread for tool, .*can't start new thread") as caught:
        run(returns("x"))
    assert caught.value.can_retry


def test_an_awaitable_of_a_plain_function_is_awaited() -> None:
    async def later() -> str:
        return "later"

    def plain() -> Any:
        """Returns an awaitable."""
        return later()

    assert run(plain) == (Content(text="later"),)


def test_an_object_with_a_call_method_is_a_function_too() -> None:
    @dataclasses.dataclass
    class Counter:
        count: int = 0

        def __call__(self, step: int = 1) -> int:
            """Counts.

            Args:
                step: How far.
            """
            self.count += step
            return self.count

    tool = FunctionTool.from_function(Counter())
    assert tool.spec.name == "Counter"
    assert asyncio.run(tool.run(ToolCall(id="c", name="Counter", arguments={"step": 2}), context())) == (
        Content(text="2"),
    )


def no_docstring(a: int) -> int:
    return a


def no_argument_line(a: int) -> int:
    """Adds.

    Args:
        b: Something else.
    """
    return a


def no_type(a) -> int:
    """Adds.

    Args:
        a: A number.
    """
    return a


def many(*numbers: int) -> int:
    """Adds.

    Args:
        numbers: Numbers.
    """
    return sum(numbers)


def no_json(picture: Image.Image) -> int:
    """Adds.

    Args:
        picture: A picture.
    """
    return picture.width


def unknown_type(a: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Adds.

    Args:
        a: A thing.
    """
    return 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_docstring, r"tool no_docstring: the function has no docstring"),
        (no_argument_line, r"tool no_argument_line: argument a has no line under `Args:`"),
        (no_type, r"tool no_type: argument a has no type\. Annotate it, e\.g\. `a: str`"),
        (many, r"tool many: \*numbers: .* cannot be called by name"),
        (no_json, r"tool no_json: argument picture has a type without a JSON form"),
        (unknown_type, r"tool unknown_type: cannot resolve its type hints: name 'Missing' is not defined"),
        (lambda: 1, r"tool '<lambda>': a name has 1 to 64 letters"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_a_config_error(function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionTool.from_function(function)


def test_cut_middle_keeps_both_ends() -> None:
    assert cut_middle("abc", 3) == "abc"
    assert cut_middle("abcdefgh", 5) == "abc\n[... 3 characters left out ...]\ngh"
