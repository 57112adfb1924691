"""TRL's completions: Parquet or JSONL, one row a completion, and the table it sends to trackio.

Columns: `step`, `prompt` and `completion` (messages where the prompts are conversations, else text), one column per
reward function, columns of `log_extra`, `advantage`. The reward that trained is a weighted sum of those columns, and
the weights are not in the dump. So: the only number column is the reward; of several, the only one whose name says
correctness (`accuracy`, `correct`, `solved`) is; else their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, has, read_dialogue_row, sum_rewards
from axpo.diagnostics.importers.files import RUN_FIELD
from axpo.diagnostics.importers.seen import SeenRollout

NAMES: Names = {
    "question": (),
    "answer": (),
    "step": ("step",),
    "reward": (),
    "prompt": ("prompt",),
    "text": ("completion",),
    "messages": (),
    "truncated": (),
    "length": (),
    "turns": (),
}
_NOT_REWARDS = {"step", "prompt", "completion", "advantage", "image", "images", "__index_level_0__"}
_SAYS_CORRECT = ("accuracy", "correct", "solved")
_SUM = "\x00sum"


def _matches(row: Row, names: Names) -> bool:
    return has(row, names, "prompt", "text") and "advantage" in row


def _resolve(rows: Sequence[Row], names: Names) -> tuple[Names, str]:
    if names["reward"]:
        return names, ""
    columns = dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value))
    rewards = [column for column in columns if column not in _NOT_REWARDS]
    correct = [column for column in rewards if any(word in column.lower() for word in _SAYS_CORRECT)]
    if len(rewards) <= 1:
        return {
            **names,
            "reward": tuple(rewards),
        }, f"Reward: {rewards[0]}." if rewards else "No reward column was found."
    chosen = correct if len(correct) == 1 else rewards
    note = (
        f"Reward: {' + '.join(chosen)}, of the columns {', '.join(rewards)}; choose another with --map reward=COLUMN."
    )
    return {**names, "reward": (_SUM, *chosen) if len(chosen) > 1 else tuple(chosen)}, note


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    if names["reward"][:1] == (_SUM,):
        row = {**row, _SUM: sum_rewards([row.get(column) for column in names["reward"][1:]])}
    [seen] = read_dialogue_row(row, {**names, "reward": names["reward"][:1]}, origin)
    run = row.get(RUN_FIELD)  # a trackio project holds many runs, often on the same questions
    return (replace(seen, question=f"{run}\x00{seen.question}") if isinstance(run, str) else seen,)


FORMAT = Format(name="trl", title="TRL completions", names=NAMES, matches=_matches, read=_read, resolve=_resolve)
