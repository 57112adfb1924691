"""NeMo-RL's `train_data_step*.jsonl`: one rollout per line, its messages as texts without roles.

Fields: `content` (a list: one text per message, or the whole rollout as one text), `rewards`, `idx`. The first text is
the prompt. A single text is split at the first turn of the assistant, where its chat markup shows one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, pick, read_dialogue_row, sum_rewards
from axpo.diagnostics.importers.seen import SeenRollout

NAMES: Names = {
    "question": (),
    "answer": (),
    "step": ("step",),
    "reward": ("rewards",),
    "prompt": ("prompt",),
    "text": ("content",),
    "messages": (),
    "truncated": (),
    "length": (),
    "turns": (),
}
_ASSISTANT_TURN = "<|im_start|>assistant\n"


def _matches(row: Row, names: Names) -> bool:
    return isinstance(row.get("content"), list) and "rewards" in row and "idx" in row


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    texts = list(_texts(pick(row, names, "text")))
    prompt, response = (texts[0], "".join(texts[1:])) if len(texts) > 1 else _split("".join(texts))
    plain_row = {**row, "prompt": prompt, "content": response, "rewards": sum_rewards(pick(row, names, "reward"))}
    return read_dialogue_row(plain_row, {**names, "text": ("content",), "reward": ("rewards",)}, origin)


def _texts(value: Any) -> Iterator[str]:
    """The texts of a list, however it is nested."""
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
    else:
        raise TypeError(f"content contains {type(value).__name__}, expected text")


def _split(text: str) -> tuple[str, str]:
    prompt, turn, response = text.partition(_ASSISTANT_TURN)
    if not turn:
        raise ValueError(
            "content is one text without chat markup, so prompt and response cannot be told apart; write the minimal "
            "schema instead (docs/diagnose.md)"
        )
    return prompt, response


FORMAT = Format(name="nemo-rl", title="NeMo-RL training data", names=NAMES, matches=_matches, read=_read)
