"""Questions of the mini task."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

from axpo.images import ContentImageStore
from axpo.tasks.mini.scenes import Card, Scene, draw_scene, sample_scene
from axpo.types import Content, ImageRef, Message, Problem

SPLIT_SIZES = {"train": 512, "eval": 256}
"""Questions per split unless more are asked for; `eval` is held out: other seeds and other photographs."""


def checkpoint_path(name: str = "sft") -> Path:
    """Folder of a checkpoint that ships with the package: `base` (sees, locates, reads) or `sft` (the start of RL)."""
    return Path(__file__).with_name("checkpoints") / name


def problems(
    split: str,
    *,
    store: ContentImageStore,
    num_questions: int | None = None,
    seed: int = 0,
    on_progress: Callable[[], None] | None = None,
) -> tuple[Problem, ...]:
    """Questions of `split` (`train` or `eval`), the same for a seed; a longer list starts with the shorter one."""
    count = SPLIT_SIZES[split] if num_questions is None else num_questions
    made: list[Problem] = []
    for index in range(count):
        made.append(_problem(split, index, seed, store))
        if on_progress is not None:
            on_progress()
    return tuple(made)


def question_text(color: str) -> str:
    """What the user asks."""
    return f"How many dots are on the {color} card?"


def question_message(image: ImageRef, color: str) -> Message:
    """The user's message: the picture, then the question."""
    return Message(role="user", content=(Content(image=image), Content(text=question_text(color))))


def store_scene(scene: Scene, store: ContentImageStore) -> ImageRef:
    """Draw a scene and keep it as a JPEG, as a photograph would come."""
    buffer = io.BytesIO()
    draw_scene(scene).save(buffer, format="JPEG", quality=90)
    return store.add_bytes(buffer.getvalue())


def _problem(split: str, index: int, seed: int, store: ContentImageStore) -> Problem:
    rng = random.Random(f"{split}/{seed}/{index}")
    scene = sample_scene(rng, held_out=split == "eval")
    card: Card = rng.choice(scene.cards)
    return Problem(
        id=f"mini-{split}-{seed}-{index:05d}",
        messages=(question_message(store_scene(scene, store), card.color),),
        answer=str(card.count),
        answer_kind="text",
        metadata={"color": card.color, "photo": scene.photo, "target_box": list(card.box)},
    )
