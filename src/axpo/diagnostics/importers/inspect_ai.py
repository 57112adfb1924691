"""inspect_ai logs: `.eval` (a zip of one JSON file a sample) and `.json`. A sample's epochs are its rollouts.

A score is a number, a boolean, or one of inspect's letters: C right, I wrong, P half, N no answer. Of several scorers
the first counts; choose another with `--map reward=scores.NAME.value`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from axpo.diagnostics.importers.dialogue import prompt_key, read_messages, split_prompt
from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, key_text, pick, read_count, read_reward
from axpo.diagnostics.importers.seen import SeenRollout

NAMES: Names = {"question": ("id",), "step": (), "reward": ()}
_LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def _matches(row: Row, names: Names) -> bool:
    return "epoch" in row and "scores" in row and isinstance(row.get("messages"), list)


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    prompt, rest = split_prompt(cast("list[Any]", row["messages"]))
    heard = read_messages(rest)
    question = pick(row, names, "question")
    step = read_count(pick(row, names, "step"))
    return (
        SeenRollout(
            question=key_text(question) if question is not None else prompt_key(prompt),
            step=origin.step if step is None else step,
            reward=_score(row, names),
            uses_tool=bool(heard.calls),
            calls=tuple(heard.calls),
            num_calls_in_thinking=heard.num_in_thinking,
            is_truncated=row.get("limit") is not None
            or pick(row, {"reason": ("output.stop_reason",)}, "reason") in ("max_tokens", "model_length"),
            length=_num_tokens(row) or None,
            num_turns=heard.num_turns,
        ),
    )


def _score(row: Row, names: Names) -> float | None:
    """None for a sample that a fault ended: it was not scored."""
    if names["reward"]:
        value = pick(row, names, "reward")
    else:
        scores = row.get("scores")
        first = next(iter(cast("Mapping[str, Any]", scores).values()), None) if isinstance(scores, Mapping) else None
        value = cast("Mapping[str, Any]", first).get("value") if isinstance(first, Mapping) else None
    if isinstance(value, str) and value in _LETTERS:
        return _LETTERS[value]
    return read_reward(value)


def _num_tokens(row: Row) -> int:
    usage = row.get("model_usage")
    models = list(cast("Mapping[str, Any]", usage).values()) if isinstance(usage, Mapping) else []
    named = [cast("Mapping[str, Any]", model) for model in models if isinstance(model, Mapping)]
    return sum(read_count(model.get("output_tokens")) or 0 for model in named)


FORMAT = Format(name="inspect", title="inspect_ai log", names=NAMES, matches=_matches, read=_read, length_unit="tokens")
