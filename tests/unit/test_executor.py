"""What every tool gets whoever wrote it: checked arguments, a place, a timeout, further tries, bounds, a clean end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from axpo.errors import ConfigError, DataError, QuotaError, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.rollout.arguments import check_schema, explain_misfit, find_misfit
from axpo.rollout.bounds import Bounds, shorten_by_bytes
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.tools.fakes import EchoTool
from axpo.types import Content, FailureKind, ToolCall, ToolFailure, ToolResult, ToolSpec

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "bbox": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
        "mode": {"enum": ["fast", "slow"]},
        "times": {"type": "integer", "minimum": 1, "maximum": 9},
        "deep": {"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}},
    },
    "required": ["bbox"],
}


@dataclass
class Tool:
    """Does what `act` does with the call and its context."""

    act: Callable[[ToolCall, ToolContext], Any]
    name: str = "tool"
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object"})

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(name=self.name, description="", parameters=self.parameters)

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        result = self.act(call, context)
        return await result if asyncio.iscoroutine(result) else result


@dataclass
class Counter(Tool):
    """Counts its calls per rollout."""

    act: Any = None
    closed: list[str] = field(default_factory=list)

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        context.state["count"] = context.state.get("count", 0) + 1
        return text(f"{context.state['count']} of {len(context.images)} images")

    async def close_rollout(self, context: ToolContext) -> None:
        self.closed.append(context.rollout_id)


def text(words: str) -> tuple[Content, ...]:
    return (Content(text=words),)


def call(name: str = "tool", **arguments: Any) -> ToolCall:
    return ToolCall(id="c", name=name, arguments=arguments)


def context(rollout_id: str = "r") -> ToolContext:
    return ToolContext(rollout_id=rollout_id, images=[], store=ContentImageStore())


def executor(*tools: Any, **limits: Any) -> ToolExecutor:
    return ToolExecutor(tools={tool.spec.name: tool for tool in tools}, default_limits=ToolLimits(**limits))


def run(runner: ToolExecutor, one: ToolCall | None = None, into: ToolContext | None = None) -> ToolResult:
    return asyncio.run(runner.run(one or call(), into or context()))


class Naps:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the argument bbox is missing; the arguments are: bbox, mode, times, deep."),
        ({"bbox": [1, 2, 3]}, "bbox: expected at least 4 items, got [1, 2, 3]."),
        ({"bbox": [1, 2, 3, "4"]}, 'bbox[3]: expected number, got "4".'),
        ({"bbox": [1, 2, 3, True]}, "bbox[3]: expected number, got true."),
        ({"bbox": [1, 2, 3, 4], "mode": "fats"}, 'mode: expected one of "fast", "slow", got "fats".'),
        ({"bbox": [1, 2, 3, 4], "times": 0}, "times: expected a number >= 1, got 0."),
        ({"bbox": [1, 2, 3, 4], "times": 1.5}, "times: expected integer, got 1.5."),
        ({"bbox": [1, 2, 3, 4], "deep": {"names": [1]}}, "deep.names[0]: expected string, got 1."),
        (
            {"bbox": [1, 2, 3, 4], "mod": "fast"},
            'there is no argument "mod"; the arguments are: bbox, mode, times, deep. Did you mean mode?',
        ),
        ({"bbox": "x" * 500}, f'bbox: expected array, got "{"x" * 76}....'),
    ],
)
def test_the_model_is_told_what_would_be_right(arguments: dict[str, Any], message: str) -> None:
    assert explain_misfit(arguments, ToolSpec(name="t", description="", parameters=SCHEMA)) == message


def test_arguments_that_fit_are_not_remarked_on() -> None:
    spec = ToolSpec(name="t", description="", parameters=SCHEMA)
    assert explain_misfit({"bbox": [0, 0.5, 1, 2], "mode": "slow", "deep": {}}, spec) is None
    free = ToolSpec(name="t", description="", parameters={"type": "object"})
    assert explain_misfit({"anything": 10**5000}, free) is None


def test_a_call_that_cannot_run_is_the_models_mistake() -> None:
    runner = executor(Tool(lambda *_: text("x")), EchoTool())
    kinds = [
        run(runner, ToolCall(id="c", name="", parse_error="Malformed.")),
        run(runner, call("echo")),
        run(runner, call("ehco")),
        asyncio.run(runner.run(call("echo", text="x"), context(), offered=("tool",))),
    ]
    assert [result.failure and result.failure.kind for result in kinds] == [
        FailureKind.MALFORMED_CALL,
        FailureKind.BAD_ARGUMENTS,
        FailureKind.UNKNOWN_TOOL,
        FailureKind.UNKNOWN_TOOL,
    ]


# -- tries ------------------------------------------------------------------------------------------------------------


def faults(*outcomes: Any) -> Tool:
    left = list(outcomes)

    def act(*_: Any) -> Any:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return text(outcome)

    return Tool(act)


def test_a_fault_of_ours_is_tried_again_with_growing_pauses() -> None:
    naps = Naps()
    runner = executor(faults(ToolFault("down"), ToolFault("down"), "up"))
    runner.sleep, runner.clock = naps.sleep, naps.clock
    result = run(runner)
    assert (result.content, result.num_tries, naps.naps) == (text("up"), 3, [0.5, 1.0])
    assert result.queue_time_s == 1.5, "waiting out our faults is not the rollout's time"


@pytest.mark.parametrize(
    ("fault", "tries"), [(ToolFault("down"), 3), (ToolFault("lost", can_retry=False), 1), (ValueError("bug"), 1)]
)
def test_a_fault_that_stays_is_raised(fault: Exception, tries: int) -> None:
    tool = faults(*[fault] * 3, "never")
    with pytest.raises(ToolFault, match=str(fault)):
        run(executor(tool, backoff_s=0.0))
    assert tool.act.__closure__ is not None
    assert len(tool.act.__closure__[0].cell_contents) == 4 - tries


def test_mistakes_of_the_model_are_not_tried_again() -> None:
    result = run(executor(faults(ToolError(FailureKind.EXECUTION_ERROR, "1/0"), "never")))
    assert result.failure is not None
    assert (result.failure.kind, result.failure.message, result.num_tries) == (FailureKind.EXECUTION_ERROR, "1/0", 1)


def test_a_used_up_quota_ends_the_run() -> None:
    with pytest.raises(QuotaError, match="no credits"):
        run(executor(faults(QuotaError("no credits"))))


def test_a_timeout_is_an_observation_and_cancels_the_call() -> None:
    cancelled: list[bool] = []

    async def hang() -> Any:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.append(True)

    result = run(executor(Tool(lambda *_: hang()), timeout_s=0.01))
    assert result.failure is not None
    assert (result.failure.kind, cancelled) == (FailureKind.TIMEOUT, [True])


# -- traffic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_no_more_calls_run_at_once_than_allowed(limit: int) -> None:
    running = most = 0

    async def act() -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return text("x")

    runner = executor(Tool(lambda *_: act()), max_concurrent=limit)

    async def main() -> None:
        await asyncio.gather(*(runner.run(call(), context()) for _ in range(20)))

    for _ in range(2):  # the second time in another event loop
        asyncio.run(main())
        assert most == min(limit, 20)


def test_a_tool_that_is_down_is_left_alone_until_one_call_finds_it_up() -> None:
    naps = Naps()
    is_up = False
    num_runs = 0

    async def act() -> Any:
        nonlocal num_runs
        num_runs += 1
        await asyncio.sleep(0)
        if not is_up:
            raise ToolFault("down", can_retry=False)
        return text("x")

    runner = executor(Tool(lambda *_: act()), breaker_faults=3, breaker_pause_s=7.0, max_retries=0)
    runner.sleep, runner.clock = naps.sleep, naps.clock

    async def some(num: int) -> list[Any]:
        return await asyncio.gather(*(runner.run(call(), context()) for _ in range(num)), return_exceptions=True)

    async def main() -> None:
        nonlocal is_up, num_runs
        for _ in range(3):
            assert all(isinstance(outcome, ToolFault) for outcome in await some(2))
            naps.now_s += 1.0
        num_runs = 0
        outcomes = await some(5)
        assert num_runs == 1, "one call finds out, the others wait for it"
        assert all(isinstance(outcome, ToolFault) for outcome in outcomes)
        assert naps.naps == [7.0]
        is_up = True
        num_runs = 0
        outcomes = await some(5)
        assert num_runs == 5
        assert [outcome.content for outcome in outcomes] == [text("x")] * 5
        assert outcomes[0].queue_time_s == 7.0

    asyncio.run(main())


def test_calls_that_ran_together_are_one_fault_to_the_breaker() -> None:
    naps = Naps()
    left = [ToolFault("blip", can_retry=False)] * 20

    async def act() -> Any:
        await asyncio.sleep(0)
        if left:
            raise left.pop()
        return text("x")

    runner = executor(Tool(lambda *_: act()), breaker_faults=3)
    runner.sleep, runner.clock = naps.sleep, naps.clock

    async def main() -> None:
        await asyncio.gather(*(runner.run(call(), context()) for _ in range(20)), return_exceptions=True)
        assert (await runner.run(call(), context())).content == text("x")
        assert naps.naps == [], "one blip does not stop the tool"
        assert runner.faults == {"tool": 20}

    asyncio.run(main())


def test_a_call_behind_a_failed_probe_tries_again() -> None:
    naps = Naps()
    outcomes = [ToolFault("down"), ToolFault("down"), "up", "up"]

    async def act() -> Any:
        await asyncio.sleep(0)
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return text(outcome)

    runner = executor(Tool(lambda *_: act()), breaker_faults=1, breaker_pause_s=5.0)
    runner.sleep, runner.clock = naps.sleep, naps.clock

    async def main() -> None:
        runs = await asyncio.gather(*(runner.run(call(), context()) for _ in range(2)), return_exceptions=True)
        assert [run.content for run in runs] == [text("up")] * 2

    asyncio.run(main())


def test_a_cancelled_probe_leaves_nobody_waiting() -> None:
    runner = executor(faults(ToolFault("down"), "up"), breaker_faults=1, breaker_pause_s=3600, max_retries=0)

    async def main() -> None:
        with pytest.raises(ToolFault):
            await runner.run(call(), context())
        probe, waiting = (asyncio.create_task(runner.run(call(), context())) for _ in range(2))
        await asyncio.sleep(0.01)
        probe.cancel()
        with pytest.raises(ToolFault, match="is down"):
            await waiting

    asyncio.run(main())


# -- results ----------------------------------------------------------------------------------------------------------


def test_long_text_loses_its_middle() -> None:
    long = "a" * 5000 + "b" * 5000
    result = run(executor(Tool(lambda *_: text(long)), bounds=Bounds(max_tokens=100)))
    assert result.is_cut
    assert result.content[0].text == "a" * 150 + "\n[... 9700 bytes cut ...]\n" + "b" * 150
    failure = run(executor(faults(ToolError(FailureKind.EXECUTION_ERROR, long)), bounds=Bounds(max_tokens=100))).failure
    assert failure is not None
    assert len(failure.message) < 400


def test_many_small_texts_are_bounded_together() -> None:
    crumbs = tuple(Content(text="ab") for _ in range(20_000))
    result = run(executor(Tool(lambda *_: crumbs), bounds=Bounds(max_tokens=100)))
    assert result.is_cut
    assert sum(len(block.text or "") for block in result.content) < 400


def test_a_picture_that_is_left_out_takes_its_announcement_along() -> None:
    def act(_: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        image = context.store.add_image(Image.new("RGB", (40, 40)))
        stripe = context.store.add_image(Image.new("RGB", (900, 4)))
        return (
            Content(text="Found:"),
            *(block for i in range(3) for block in (Content(text=f"img_idx {i}:"), Content(image=image))),
            Content(text="img_idx 3:"),
            Content(image=stripe),
        )

    rollout = context()
    result = run(executor(Tool(act), bounds=Bounds(max_images=2)), into=rollout)
    texts = [block.text for block in result.content if block.text is not None]
    assert texts[:3] == ["Found:", "img_idx 0:", "img_idx 1:"]
    assert texts[3].startswith("[2 pictures left out")
    assert len(rollout.images) == 2


def test_an_image_that_is_too_thin_for_the_model_is_left_out_though_there_is_room() -> None:
    def act(_: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        sizes = ((900, 4), (40, 40))
        return tuple(Content(image=context.store.add_image(Image.new("RGB", size))) for size in sizes)

    rollout = context()
    result = run(executor(Tool(act)), into=rollout)
    assert result.is_cut
    assert [(image.width_px, image.height_px) for image in rollout.images] == [(40, 40)]


def test_scaling_never_makes_a_picture_too_thin() -> None:
    def act(_: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        return (Content(image=context.store.add_image(Image.new("L", (30_000, 150)).convert("RGB"))),)

    rollout = context()
    run(executor(Tool(act)), into=rollout)
    [image] = rollout.images
    assert image.width_px <= 200 * image.height_px


def test_what_cannot_be_stored_is_the_models_to_read() -> None:
    result = run(executor(faults(DataError("image of 20000x9000 px is above the limit"))))
    assert result.failure is not None
    assert result.failure.kind is FailureKind.EXECUTION_ERROR


def test_a_tool_that_bounds_its_time_and_does_not_is_our_fault() -> None:
    class Fenced(Tool):
        bounds_its_time = True

    with pytest.raises(ToolFault, match=r"did not finish within 0\.01 s"):
        run(executor(Fenced(lambda *_: asyncio.sleep(3600)), timeout_s=0.01))


def test_what_a_tool_waited_is_not_the_rollouts_time() -> None:
    def act(_: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        context.waited_s += 7.0
        context.is_cut = context.is_cached = True
        return text("x")

    result = run(executor(Tool(act)))
    assert result.queue_time_s == pytest.approx(7.0, abs=0.5)
    assert result.is_cut and result.is_cached


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"type": "array"}, "must be an object schema"),
        ({"type": "object", "properties": {"a": {"type": "strng"}}}, "no valid JSON schema"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}}, "cannot be checked"),
        ({"type": "object", "allOf": [{"$ref": "#"}]}, "cannot be checked"),
        ({"type": "object", "properties": {"a": {"$ref": "https://a.org/schema"}}}, "cannot be checked"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_when_the_tool_is_made(parameters: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_schema(ToolSpec(name="mine", description="", parameters=parameters))


def tower(height: int) -> dict[str, Any]:
    """A small schema that takes 2**height steps to check."""
    floors = {f"f{n}": {"allOf": [{"$ref": f"#/$defs/f{n + 1}"}] * 2} for n in range(height)}
    return {"$ref": "#/$defs/f0", "$defs": {**floors, f"f{height}": {"minProperties": 0}}}


@pytest.mark.parametrize(
    ("rules", "value"),
    [
        ({"properties": {"a": {"multipleOf": 0.01}}}, 10**400),
        ({"properties": {"a": {"enum": [["x"]]}}}, "deep"),
        ({"properties": {"a": {"uniqueItems": True}}}, [{"n": n} for n in range(3000)]),
        ({"properties": {"a": {"items": {"anyOf": [{"const": n} for n in range(3000)]}}}}, ["x"] * 3000),
        ({"properties": {"a": tower(40)}, "$defs": tower(40)["$defs"]}, {}),
    ],
)
def test_arguments_whose_check_fails_or_takes_long_are_the_models_mistake(
    rules: Any, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.rollout.arguments.CHECK_CPU_S", 0.5)
    if value == "deep":
        value = "x"
        for _ in range(900):
            value = [value]
    tool = Tool(lambda *_: text("x"), parameters={"type": "object", **rules})
    started_s = time.process_time()
    result = run(executor(tool), call(a=value))
    assert time.process_time() - started_s < 0.5  # the work was done, and ended, in another process
    assert result.failure is not None and result.failure.kind is FailureKind.BAD_ARGUMENTS


def test_a_check_in_a_worker_says_the_same_as_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ToolSpec(name="t", description="", parameters=SCHEMA)
    for arguments in ({}, {"bbox": [1, 2, 3, "4"]}, {"bbox": [1, 2, 3, 4], "mod": "fast"}, {"bbox": [1, 2, 3, 4]}):
        quick = asyncio.run(find_misfit(arguments, spec))
        with monkeypatch.context() as patch:
            patch.setattr("axpo.rollout.arguments.MAX_QUICK_COMPARISONS", 0)
            assert asyncio.run(find_misfit(arguments, spec)) == quick


def test_a_schema_that_takes_long_is_refused_when_the_tool_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.rollout.arguments.CHECK_CPU_S", 0.5)
    parameters = {"type": "object", **tower(40)}
    with pytest.raises(ConfigError, match="tool mine: its parameters cannot be checked: it takes too long"):
        check_schema(ToolSpec(name="mine", description="", parameters=parameters))


def test_patterns_are_left_to_the_tool() -> None:
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    assert explain_misfit({"a": "a" * 60 + "!"}, ToolSpec(name="t", description="", parameters=slow)) is None


def test_shortening_keeps_characters_whole() -> None:
    assert "\ufffd" not in shorten_by_bytes("ü" * 1000, 7)
    assert shorten_by_bytes("short", 100) == "short"


def test_pictures_are_bounded_in_number_and_size() -> None:
    def act(_: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        return tuple(Content(image=context.store.add_image(Image.new("RGB", (400, 100), (i, 0, 0)))) for i in range(5))

    rollout = context()
    result = run(executor(Tool(act), bounds=Bounds(max_images=2, max_image_px=10_000)), into=rollout)
    assert [(block.text or "")[:21] for block in result.content][2:] == ["[3 pictures left out:"]
    assert [(image.width_px, image.height_px) for image in rollout.images] == [(200, 50)] * 2
    assert result.is_cut


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_earlier_calls_of_stateful_tools_are_replayed_for_a_branch() -> None:
    picture = Tool(
        lambda _, context: (Content(image=context.store.add_image(Image.new("RGB", (8, 8)))),), name="picture"
    )
    counter = Counter(name="counter")
    runner = executor(picture, counter)
    first = context()
    earlier = [run(runner, call(name), first) for name in ("counter", "picture", "counter")]
    branch = context("branch")
    asyncio.run(runner.replay(earlier, branch))
    assert (branch.state, len(branch.images)) == ({"count": 2}, 1)
    assert run(runner, call("counter"), branch).content == text("3 of 1 images")


def test_a_replay_that_differs_is_our_fault() -> None:
    runner = executor(Counter(name="counter"))
    recorded = ToolResult(call=call("counter"), content=text("something else"))
    with pytest.raises(ToolFault, match="did not answer what is on record"):
        asyncio.run(runner.replay([recorded], context()))


def test_calls_that_never_ran_are_not_replayed() -> None:
    runner = executor(Counter(name="counter"))
    refused = ToolFailure(kind=FailureKind.UNKNOWN_TOOL, message="There is no tool named 'counter'.")
    branch = context()
    asyncio.run(runner.replay([ToolResult(call=call("counter"), failure=refused)], branch))
    assert branch.state == {}


def test_all_tools_are_closed_even_when_one_fails() -> None:
    closed: list[str] = []

    class Closing(Tool):
        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise OSError("stuck")

    runner = executor(*(Closing(lambda *_: text("x"), name=name) for name in "abc"))
    with pytest.raises(OSError, match="stuck"):
        runner.close()
    assert sorted(closed) == ["a", "b", "c"]


def test_a_tool_that_never_closes_a_rollout_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Counter):
        async def close_rollout(self, context: ToolContext) -> None:
            await asyncio.sleep(3600)

    monkeypatch.setattr("axpo.rollout.executor.CLOSE_TIMEOUT_S", 0.01)
    counter = Counter(name="counter")
    asyncio.run(executor(Stuck(name="stuck"), counter).close_rollout(context("r8")))
    assert counter.closed == ["r8"]
    assert "stuck" in caplog.text


def test_every_stateful_tool_is_told_when_a_rollout_ends(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Counter):
        async def close_rollout(self, context: ToolContext) -> None:
            raise OSError("gone")

    counter = Counter(name="counter")
    asyncio.run(executor(Broken(name="broken"), counter).close_rollout(context("r7")))
    assert counter.closed == ["r7"]
    assert "broken" in caplog.text and "gone" in caplog.text
