"""A few groups of a run as trees: the question, its siblings, the frozen prefix, the continuations under it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from axpo.diagnostics.recorder import RolloutRecord, read_rollouts, rollout_files
from axpo.diagnostics.zoom import Box, is_hit, parse_box, zoom_box
from axpo.reports.pictures import PictureBook, css_class
from axpo.reports.runs import Arm, Run
from axpo.types import ImageRef, Rollout, RowRole, SegmentKind, StopReason, ToolResult

MAX_TEXT_CHARS = 4000
MAX_SIBLINGS = 16

_TEMPLATE_TOKEN = re.compile(r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|image_pad)\|>")
_THINK_TAG = re.compile(r"</?think>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

BlockKind = Literal["thinking", "open", "call", "result", "answer", "text"]
Outcome = Literal["right", "wrong", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxView:
    """A box on a picture, in percent of its sides."""

    left: float
    top: float
    width: float
    height: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureView:
    """A picture with boxes; `css_class` is None when it cannot be shown."""

    css_class: str | None
    aspect: float
    boxes: tuple[BoxView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """One segment of a dialogue."""

    kind: BlockKind
    text: str
    pictures: tuple[PictureView, ...] = ()
    advantage: float | None = None
    """None: these tokens do not learn in this row."""
    is_frozen: bool = False
    is_failure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """A rollout as a card with its dialogue."""

    id: str
    is_right: bool
    num_calls: int
    answer: str
    advantage: float | None
    is_resampled: bool
    stop_reason: StopReason
    blocks: tuple[BlockView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchView:
    """A frozen prefix with its continuations."""

    source_number: int
    prefix: tuple[BlockView, ...]
    confidence: float | None
    advantage: float | None
    is_recovered: bool
    continuations: tuple[RolloutView, ...]
    picture: PictureView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """One question of one step."""

    arm_index: int
    arm_label: str
    run_name: str
    step: int
    question: str
    answer: str
    is_triggered: bool
    siblings: tuple[RolloutView, ...]
    branches: tuple[BranchView, ...]
    picture: PictureView | None

    @property
    def is_recovered(self) -> bool:
        """True when a continuation was right."""
        return any(branch.is_recovered for branch in self.branches)

    @property
    def num_tool(self) -> int:
        """Siblings that called a tool."""
        return sum(sibling.num_calls > 0 for sibling in self.siblings)

    @property
    def num_tool_right(self) -> int:
        """Of them, the right ones."""
        return sum(sibling.num_calls > 0 and sibling.is_right for sibling in self.siblings)

    @property
    def num_direct_right(self) -> int:
        """Right siblings that called none."""
        return sum(sibling.num_calls == 0 and sibling.is_right for sibling in self.siblings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """The records of one question in one rollouts file."""

    run: Run
    arm_index: int
    step: int
    siblings: tuple[RolloutRecord, ...]
    continuations: tuple[RolloutRecord, ...]

    @property
    def category(self) -> str:
        """What the group is an example of."""
        uses_tool = any(record.rollout.uses_tool for record in self.siblings)
        if any(record.rollout.is_correct for record in self.continuations):
            return "recovered"
        if self.continuations:
            return "unrecovered"
        if self.siblings[0].is_triggered:
            return "triggered, not resampled"
        return "tool success" if uses_tool else "no tool"

    @property
    def shows_gap(self) -> bool:
        """A direct answer is right while the calls are wrong: what starves the call under GRPO."""
        return any(record.rollout.is_correct and not record.rollout.uses_tool for record in self.siblings)


# -- choosing ---------------------------------------------------------------------------------------------------------


def choose_groups(arms: Sequence[Arm], *, max_groups: int) -> tuple[RecordedGroup, ...]:
    """Telling groups: recovered early and late, one not recovered, a baseline's, a call that succeeded."""
    early: list[RecordedGroup] = []
    late: list[RecordedGroup] = []
    for index, arm in enumerate(arms):
        files = rollout_files(arm.runs[0].folder, "train")
        steps = list(files)
        for chosen, part in ((early, steps[:3]), (late, steps[-1:] if len(steps) > 3 else [])):
            chosen += [group for step in part for group in _read_groups(arm.runs[0], index, step)]
    wanted = (
        (early, "recovered", "AXPO"),
        (early, "unrecovered", "AXPO"),
        (early, "triggered, not resampled", "GRPO"),
        (late, "recovered", "AXPO"),
        (late, "tool success", "AXPO"),
        (late, "no tool", "GRPO"),
    )
    picked: list[RecordedGroup] = []
    for pool, category, method in wanted:
        fitting = [group for group in pool if group.category == category and arms[group.arm_index].method == method]
        picked += sorted(fitting, key=lambda group: not group.shows_gap)[:1]
    picked += [group for group in (*early, *late) if group not in picked]
    return tuple(picked[:max_groups])


