"""Scripted dialogues of the mini task, from which its model learns to answer and to zoom before any RL.

They are honest but clumsy: about a quarter of them zoom, their boxes are imprecise, and after a miss most of them give
up. The answer of a dialogue that does not zoom is the true one, so the model learns what can be told from afar: a
guess by the card's shade.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from axpo.images import ContentImageStore
from axpo.tasks.mini.scenes import CROP_PX, SCENE_PX, Card
from axpo.types import Content, ImageRef, Message, ToolCall

BOX_SIDE = 110
"""Side of a demonstrated box, in thousandths of the picture."""
BOX_STEP = 10
"""Demonstrated coordinates are multiples of this."""

THINK_DIRECT = "I can tell from here."
THINK_FOUND = "The crop shows the {color} card."
THINK_MISSED = "The {color} card is not in the crop."
THINK_ZOOM = "I zoom in on the {color} card."
THINK_RETRY = "The {color} card is not in the crop. I zoom in again."
GIVE_UP = "unknown"

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the demonstrations behave."""

    tool_frac: float = 0.28
    """Share of dialogues that call a tool."""
    jitter: float = 25.0
    """Standard deviation of a box's centre per axis, in thousandths of the picture."""
    retry_frac: float = 0.3
    """Share of misses after which a second (third) box is tried."""
    max_calls: int = 3
    point_jitter: float = 70.0
    """Standard deviation of a measured point per axis, in thousandths of the picture."""
    wrong_lookup_frac: float = 0.6
    """Share of look-ups about another card of the picture."""


def demonstrate(
    card: Card, rng: random.Random, style: Style, image: ImageRef, store: ContentImageStore
) -> tuple[Message, ...]:
    """The messages after a question about the card's dots."""
    if rng.random() >= style.tool_frac:
        return (answer_message(THINK_DIRECT, str(card.count)),)
    messages: list[Message] = []
    thought = THINK_ZOOM
    for call_index in range(style.max_calls):
        box = sample_box(card, rng, jitter=style.jitter)
        crop = crop_scene(box, image, store)
        messages += [
            call_message(thought.format(color=card.color), box, card.color),
            result_message(crop, call_index + 1),
        ]
        if box_contains(box, card.box):
            return (*messages, answer_message(THINK_FOUND.format(color=card.color), str(card.count)))
        if rng.random() >= style.retry_frac:
            break
        thought = THINK_RETRY
    return (*messages, answer_message(THINK_MISSED.format(color=card.color), GIVE_UP))


def sample_box(card: Card, rng: random.Random, *, jitter: float) -> Box:
    """A square box around the card's centre, moved by Gaussian noise of `jitter` thousandths per axis."""
    x, y = (center * 1000 / SCENE_PX for center in card.center_px)
    left, top = (_corner(rng.gauss(center, jitter) - BOX_SIDE / 2) for center in (x, y))
    return left, top, left + BOX_SIDE, top + BOX_SIDE


def _corner(value: float) -> int:
    """Rounded, and kept to three digits whatever the noise."""
    return min(max(round(value / BOX_STEP) * BOX_STEP, 100), 990 - BOX_SIDE)


def box_contains(box: Sequence[float], inner: Sequence[float]) -> bool:
    """True when `inner` lies wholly within `box`; both [x1, y1, x2, y2]."""
    return box[0] <= inner[0] and box[1] <= inner[1] and box[2] >= inner[2] and box[3] >= inner[3]


def crop_scene(box: Box, image: ImageRef, store: ContentImageStore) -> ImageRef:
    """What the zoom tool returns for the box."""
    from PIL.Image import Resampling

    pixels = [round(value * SCENE_PX / 1000) for value in box]
    crop = store.load(image).crop((pixels[0], pixels[1], pixels[2], pixels[3]))
    return store.add_image(crop.resize((CROP_PX, CROP_PX), Resampling.BICUBIC))


def call_message(thought: str, box: Box, color: str) -> Message:
    """An assistant turn that zooms."""
    arguments = {"bbox_2d": list(box), "label": f"{color} card"}
    call = ToolCall(id="call-0", name="image_zoom_in", arguments=arguments)
    return Message(role="assistant", reasoning=thought, tool_calls=(call,))


def result_message(crop: ImageRef, index: int) -> Message:
    """The zoom tool's answer."""
    return Message(role="tool", content=(Content(text=f"img_idx {index}:"), Content(image=crop)))


def answer_message(thought: str, answer: str) -> Message:
    """A final assistant turn."""
    return Message(role="assistant", reasoning=thought, content=(Content(text=f"<answer>{answer}</answer>"),))
