"""Conversations in OpenAI's format, one JSON object a line, with a score beside them."""

from __future__ import annotations

from axpo.diagnostics.importers.fields import Format, Names, Row, has, read_dialogue_row

NAMES: Names = {
    "question": ("question_id", "problem_id", "example_id", "prompt_id", "task_id", "group_id", "question"),
    "answer": ("answer", "ground_truth", "label"),
    "step": ("step", "global_step"),
    "reward": ("reward", "score", "correct", "is_correct"),
    "prompt": (),
    "text": (),
    "messages": ("messages", "conversation", "conversations"),
    "truncated": ("truncated", "is_truncated"),
    "length": ("num_tokens", "completion_tokens", "usage.completion_tokens"),
    "turns": (),
    "confidence": ("confidence",),
}


def _matches(row: Row, names: Names) -> bool:
    return isinstance(row.get(next((key for key in names["messages"] if key in row), "")), list) and has(
        row, names, "reward"
    )


FORMAT = Format(name="openai", title="OpenAI-style messages", names=NAMES, matches=_matches, read=read_dialogue_row)
