"""The Reasoning member of the mini family: how far apart are two cards? Seen from afar, computed with `python`."""

from __future__ import annotations

import math
import random

from axpo.tasks.mini.demonstrations import THINK_DIRECT, answer_message
from axpo.tasks.mini.scenes import SCENE_PX, Card
from axpo.types import Content, Message, ToolCall

STEP = 10
"""Demonstrated coordinates are multiples of this, in thousandths of the picture."""
THINK_MEASURE = "I measure it with Python."
THINK_MEASURED = "That is the distance."
CODE = "from math import dist; round(dist(({}, {}), ({}, {})) / 100)"

Point = tuple[int, int]


def question_text(first: Card, second: Card) -> str:
    """What the user asks."""
    return (
        f"How far is the {first.color} card from the {second.color} card, in tenths of the picture's width, "
        "rounded to a whole number?"
    )


def distance(first: Card, second: Card) -> int:
    """Between the cards' centres, in tenths of the picture's width."""
    return round(10 * math.dist(first.center_px, second.center_px) / SCENE_PX)


def demonstrate(
    first: Card, second: Card, rng: random.Random, *, tool_frac: float, jitter: float
) -> tuple[Message, ...]:
    """The messages after the question. Whoever measures believes what comes out, however clumsily it was measured."""
    if rng.random() >= tool_frac:
        return (answer_message(THINK_DIRECT, str(distance(first, second))),)
    points = [sample_point(card, rng, jitter=jitter) for card in (first, second)]
    measured = str(round(math.dist(*points) / 100))
    return (
        call_message(*points),
        Message(role="tool", content=(Content(text=measured),)),
        answer_message(THINK_MEASURED, measured),
    )


def sample_point(card: Card, rng: random.Random, *, jitter: float) -> Point:
    """The card's centre in thousandths of the picture, moved by Gaussian noise of `jitter` per axis."""
    x, y = (
        min(max(round(rng.gauss(center * 1000 / SCENE_PX, jitter) / STEP) * STEP, 100), 990)
        for center in card.center_px
    )
    return x, y


def call_message(first: Point, second: Point) -> Message:
    """An assistant turn that measures."""
    call = ToolCall(id="call-0", name="python", arguments={"code": CODE.format(*first, *second)})
    return Message(role="assistant", reasoning=THINK_MEASURE, tool_calls=(call,))
