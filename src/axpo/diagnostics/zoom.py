"""Did a zoom show what it had to show? For problems whose metadata names a target box.

`metadata["target_box"]` is `[x1, y1, x2, y2]` in 0-1000 of the first picture, the coordinates of `image_zoom_in`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from axpo.types import Rollout, ToolCall

ZOOM_TOOL = "image_zoom_in"
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoomCounts:
    """Zoom calls on the first picture and what became of the rollouts that made any tool call."""

    num_calls: int = 0
    num_hits: int = 0
    num_tool_rollouts: int = 0
    num_hit_rollouts: int = 0
    num_hit_correct: int = 0
    num_miss_correct: int = 0


def parse_box(value: Any) -> Box | None:
    """A box `[x1, y1, x2, y2]` with x1 < x2 and y1 < y2, or None when `value` is no such box."""
    if not isinstance(value, (list, tuple)) or len(cast("Sequence[Any]", value)) != 4:
        return None
    corners = cast("Sequence[Any]", value)
    if not all(isinstance(corner, (int, float)) and not isinstance(corner, bool) for corner in corners):
        return None
    x1, y1, x2, y2 = (float(corner) for corner in corners)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def zoom_box(call: ToolCall) -> tuple[Box, int] | None:
    """The box a call asked for and the index of its picture; None for other tools and for unusable arguments."""
    box, index = parse_box(call.arguments.get("bbox_2d")), call.arguments.get("img_idx", 0)
    if isinstance(index, float) and index.is_integer():  # the tool takes 1.0 for 1
        index = int(index)
    if call.name != ZOOM_TOOL or box is None or not isinstance(index, int) or isinstance(index, bool):
        return None
    return box, index


def is_hit(box: Box, target: Box) -> bool:
    """True when `box` contains the whole of `target`."""
    return box[0] <= target[0] and box[1] <= target[1] and box[2] >= target[2] and box[3] >= target[3]


def count_zooms(rollouts: Sequence[Rollout], metadata: Mapping[str, Any]) -> ZoomCounts | None:
    """Counts over rollouts of one problem; None when its metadata names no target box.

    A call that failed or asked for an unusable box is a call without a hit. Zooms into earlier crops do not count:
    the target's coordinates are those of the first picture.
    """
    target = parse_box(metadata.get("target_box"))
    if target is None:
        return None
    counts = [_count_rollout(rollout, target) for rollout in rollouts]
    return add_counts(counts)


def add_counts(counts: Sequence[ZoomCounts]) -> ZoomCounts:
    """The sum of several counts."""
    return ZoomCounts(**{name: sum(getattr(count, name) for count in counts) for name in ZoomCounts.__slots__})


def _count_rollout(rollout: Rollout, target: Box) -> ZoomCounts:
    calls = hits = 0
    for result in rollout.tool_results:
        if result.call.name != ZOOM_TOOL or result.call.arguments.get("img_idx", 0) != 0:
            continue
        asked = zoom_box(result.call)
        calls += 1
        hits += result.failure is None and asked is not None and is_hit(asked[0], target)
    return ZoomCounts(
        num_calls=calls,
        num_hits=hits,
        num_tool_rollouts=int(rollout.uses_tool),
        num_hit_rollouts=int(hits > 0),
        num_hit_correct=int(hits > 0 and rollout.is_correct),
        num_miss_correct=int(rollout.uses_tool and hits == 0 and rollout.is_correct),
    )
