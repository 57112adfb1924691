"""The mini task: same seed, same pictures; boxes, crops and answers that agree with each other."""

from __future__ import annotations

import asyncio
import random

import pytest

from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.rewards import REWARDS
from axpo.tasks.mini import checkpoint_path, conversations, problems
from axpo.tasks.mini.demonstrations import BOX_SIDE, GIVE_UP, Style, box_contains, crop_scene, sample_box
from axpo.tasks.mini.questions import store_scene
from axpo.tasks.mini.scenes import (
    COUNTS,
    CROP_PX,
    HELD_OUT_PHOTOS,
    PHOTO_FOLDER,
    SCENE_PX,
    dots_px,
    draw_scene,
    sample_scene,
)
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import ToolCall


def test_the_same_seed_gives_the_same_questions_and_a_longer_list_starts_alike() -> None:
    three = problems("train", store=ContentImageStore(), num_questions=3)
    two = problems("train", store=ContentImageStore(), num_questions=2)
    assert three[:2] == two
    assert problems("train", store=ContentImageStore(), num_questions=1, seed=1)[0] != two[0]


def test_held_out_questions_use_photographs_of_their_own() -> None:
    photos = {path.stem for path in PHOTO_FOLDER.glob("*.jpg")}
    assert set(HELD_OUT_PHOTOS) < photos
    rng = random.Random(0)
    assert {sample_scene(rng, held_out=True).photo for _ in range(40)} == set(HELD_OUT_PHOTOS)
    assert not {sample_scene(rng, held_out=False).photo for _ in range(40)} & set(HELD_OUT_PHOTOS)


def test_every_photograph_names_its_author() -> None:
    authors = (PHOTO_FOLDER / "AUTHORS.md").read_text(encoding="utf-8")
    missing = [path.stem for path in PHOTO_FOLDER.glob("*.jpg") if path.stem not in authors]
    assert not missing
    assert sum(path.stat().st_size for path in PHOTO_FOLDER.glob("*.jpg")) < 4 * 2**20


@pytest.mark.parametrize("seed", range(3))
def test_a_card_shows_its_dots_within_its_box(seed: int) -> None:
    scene = sample_scene(random.Random(seed), held_out=False)
    picture = draw_scene(scene)
    for card in scene.cards:
        dots = dots_px(card)
        assert len(dots) == card.count
        assert len({card.color for card in scene.cards}) == 3
        for x, y in dots:
            assert max(picture.getpixel((round(x), round(y)))) < 60, "a dot is dark at its centre"
            assert box_contains(card.box, [v * 1000 / SCENE_PX for v in (x - 5, y - 5, x + 5, y + 5)])


def test_the_answer_is_the_number_of_dots_and_the_reward_reads_it() -> None:
    for problem in problems("eval", store=ContentImageStore(), num_questions=5):
        assert int(problem.answer) in COUNTS
        reward = REWARDS[problem.answer_kind]
        assert reward(f"<answer>{problem.answer}</answer>", problem) == 1.0
        assert reward(f"<answer>{int(problem.answer) % 6 + 1}</answer>", problem) == 0.0
        assert reward(f"<answer>{GIVE_UP}</answer>", problem) == 0.0


def test_demonstrated_crops_are_what_the_tool_returns() -> None:
    store = ContentImageStore()
    scene = sample_scene(random.Random(1), held_out=False)
    image = store_scene(scene, store)
    tool = ImageZoomTool(min_pixels=CROP_PX**2, max_pixels=CROP_PX**2)
    rng = random.Random(2)
    for _ in range(5):
        box = sample_box(scene.cards[0], rng, jitter=60)
        context = ToolContext(rollout_id="r", images=[image], store=store)
        call = ToolCall(id="c", name="image_zoom_in", arguments={"bbox_2d": list(box), "label": "card"})
        content = asyncio.run(tool.run(call, context))
        ours = crop_scene(box, image, store)
        theirs = content[1].image
        assert theirs is not None
        assert (theirs.width_px, theirs.height_px) == (ours.width_px, ours.height_px) == (CROP_PX, CROP_PX)
        difference = [abs(a - b) for a, b in zip(store.load(ours).tobytes(), store.load(theirs).tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 12, "the edges may differ by a pixel, not the picture"
        assert content[0].text == "img_idx 1:"


def test_demonstrations_are_clumsy_as_told() -> None:
    style = Style(tool_frac=0.5, jitter=45, retry_frac=0.5)
    rows = conversations(store=ContentImageStore(), num_rows=150, style=style)
    zooming = [row for row in rows if any(message.tool_calls for message in row.messages)]
    assert 0.35 < len(zooming) / len(rows) < 0.65
    num_calls = [sum(bool(message.tool_calls) for message in row.messages) for row in zooming]
    assert set(num_calls) == {1, 2, 3}
    gave_up = [row for row in zooming if GIVE_UP in row.messages[-1].text]
    assert 0.3 < len(gave_up) / len(zooming) < 0.9
    for row in zooming:
        for message in row.messages:
            for call in message.tool_calls:
                x1, y1, x2, y2 = call.arguments["bbox_2d"]
                assert (x2 - x1, y2 - y1) == (BOX_SIDE, BOX_SIDE)
                assert 100 <= x1 < x2 <= 999
                assert 100 <= y1 < y2 <= 999


@pytest.mark.parametrize("name", ["base", "sft"])
def test_the_shipped_checkpoints_are_small_and_complete(name: str) -> None:
    folder = checkpoint_path(name)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20
