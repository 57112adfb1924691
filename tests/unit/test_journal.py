"""After a crash nothing that was answered is asked again, and the transcripts are those of a run without one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.dialogue import TokenUsage, Transcript
from axpo.errors import DataError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ChatReply, ChatRequest, ToolContext
from axpo.rollout import journal as journal_module
from axpo.rollout.calls import read_call
from axpo.rollout.chat import ChatSetup, run_chat
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.rollout.journal import TurnJournal
from axpo.rollout.loop import RolloutLimits
from axpo.tools.fakes import EchoTool
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import Content, Message, Problem, SamplingParams, ToolCall, ToolSpec

CALLS = (
    '{"name": "count", "arguments": {}}',
    '{"name": "image_zoom_in", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "x", "img_idx": 0}}',
)
ROLLOUTS = ("r0", "r1")


class Crash(BaseException):
    """Stands for `kill -9`."""


class CountTool:
    """Stateful: how often this rollout has called it."""

    spec = ToolSpec(name="count", description="Counts.", parameters={"type": "object", "properties": {}})

    def __init__(self) -> None:
        self.num_runs = 0

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        self.num_runs += 1
        context.state["count"] = context.state.get("count", 0) + 1
        return (Content(text=str(context.state["count"])),)

    async def close_rollout(self, context: ToolContext) -> None:
        context.state.clear()


class Service:
    """Calls both tools twice, then answers with what it was told. Outlives every crash of its client."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.num_calls = 2

    async def reply(self, request: ChatRequest) -> ChatReply:
        turn = sum(message.role == "assistant" for message in request.messages)
        self.asked.append((request.messages[0].text, turn))
        await asyncio.sleep(0)
        usage = TokenUsage(prompt_tokens=10 * turn, completion_tokens=5)
        results = [message for message in request.messages if message.role == "tool"]
        told = " ".join(message.text for message in results if not message.images)
        calls = tuple(read_call(n, raw, is_closed=True) for n, raw in enumerate(CALLS)) if turn < self.num_calls else ()
        message = Message(role="assistant", content=(Content(text=f"So far: {told}"),), tool_calls=calls)
        return ChatReply(message=message, finish_reason="stop", usage=usage)

    async def close(self) -> None:
        pass


