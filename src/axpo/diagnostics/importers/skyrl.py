"""SkyRL's evaluation dumps: one JSONL file per data source.

Fields: `input_prompt`, `output_response`, `score` (a number, or one number per token), `stop_reason`, `env_extras`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, has, pick, read_dialogue_row, sum_rewards
from axpo.diagnostics.importers.seen import SeenRollout

NAMES: Names = {
    "question": (),
    "answer": ("env_extras.reward_spec.ground_truth", "env_extras.reward_model.ground_truth"),
    "step": ("global_step",),
    "reward": ("score",),
    "prompt": ("input_prompt",),
    "text": ("output_response",),
    "messages": (),
    "truncated": (),
    "length": (),
    "turns": (),
}


def _matches(row: Row, names: Names) -> bool:
    return "stop_reason" in row and has(row, names, "prompt", "text", "reward")


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    reward: Any = pick(row, names, "reward")
    [seen] = read_dialogue_row(row, {**names, "reward": ()}, origin)
    return (replace(seen, reward=sum_rewards(reward), is_truncated=row.get("stop_reason") == "length"),)


FORMAT = Format(name="skyrl", title="SkyRL evaluation dump", names=NAMES, matches=_matches, read=_read)
