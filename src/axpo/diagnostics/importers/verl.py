"""verl's `trainer.rollout_data_dir`: one JSONL file a step, responses as text without special tokens.

Fields: `input`, `output`, `score`, `step`, `gts`, and whatever the reward function returned besides.
"""

from __future__ import annotations

from axpo.diagnostics.importers.fields import Format, Names, Row, has, read_dialogue_row

NAMES: Names = {
    "question": ("uid",),
    "answer": ("gts",),
    "step": ("step",),
    "reward": ("score",),
    "prompt": ("input",),
    "text": ("output",),
    "messages": (),
    "truncated": (),
    "length": ("response_length",),
    "turns": (),
}


def _matches(row: Row, names: Names) -> bool:
    return has(row, names, "prompt", "text", "reward")


FORMAT = Format(name="verl", title="verl rollout dump", names=NAMES, matches=_matches, read=read_dialogue_row)
