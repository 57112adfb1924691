"""verl's `trainer.rollout_data_dir`: one JSONL file a step, responses as text without special tokens.

Fields: `input`, `output`, `score`, `step`, `gts`, and whatever the reward function returned besides. `score` may be
shaped (0.9 and 0.1, or 1 and -1); where the reward function also returned `acc`, that says what is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from axpo.diagnostics.importers.fields import Format, Names, Row, has, read_dialogue_row

NAMES: Names = {
    "question": ("uid",),
    "answer": ("gts",),
    "step": ("step",),
    "reward": ("acc", "score"),
    "prompt": ("input",),
    "text": ("output",),
    "messages": (),
    "truncated": (),
    "length": ("response_length",),
    "turns": (),
}


def _matches(row: Row, names: Names) -> bool:
    return has(row, names, "prompt", "text", "reward")


def _resolve(rows: Sequence[Row], names: Names) -> tuple[Names, str]:
    if names["reward"] != NAMES["reward"]:  # named by --map
        return names, ""
    if all(row.get("acc") in (0, 1) for row in rows):
        return {**names, "reward": ("acc",)}, "Reward: acc, the accuracy; choose the score with --map reward=score."
    return {**names, "reward": ("score",)}, ""


FORMAT = Format(
    name="verl", title="verl rollout dump", names=NAMES, matches=_matches, read=read_dialogue_row, resolve=_resolve
)
