"""How many question pictures lose more than half of their pixels on the way to the model."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from axpo.diagnostics.health import check
from axpo.diagnostics.metrics import picture_metrics
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.tasks import mini
from axpo.types import Content, Message, Problem


def problem(store: ContentImageStore, name: str, *sizes: tuple[int, int]) -> Problem:
    pictures = (Content(image=store.add_image(Image.new("RGB", size))) for size in sizes)
    return Problem(id=name, messages=(Message(role="user", content=(*pictures, Content(text="?"))),), answer="1")


def test_a_picture_counts_when_less_than_half_of_its_pixels_are_left(tiny_checkpoint: Path) -> None:
    preprocessor = ImagePreprocessor.from_pretrained(tiny_checkpoint, max_pixels=64 * 64)
    store = ContentImageStore()
    problems = [problem(store, "a", (64, 64), (96, 64), (128, 128)), problem(store, "b"), problem(store, "c", (96, 96))]
    seen = [preprocessor.num_pixels(image) for image in problems[0].images]
    assert seen[0] == 64 * 64 and all(pixels <= 64 * 64 for pixels in seen)
    # 64x64 stays; both sides being multiples of 32, 96x64 becomes 64x32, a third; 128x128 and 96x96 become 64x64
    metrics = picture_metrics(problems, seen_px=preprocessor.num_pixels)
    assert metrics == {"images/count": 4, "images/downscaled": 0.75}
    exact = {128 * 128: 128 * 64}  # exactly half is not less than half
    whole = picture_metrics([problem(store, "d", (128, 128))], seen_px=lambda i: exact[i.width_px * i.height_px])
    assert whole == {"images/count": 1, "images/downscaled": 0.0}
    assert picture_metrics([problems[1]], seen_px=preprocessor.num_pixels) == {
        "images/count": 0,
        "images/downscaled": None,
    }


def test_the_mini_task_is_made_of_pictures_that_lose_their_details(tmp_path: Path) -> None:
    preprocessor = ImagePreprocessor.from_pretrained(mini.checkpoint_path())
    problems = mini.problems("eval", store=ContentImageStore(tmp_path), num_questions=32)
    metrics = picture_metrics(problems, seen_px=preprocessor.num_pixels)
    assert metrics == {"images/count": 32, "images/downscaled": 1.0}
    [alarm] = check([{"step": 1, **metrics}])
    assert alarm.name == "image_downscaled" and "32 of 32 question pictures (100%)" in alarm.text
