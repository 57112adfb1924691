"""verifiers: `results.jsonl` (one rollout a line) and `traces.jsonl` (one episode a line), also written by prime-rl.

An episode holds traces of one or more agents; those that train count. A trace is a graph of messages in which a branch
is a path to a leaf; the last branch is the dialogue, and a message counts as the policy's when it was sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from axpo.diagnostics.importers.dialogue import read_messages
from axpo.diagnostics.importers.fields import (
    Format,
    Names,
    Origin,
    Row,
    has,
    key_text,
    pick,
    read_count,
    read_dialogue_row,
    read_reward,
)
from axpo.diagnostics.importers.seen import SeenRollout

RESULT_NAMES: Names = {
    "question": ("example_id",),
    "answer": (),
    "step": ("step",),
    "reward": ("reward",),
    "prompt": ("prompt",),
    "text": ("completion",),
    "messages": (),
    "truncated": ("is_truncated",),
    "length": ("token_usage.final_output_tokens", "token_usage.output_tokens"),
    "turns": (),
}
TRACE_NAMES: Names = {
    "question": ("group.id", "task.key", "task.hash", "task.data.idx"),
    "step": ("run.work.step",),
    "reward": (),
}
_LIMITS = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "context_length")


def _matches_result(row: Row, names: Names) -> bool:
    return "example_id" in row and "completion" in row and has(row, names, "reward")


def _matches_trace(row: Row, names: Names) -> bool:
    return isinstance(row.get("traces"), list) and isinstance(row.get("task"), Mapping)


def _read_episode(row: Row, names: Names, origin: Origin) -> Iterator[SeenRollout]:
    question, step = pick(row, names, "question"), read_count(pick(row, names, "step"))
    if question is None:
        question = pick(row, {"prompt": ("task.data.prompt",)}, "prompt")
    if question is None:
        raise ValueError("the episode names no group and no task")
    for trace in cast("list[Any]", row["traces"]):
        if not isinstance(trace, Mapping):
            raise TypeError(f"a trace is {type(trace).__name__}, expected an object")
        fields = cast("Mapping[str, Any]", trace)
        if pick(fields, {"trainable": ("agent.trainable",)}, "trainable") is not False:
            yield _read_trace(fields, names, key_text(question), origin.step if step is None else step)


def _read_trace(trace: Row, names: Names, question: str, step: int | None) -> SeenRollout:
    nodes = _objects(trace.get("nodes"))
    branch = _last_branch(nodes)
    messages = [_as_context(node) for node in branch]
    heard = read_messages(messages)
    lengths = [_num_tokens(node) for node in branch if node.get("sampled") is True]
    calls = _objects(trace.get("calls"))
    ran_out = trace.get("is_timeout") is True or trace.get("stop_condition") in _LIMITS
    is_cut = ran_out or (bool(calls) and calls[-1].get("finish_reason") == "length")
    return SeenRollout(
        question=question,
        step=step,
        reward=_reward(trace, names),
        uses_tool=bool(heard.calls),
        calls=tuple(heard.calls),
        num_calls_in_thinking=heard.num_in_thinking,
        is_truncated=is_cut,
        length=sum(lengths) if any(lengths) else read_count(trace.get("num_output_tokens")),
        num_turns=heard.num_turns,
    )


def _last_branch(nodes: list[Row]) -> list[Row]:
    """From the root to the last node. A parent comes before its children, so that no cycle can be walked."""
    path: list[Row] = []
    position: int | None = len(nodes) - 1 if nodes else None
    while position is not None:
        path.append(nodes[position])
        parent = read_count(nodes[position].get("parent"))
        position = parent if parent is not None and parent < position else None
    return path[::-1]


def _as_context(node: Row) -> Any:
    """An assistant message that nobody sampled was part of the prompt."""
    message = node.get("message")
    if isinstance(message, Mapping) and node.get("sampled") is not True:
        fields = cast("Mapping[str, Any]", message)
        return {**fields, "role": "context"} if fields.get("role") == "assistant" else fields
    return message


def _num_tokens(node: Row) -> int:
    logprobs = node.get("logprobs")
    return len(cast("list[Any]", logprobs)) if isinstance(logprobs, list) else 0


def _reward(trace: Row, names: Names) -> float | None:
    """The weighted sum of the rewards; of a trace that failed for a fault of the machinery there is none."""
    if names["reward"]:
        return read_reward(pick(trace, names, "reward"))
    rewards = trace.get("rewards")
    if trace.get("ok") is False or not isinstance(rewards, Mapping):
        return None
    values = list(_objects(list(cast("Mapping[str, Any]", rewards).values())))
    parts = [(read_reward(value.get("score")), read_reward(value.get("weight", 1.0))) for value in values]
    known = [score * weight for score, weight in parts if score is not None and weight is not None]
    return sum(known) if known else None


def _objects(value: Any) -> list[Row]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast("Row", item) for item in items if isinstance(item, Mapping)]


RESULTS = Format(
    name="verifiers",
    title="verifiers results",
    names=RESULT_NAMES,
    matches=_matches_result,
    read=read_dialogue_row,
)
TRACES = Format(
    name="verifiers-traces",
    title="verifiers / prime-rl traces",
    names=TRACE_NAMES,
    matches=_matches_trace,
    read=_read_episode,
    length_unit="tokens",
)