class World:
    """One process after another over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "turns.jsonl"
        self.service = Service()
        self.tool: Any = CountTool()

    def open(self) -> tuple[ChatSetup, dict[str, Problem]]:
        store = ContentImageStore()
        image = store.add_image(Image.linear_gradient("L"))
        setup = ChatSetup(
            model=self.service,
            executor=ToolExecutor(
                tools={"count": self.tool, "image_zoom_in": ImageZoomTool()},
                default_limits=ToolLimits(max_retries=0),
            ),
            store=store,
            limits=RolloutLimits(max_tool_turns=3, max_response_tokens=1000),
            sampling=SamplingParams(),
            journal=TurnJournal(self.path, store=store, pictures=self.folder / "pictures"),
        )
        content = {id: (Content(text=id), Content(image=image)) for id in ROLLOUTS}
        return setup, {
            id: Problem(id=id, messages=(Message(role="user", content=content[id]),), answer="") for id in ROLLOUTS
        }

    def run(self, *, finished: dict[str, Transcript] | None = None) -> dict[str, Transcript]:
        """A process that records each transcript in `finished` and lets go of its journal."""
        setup, problems = self.open()
        assert setup.journal is not None
        done = {} if finished is None else finished

        async def one(id: str) -> None:
            transcript = await run_chat(problems[id], setup=setup, rollout_id=id, seed=1)
            done[id] = transcript
            assert setup.journal is not None
            setup.journal.forget(id)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(id) for id in ROLLOUTS if id not in done))

        try:
            asyncio.run(all_of_them())
        finally:
            os.close(setup.journal._file)
        return done

    @property
    def lines(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes() if self.path.exists() else b""
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def steady(transcripts: dict[str, Transcript]) -> dict[str, Transcript]:
    """Without times."""
    return {
        id: dataclasses.replace(
            t,
            wall_time_s=0.0,
            tool_results=tuple(
                dataclasses.replace(result, wall_time_s=0.0, queue_time_s=0.0) for result in t.tool_results
            ),
        )
        for id, t in transcripts.items()
    }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Transcript]:
    return steady(World(tmp_path_factory.mktemp("reference")).run())


def test_the_reference_is_worth_repeating(reference: dict[str, Transcript]) -> None:
    assert set(reference) == set(ROLLOUTS)
    for transcript in reference.values():
        assert transcript.final_text == "So far: 1 2"
        assert len(transcript.tool_results) == 4
        assert sum(len(result.message.images) for result in transcript.tool_results) == 2


# Lines of one run: for each rollout three replies, the results of two turns, the mark that it is done.
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0], ids=["before the line", "in the line", "after the line"])
@pytest.mark.parametrize("line", range(12))
def test_killed_at_any_line_it_goes_on_and_asks_nothing_answered(
    world: World, reference: dict[str, Transcript], monkeypatch: pytest.MonkeyPatch, line: int, part: float
) -> None:
    write = os.write
    left = [line, 0]

    def dying_write(file: int, data: Any) -> int:
        if left[0] == 0:
            left[0] = -1
            write(file, bytes(data)[: int(part * len(data))])
        if left[0] < 0:
            raise Crash
        left[0] -= 1
        return write(file, data)

    finished: dict[str, Transcript] = {}
    monkeypatch.setattr(journal_module.os, "write", dying_write)
    with pytest.raises(Crash):
        world.run(finished=finished)
    monkeypatch.setattr(journal_module.os, "write", write)
    answered = {(entry["rollout"], entry["turn"]) for entry in world.lines if "reply" in entry}
    asked_before = list(world.service.asked)
    world.service.asked.clear()

    assert steady(world.run(finished=finished)) == reference
    assert answered.isdisjoint(world.service.asked)
    assert len(world.service.asked) == len(set(world.service.asked))
    assert set(asked_before) | set(world.service.asked) == {(id, turn) for id in ROLLOUTS for turn in range(3)}
    in_flight = set(asked_before) & set(world.service.asked)
    assert len(in_flight) <= len(ROLLOUTS)


def test_a_second_crash_after_a_first_loses_nothing_either(
    world: World, reference: dict[str, Transcript], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process dies at its third line."""
    write = os.write
    finished: dict[str, Transcript] = {}
    for _ in range(20):
        left = [2]

        def dying_write(file: int, data: Any, left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] < 0:
                write(file, bytes(data)[: len(data) // 3])
                raise Crash
            return write(file, data)

        monkeypatch.setattr(journal_module.os, "write", dying_write)
        try:
            world.run(finished=finished)
        except Crash:
            continue
        break
    assert steady(finished) == reference


def test_results_on_record_are_not_run_again_but_stateful_tools_are(world: World) -> None:
    setup, problems = world.open()

    async def run() -> None:
        await run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1)

    asyncio.run(run())
    world.tool = CountTool()
    setup, problems = world.open()
    asyncio.run(run())
    assert world.tool.num_runs == 2
    assert len(world.service.asked) == 3


def test_a_tool_that_does_not_answer_as_before_ends_the_try_and_the_next_starts_anew(world: World) -> None:
    setup, problems = world.open()

    async def run() -> Transcript:
        return await run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1)

    asyncio.run(run())

    class Changed(CountTool):
        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            return (Content(text="other"),)

    world.tool = Changed()
    setup, problems = world.open()
    with pytest.raises(ToolFault, match="did not"):
        asyncio.run(run())
    assert asyncio.run(run()).final_text == "So far: other other"
    assert len(world.service.asked) == 6
    world.open()
    setup, problems = world.open()
    assert asyncio.run(run()).final_text == "So far: other other"
    assert len(world.service.asked) == 6, "what was answered after the new start was dropped with what was before it"


