"""rLLM's episodes: one `Episode.to_dict()` per line, with trajectories of steps.

Fields: `id` (`TASK:ROLLOUT`), `task`, `is_correct`, `termination_reason`, `trajectories`. A trajectory whose last step
contains the whole chat is one rollout; its reward is `is_correct` of the episode, which is the same for all agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, pick, read_dialogue_row
from axpo.diagnostics.importers.seen import SeenRollout

NAMES: Names = {"question": (), "step": ("step", "info.step"), "reward": ("is_correct",)}
_TRUNCATED = ("max_prompt_length_exceeded", "max_response_length_exceeded", "max_turns_exceeded", "timeout")


def _matches(row: Row, names: Names) -> bool:
    return isinstance(row.get("trajectories"), list) and "is_correct" in row


def _read(row: Row, names: Names, origin: Origin) -> Iterator[SeenRollout]:
    question = pick(row, names, "question")
    if question is None:
        question = str(row.get("id", "")).rpartition(":")[0] or row.get("task")
    for value in cast("list[Any]", row["trajectories"]):
        trajectory = _object(value, "a trajectory")
        steps = trajectory.get("steps")
        if not isinstance(steps, list) or not steps:
            raise ValueError(f"trajectory {trajectory.get('name')!r} has no steps")
        last = _object(cast("list[Any]", steps)[-1], "a step")
        rollout = {
            "question": question,
            "agent": trajectory.get("name"),
            "step": pick(row, names, "step"),
            "reward": pick(row, names, "reward"),
            "messages": last.get("chat_completions"),
            "truncated": row.get("termination_reason") in _TRUNCATED,
        }
        yield from read_dialogue_row(rollout, _ROLLOUT, origin)


_ROLLOUT: Names = {
    "question": ("question",),
    "answer": ("agent",),  # agents of one episode have prompts and groups of their own
    "step": ("step",),
    "reward": ("reward",),
    "prompt": (),
    "text": (),
    "messages": ("messages",),
    "truncated": ("truncated",),
    "length": (),
    "turns": (),
}


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is {type(value).__name__}, expected an object")
    return cast("Mapping[str, Any]", value)


FORMAT = Format(name="rllm", title="rLLM episodes", names=NAMES, matches=_matches, read=_read)
