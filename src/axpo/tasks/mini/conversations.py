"""Demonstrations of the mini family as data for supervised fine-tuning, by split."""

from __future__ import annotations

import random
from collections.abc import Callable

from axpo.dialogue import Conversation
from axpo.errors import ConfigError
from axpo.images import ContentImageStore
from axpo.tasks.mini import distances, lookups
from axpo.tasks.mini.demonstrations import Style, demonstrate
from axpo.tasks.mini.questions import parse_split, question_message, question_text, sample_clear_scene, store_scene
from axpo.tasks.mini.scenes import sample_scene
from axpo.types import Message

NUM_ROWS = 1536
ZOOM_ONLY = ("image_zoom_in",)


def conversations(
    split: str = "train",
    *,
    store: ContentImageStore,
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    style: Style | None = None,
    on_progress: Callable[[], None] | None = None,
) -> tuple[Conversation, ...]:
    """`num_rows` demonstrations on training photographs, three to a picture.

    `train`: a question about the dots of each card, answered with `image_zoom_in` alone at hand. `mixed_train`: those
    in turn with pictures that ask about dots, a distance and a game, all tools of the run at hand.
    """
    family, part = parse_split(split)
    if part != "train" or family not in ("count", "mixed"):
        raise ConfigError(f"mini:{split}: there are demonstrations for mini:train and mini:mixed_train only.")
    made: list[Conversation] = []
    while len(made) < num_rows:
        rng = random.Random(f"demonstrations/{seed}/{len(made)}")
        is_mixed = family == "mixed" and len(made) // 3 % 2 == 1
        rows = (_mixed if is_mixed else _counting)(rng, style or Style(), store)
        tools = None if is_mixed or family == "count" else ZOOM_ONLY
        made += [
            Conversation(id=f"mini-sft-{seed}-{len(made) + i:05d}", messages=messages, tools=tools)
            for i, messages in enumerate(rows)
        ]
        if on_progress is not None:
            on_progress()
    return tuple(made[:num_rows])


def _counting(rng: random.Random, style: Style, store: ContentImageStore) -> list[tuple[Message, ...]]:
    scene = sample_scene(rng, held_out=False)
    image = store_scene(scene, store)
    return [
        (question_message(image, question_text(card.color)), *demonstrate(card, rng, style, image, store))
        for card in scene.cards
    ]


def _mixed(rng: random.Random, style: Style, store: ContentImageStore) -> list[tuple[Message, ...]]:
    scene = sample_clear_scene(rng, held_out=False)
    image = store_scene(scene, store)
    first, second, third = rng.sample(scene.cards, 3)
    game, place = rng.choice(lookups.games(held_out=False)), rng.choice(lookups.PLACES)
    return [
        (question_message(image, question_text(first.color)), *demonstrate(first, rng, style, image, store)),
        (
            question_message(image, distances.question_text(second, third)),
            *distances.demonstrate(second, third, rng, tool_frac=style.tool_frac, jitter=style.point_jitter),
        ),
        (
            question_message(image, lookups.question_text(game, place)),
            *lookups.demonstrate(
                scene, game, place, rng, tool_frac=style.tool_frac, wrong_frac=style.wrong_lookup_frac
            ),
        ),
    ]