@pytest.mark.parametrize("change", ["seed", "limit", "question"])
def test_a_reply_belongs_to_its_request(world: World, change: str) -> None:
    setup, problems = world.open()
    asyncio.run(run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1))
    setup, problems = world.open()
    problem, seed = problems["r0"], 1
    if change == "seed":
        seed = 2
    elif change == "limit":
        limits = dataclasses.replace(setup.limits, max_response_tokens=999)
        setup = dataclasses.replace(setup, limits=limits)
    else:
        problem = problems["r1"]
    asyncio.run(run_chat(problem, setup=setup, rollout_id="r0", seed=seed))
    assert len(world.service.asked) == 6


def test_finished_rollouts_leave_memory_at_once_and_the_file_at_the_next_start(world: World) -> None:
    world.run()
    assert len(world.lines) == 12
    setup, _ = world.open()
    assert setup.journal is not None
    assert setup.journal._places == {}
    assert world.lines == []


def test_the_time_that_was_used_is_not_given_back(world: World) -> None:
    now = [0.0]

    class Slow(CountTool):
        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            now[0] += 100.0
            return await super().run(call, context)

    world.tool = Slow()
    for _ in range(2):
        setup, problems = world.open()
        setup.executor.clock = lambda: now[0]
        transcript = asyncio.run(run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1))
        assert transcript.wall_time_s == 200.0
    assert now[0] == 400.0


def test_a_picture_that_was_taken_away_is_told(world: World) -> None:
    setup, problems = world.open()
    asyncio.run(run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1))
    for path in (world.folder / "pictures").iterdir():
        path.unlink()
    setup, problems = world.open()
    with pytest.raises(DataError, match="picture"):
        asyncio.run(run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1))


@pytest.mark.parametrize("bad", [b"\x00\x01\n", b"[]\n", b'{"turn": 1}\n', b"[" * 100_000 + b"\n"])
def test_a_broken_line_before_the_last_is_named(world: World, bad: bytes) -> None:
    world.run()
    world.path.write_bytes(bad + world.path.read_bytes())
    with pytest.raises(DataError, match="line 1"):
        world.open()


_PROGRAM = """
    import asyncio, os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import test_journal as t

    world = t.World(Path({folder!r}))
    left = [2]
    write = os.write

    def dying_write(file, data):
        left[0] -= 1
        if left[0] < 0:
            write(file, bytes(data)[:20])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, data)

    t.journal_module.os.write = dying_write
    log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    class Noted(list):
        def append(self, asked):
            super().append(asked)
            write(log, repr(asked).encode() + b"\\n")
    world.service.asked = Noted()
    setup, problems = world.open()

    async def run():
        return await t.run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1)

    print(asyncio.run(run()).final_text)
"""


def test_processes_that_are_killed_get_there_in_the_end(tmp_path: Path) -> None:
    log = tmp_path / "asked.log"
    program = _PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path), log=str(log))
    codes: list[int] = []
    for _ in range(8):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
        if done.returncode == 0:
            break
    assert done.stdout == "So far: 1 2\n", done.stderr
    assert codes == [-9, -9, 0]  # five lines, two a process
    # both died while an answer was on its way to disk, and only those were asked for again
    assert log.read_text().splitlines() == [f"('r0', {turn})" for turn in (0, 1, 1, 2, 2)]


def test_a_stateless_tool_needs_no_replay(world: World) -> None:
    class Once(EchoTool):
        num_runs = 0

        def __init__(self) -> None:
            super().__init__(name="count")
            self.spec = CountTool.spec

        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            Once.num_runs += 1
            return (Content(text="1"),)

    world.tool = Once()
    for _ in range(2):
        setup, problems = world.open()
        asyncio.run(run_chat(problems["r0"], setup=setup, rollout_id="r0", seed=1))
    assert Once.num_runs == 2