def _read_groups(run: Run, arm_index: int, step: int) -> Iterator[RecordedGroup]:
    by_problem: dict[str, list[RolloutRecord]] = {}
    for record in read_rollouts(rollout_files(run.folder, "train")[step]):
        by_problem.setdefault(record.rollout.problem_id, []).append(record)
    for records in by_problem.values():
        siblings = tuple(record for record in records if record.phase == "train")
        continuations = tuple(record for record in records if record.phase == "resample")
        if siblings:
            yield RecordedGroup(run=run, arm_index=arm_index, step=step, siblings=siblings, continuations=continuations)


# -- building ---------------------------------------------------------------------------------------------------------


def build_group(group: RecordedGroup, arms: Sequence[Arm], pictures: PictureBook) -> GroupView:
    """The view of a group; its pictures go into the book."""
    siblings = group.siblings[:MAX_SIBLINGS]
    numbers = {record.rollout.id: number for number, record in enumerate(siblings, start=1)}
    branches: dict[str, list[RolloutRecord]] = {}
    for record in group.continuations:
        if record.rollout.prefix is not None and record.rollout.prefix.source_id in numbers:
            branches.setdefault(record.rollout.prefix.source_id, []).append(record)
    first = siblings[0]
    return GroupView(
        arm_index=group.arm_index,
        arm_label=arms[group.arm_index].label,
        run_name=group.run.name,
        step=group.step,
        question=_clip(first.question.strip()),
        answer=_clip(first.answer),
        is_triggered=first.is_triggered,
        siblings=tuple(_build_rollout(record, group.run, pictures) for record in siblings),
        branches=tuple(
            _build_branch(siblings[numbers[source_id] - 1], numbers[source_id], records, group.run, pictures)
            for source_id, records in branches.items()
        ),
        picture=_overview(siblings, group.run, pictures),
    )


def _build_branch(
    source: RolloutRecord, number: int, records: Sequence[RolloutRecord], run: Run, pictures: PictureBook
) -> BranchView:
    reference = records[0].rollout.prefix
    assert reference is not None
    blocks = _build_blocks(source, run, pictures, stop=reference.num_tokens)
    return BranchView(
        source_number=number,
        prefix=tuple(replace(block, is_frozen=True) for block in blocks),
        confidence=source.confidence,
        advantage=_advantage(source, 0, reference.num_tokens),
        is_recovered=any(record.rollout.is_correct for record in records),
        continuations=tuple(_build_rollout(record, run, pictures) for record in records),
        picture=_overview(records, run, pictures),
    )


def _build_rollout(record: RolloutRecord, run: Run, pictures: PictureBook) -> RolloutView:
    rollout = record.rollout
    return RolloutView(
        id=rollout.id,
        is_right=rollout.is_correct,
        num_calls=max(len(rollout.tool_results), int(rollout.uses_tool)),
        answer=_short_answer(rollout.final_text),
        advantage=_advantage(record, 0, len(rollout.token_ids)),
        is_resampled=record.role is RowRole.PREFIX,
        stop_reason=rollout.stop_reason,
        blocks=tuple(block for block in _build_blocks(record, run, pictures) if not block.is_frozen),
    )


def _build_blocks(
    record: RolloutRecord, run: Run, pictures: PictureBook, *, stop: int | None = None
) -> list[BlockView]:
    """The dialogue after the prompt, up to token `stop`."""
    rollout = record.rollout
    inherited = rollout.prefix.num_tokens if rollout.prefix is not None else 0
    results = iter(rollout.tool_results)
    shown = list(_prompt_images(rollout))
    num_open_calls = 0
    blocks: list[BlockView] = []
    for segment, text in zip(rollout.segments, record.segment_texts, strict=True):
        num_open_calls += segment.kind is SegmentKind.TOOL_OPEN
        kind = _BLOCK_KINDS.get(segment.kind)
        if kind is None or (stop is not None and segment.start >= stop):
            continue
        block = BlockView(
            kind=kind,
            text=_clean(text),
            advantage=_advantage(record, segment.start, segment.stop),
            is_frozen=segment.stop <= inherited,
        )
        if kind == "result":
            for result in itertools.islice(results, num_open_calls):
                built = _build_result(result, record, run, pictures, shown)
                blocks.append(replace(built, is_frozen=block.is_frozen))
                shown += _images_of(result)
            num_open_calls = 0
        elif block.text:
            blocks.append(block)
    return blocks


