"""slime's debug rollout data, exported to JSONL: one `Sample.to_dict()` a line, or `{"rollout_id", "samples"}`.

slime itself writes `torch.save` files (`.pt`). Those are pickles, which run code when loaded; they are refused, and
`docs/diagnose.md` shows how whoever trusts a file exports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, has, read_count, read_dialogue_row
from axpo.diagnostics.importers.seen import SeenRollout

NAMES: Names = {
    "question": ("group_index",),
    "answer": ("label",),
    "step": (),
    "reward": ("reward",),
    "prompt": ("prompt",),
    "text": ("response",),
    "messages": (),
    "truncated": (),
    "length": ("response_length",),
    "turns": (),
}


def _matches(row: Row, names: Names) -> bool:
    if isinstance(row.get("samples"), list) and "rollout_id" in row:
        return True
    return has(row, names, "prompt", "text") and "status" in row


def _read(row: Row, names: Names, origin: Origin) -> Iterator[SeenRollout]:
    samples = row.get("samples")
    if not isinstance(samples, list):
        yield from _read_sample(row, names, origin)
        return
    step = read_count(row.get("rollout_id"))
    inner = replace(origin, step=origin.step if step is None else step)
    for sample in cast("list[Any]", samples):
        if not isinstance(sample, dict):
            raise TypeError(f"a sample is {type(sample).__name__}, expected an object")
        yield from _read_sample(cast("Row", sample), names, inner)


def _read_sample(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    """`aborted` samples never ended: they are scored by nobody."""
    [seen] = read_dialogue_row(row, names, origin)
    status = row.get("status")
    reward = None if status == "aborted" else seen.reward
    return (replace(seen, reward=reward, is_truncated=status == "truncated"),)


FORMAT = Format(
    name="slime",
    title="slime rollout data (JSONL export)",
    names=NAMES,
    matches=_matches,
    read=_read,
    length_unit="tokens",
)
