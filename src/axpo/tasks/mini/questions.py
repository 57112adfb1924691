"""Questions of the mini family, by split.

`train` and `eval` count dots (Perception), `distance_...` measures (Reasoning), `lookup_...` looks things up (Search),
and `mixed_...` takes them in turn. What ends in `eval` is held out: other seeds, other photographs, other games.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from axpo.errors import ConfigError
from axpo.images import ContentImageStore
from axpo.tasks.mini import distances, lookups
from axpo.tasks.mini.scenes import Scene, draw_scene, sample_scene
from axpo.types import Content, ImageRef, JsonValue, Message, Problem

SPLIT_SIZES = {"train": 512, "eval": 256}
"""Questions per split unless more are asked for."""
FAMILIES = {
    "count": ("count",),
    "distance": ("distance",),
    "lookup": ("lookup",),
    "mixed": ("count", "distance", "lookup"),
}
SPLITS = tuple(f"{prefix}{part}" for prefix in ("", "distance_", "lookup_", "mixed_") for part in SPLIT_SIZES)


def checkpoint_path(name: str = "sft") -> Path:
    """Folder of a checkpoint that ships with the package: `base` (sees, locates, reads) or `sft` (the start of RL)."""
    return Path(__file__).with_name("checkpoints") / name


def problems(
    split: str,
    *,
    store: ContentImageStore,
    num_questions: int | None = None,
    indices: Iterable[int] | None = None,
    seed: int = 0,
    on_progress: Callable[[], None] | None = None,
) -> tuple[Problem, ...]:
    """Questions of `split`, the same for a seed; a longer list starts with the shorter one.

    `indices`: the positions to draw, since a scene takes 40 ms; default: the first `num_questions`, or all.

    Raises `ConfigError` unless `split` is one of `SPLITS`.
    """
    family, part = parse_split(split)
    kinds = FAMILIES[family]
    made: list[Problem] = []
    if indices is None:
        indices = range(SPLIT_SIZES[part] if num_questions is None else num_questions)
    for index in indices:
        made.append(_MAKERS[kinds[index % len(kinds)]](split, index, seed, store))
        if on_progress is not None:
            on_progress()
    return tuple(made)


def parse_split(split: str) -> tuple[str, str]:
    """`mixed_eval` -> `mixed`, `eval`; without a family it counts. Raises `ConfigError`."""
    if split not in SPLITS:
        raise ConfigError(f"mini:{split}: there is no such split; there are {', '.join(SPLITS)}.")
    family, _, part = split.rpartition("_")
    return family or "count", part


def question_text(color: str) -> str:
    """What the user asks."""
    return f"How many dots are on the {color} card?"


def question_message(image: ImageRef, text: str) -> Message:
    """The user's message: the picture, then the question."""
    return Message(role="user", content=(Content(image=image), Content(text=text)))


def store_scene(scene: Scene, store: ContentImageStore) -> ImageRef:
    """Draw a scene and keep it as a JPEG, as a photograph would come."""
    buffer = io.BytesIO()
    draw_scene(scene).save(buffer, format="JPEG", quality=90)
    return store.add_bytes(buffer.getvalue())


def _count(split: str, index: int, seed: int, store: ContentImageStore) -> Problem:
    rng = random.Random(f"{split}/{seed}/{index}")
    scene = sample_scene(rng, held_out=split.endswith("eval"))
    card = rng.choice(scene.cards)
    metadata = {"category": "perception", "color": card.color, "photo": scene.photo, "target_box": list(card.box)}
    return _problem(split, index, seed, store, scene, question_text(card.color), str(card.count), metadata)


def _distance(split: str, index: int, seed: int, store: ContentImageStore) -> Problem:
    rng = random.Random(f"{split}/{seed}/{index}")
    scene = sample_scene(rng, held_out=split.endswith("eval"))
    first, second = rng.sample(scene.cards, 2)
    metadata = {"category": "reasoning", "photo": scene.photo}
    text, answer = distances.question_text(first, second), str(distances.distance(first, second))
    return _problem(split, index, seed, store, scene, text, answer, metadata)


def _lookup(split: str, index: int, seed: int, store: ContentImageStore) -> Problem:
    rng = random.Random(f"{split}/{seed}/{index}")
    held_out = split.endswith("eval")
    scene = sample_clear_scene(rng, held_out=held_out)
    game, place = rng.choice(lookups.games(held_out=held_out)), rng.choice(lookups.PLACES)
    color = lookups.asked_card(scene, place).color
    metadata = {"category": "search", "photo": scene.photo, "game": game, "color": color}
    text, answer = lookups.question_text(game, place), lookups.player(game, color)
    return _problem(split, index, seed, store, scene, text, answer, metadata)


_MAKERS: dict[str, Callable[[str, int, int, ContentImageStore], Problem]] = {
    "count": _count,
    "distance": _distance,
    "lookup": _lookup,
}


def sample_clear_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """A random scene in which it is plain to see which card is leftmost and which is rightmost."""
    while not lookups.is_clear(scene := sample_scene(rng, held_out=held_out)):
        pass
    return scene


def _problem(
    split: str,
    index: int,
    seed: int,
    store: ContentImageStore,
    scene: Scene,
    text: str,
    answer: str,
    metadata: dict[str, JsonValue],
) -> Problem:
    return Problem(
        id=f"mini-{split}-{seed}-{index:05d}",
        messages=(question_message(store_scene(scene, store), text),),
        answer=answer,
        answer_kind="text",
        metadata=metadata,
    )
