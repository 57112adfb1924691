"""A bounded look at an evaluation for trackers: held-out questions, a few dialogues, their pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.codec import from_json
from axpo.diagnostics.recorder import RolloutRecord
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.types import ImageRef, SegmentKind

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_QUESTIONS = 64
MAX_DIALOGUES = 4
MAX_PICTURES = 12
MAX_PICTURE_PX = 512
"""Of the longer side."""
MAX_CELL_CHARS = 600
MAX_DIALOGUE_CHARS = 8000

TABLE_COLUMNS = ("question", "asked", "answer", "samples", "right", "with tool", "last answer")
SAMPLE_COLUMNS = ("rollout", "reward", "calls", "dialogue")
_UNSEEN = (SegmentKind.PROMPT,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a tracker gets to show."""

    questions: tuple[tuple[str | float, ...], ...]
    """Rows of `TABLE_COLUMNS`."""
    dialogues: tuple[tuple[str | float, ...], ...]
    """Rows of `SAMPLE_COLUMNS`."""
    pictures: tuple[tuple[str, Image], ...]


def read_samples(folder: Path, step: int) -> Samples:
    """From the rollouts file of the evaluation behind `step`: its first questions, read no further than that."""
    records: dict[str, list[RolloutRecord]] = {}
    for record in _records(folder / "rollouts" / f"eval-{step:06d}.jsonl"):
        records.setdefault(record.rollout.problem_id, []).append(record)
    shown = [_most_telling(group) for group in list(records.values())[:MAX_DIALOGUES]]
    return Samples(
        questions=tuple(_question_row(name, group) for name, group in records.items()),
        dialogues=tuple(_dialogue_row(record) for record in shown),
        pictures=tuple(_pictures(folder, shown)),
    )


def _records(path: Path) -> Iterator[RolloutRecord]:
    questions: set[str] = set()
    if not path.exists():  # every sample was lost to a fault of ours
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = from_json(RolloutRecord, json.loads(line))
            questions.add(record.rollout.problem_id)
            if len(questions) > MAX_QUESTIONS:
                return
            yield record


def _most_telling(group: list[RolloutRecord]) -> RolloutRecord:
    return max(group, key=lambda record: len(record.rollout.tool_results))


def _question_row(name: str, group: list[RolloutRecord]) -> tuple[str | float, ...]:
    rollouts = [record.rollout for record in group]
    num_right, num_tool = (sum(values) for values in zip(*((r.is_correct, r.uses_tool) for r in rollouts), strict=True))
    texts = (name, group[0].question, group[0].answer)
    return *map(_clip, texts), len(group), num_right, num_tool, _clip(rollouts[-1].final_text)


def _dialogue_row(record: RolloutRecord) -> tuple[str | float, ...]:
    rollout = record.rollout
    parts = zip(rollout.segments, record.segment_texts, strict=True)
    text = "".join(text for segment, text in parts if segment.kind not in _UNSEEN)
    dialogue = f"{record.question}\n\n{text}"[:MAX_DIALOGUE_CHARS]
    return rollout.id, rollout.reward, len(rollout.tool_results), dialogue


def _pictures(folder: Path, shown: list[RolloutRecord]) -> Iterator[tuple[str, Image]]:
    named = [(f"{r.rollout.id} picture {n}", image) for r in shown for n, image in enumerate(r.rollout.images)]
    for caption, image in named[:MAX_PICTURES]:
        yield caption, _load_small(folder / "images", image)


def _load_small(folder: Path, ref: ImageRef) -> Image:
    path = next(folder.glob(f"{ref.sha256}.*"), None)
    if path is None:
        raise DataError(f"image {ref.sha256[:12]} is not in {folder}")
    store = ContentImageStore()
    image = store.load(store.add_file(path)).copy()
    image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
    return image


def _clip(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARS else f"{text[: MAX_CELL_CHARS - 3]}..."