def _build_result(
    result: ToolResult, record: RolloutRecord, run: Run, pictures: PictureBook, shown: Sequence[ImageRef]
) -> BlockView:
    views: list[PictureView] = []
    asked = zoom_box(result.call)
    if asked is not None and 0 <= asked[1] < len(shown):
        outcome = _box_outcome(asked[0], asked[1], record)
        views.append(_picture(shown[asked[1]], run, pictures, [_box_view(asked[0], outcome)]))
    views += [_picture(image, run, pictures, []) for image in _images_of(result)]
    text = result.failure.message if result.failure is not None else "".join(b.text or "" for b in result.content)
    return BlockView(kind="result", text=_clip(text), pictures=tuple(views), is_failure=result.failure is not None)


def _overview(records: Sequence[RolloutRecord], run: Run, pictures: PictureBook) -> PictureView | None:
    """The question's first picture with the target and every zoom box on it."""
    prompt_images = _prompt_images(records[0].rollout)
    if not prompt_images:
        return None
    boxes: list[BoxView] = []
    for record in records:
        for result in record.rollout.tool_results:
            asked = zoom_box(result.call)
            if asked is not None and asked[1] == 0:
                boxes.append(_box_view(asked[0], _box_outcome(asked[0], 0, record)))
    target = parse_box(records[0].metadata.get("target_box"))
    if target is not None:
        boxes.append(_box_view(target, "target"))
    return _picture(prompt_images[0], run, pictures, boxes)


def _picture(image: ImageRef, run: Run, pictures: PictureBook, boxes: Sequence[BoxView]) -> PictureView:
    is_shown = pictures.add(run.folder, image.sha256)
    return PictureView(
        css_class=css_class(image.sha256) if is_shown else None,
        aspect=max(0.2, min(5.0, image.width_px / image.height_px)),
        boxes=tuple(boxes),
    )


def _box_view(box: Box, outcome: Outcome) -> BoxView:
    x1, y1, x2, y2 = (max(0.0, min(1000.0, value)) / 10 for value in box)
    return BoxView(left=x1, top=y1, width=x2 - x1, height=y2 - y1, outcome=outcome)


def _box_outcome(box: Box, img_idx: int, record: RolloutRecord) -> Outcome:
    """Whether the box shows the target; without a known target, whether the rollout was right."""
    target = parse_box(record.metadata.get("target_box"))
    is_good = is_hit(box, target) if target is not None and img_idx == 0 else record.rollout.is_correct
    return "right" if is_good else "wrong"


def _prompt_images(rollout: Rollout) -> tuple[ImageRef, ...]:
    """The pictures that came with the question. A result that did not fit any more left no picture in the dialogue."""
    last_result = max((s.start for s in rollout.segments if s.kind is SegmentKind.TOOL_RESULT), default=0)
    num_seen = sum(s.kind is SegmentKind.TOOL_OPEN and s.start < last_result for s in rollout.segments)
    num_result_images = sum(len(_images_of(result)) for result in rollout.tool_results[:num_seen])
    return rollout.images[: len(rollout.images) - num_result_images]


def _images_of(result: ToolResult) -> list[ImageRef]:
    return [block.image for block in result.content if block.image is not None]


def _advantage(record: RolloutRecord, start: int, stop: int) -> float | None:
    """Of the learning tokens in the range; they share one value by construction of the credit."""
    return next((value for first, last, value in record.credit if first < stop and last > start), None)


def _short_answer(final_text: str) -> str:
    found = _ANSWER.search(final_text)
    text = " ".join(_TEMPLATE_TOKEN.sub("", found[1] if found else final_text).split())
    return text if len(text) <= 40 else f"{text[:37]}…"


def _clean(text: str) -> str:
    return _clip(_THINK_TAG.sub("", _TEMPLATE_TOKEN.sub("", text)).strip())


def _clip(text: str) -> str:
    excess = len(text) - MAX_TEXT_CHARS
    return text if excess <= 0 else f"{text[:MAX_TEXT_CHARS]}… ({excess} more characters)"


_BLOCK_KINDS: dict[SegmentKind, BlockKind] = {
    SegmentKind.THINKING: "thinking",
    SegmentKind.TOOL_OPEN: "open",
    SegmentKind.TOOL_CALL: "call",
    SegmentKind.TOOL_RESULT: "result",
    SegmentKind.ANSWER: "answer",
    SegmentKind.TEXT: "text",
}
