"""Pictures become as many tokens, and the same patches, as the published processor makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from axpo.errors import CheckpointError, ConfigError, DataError
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.types import ImageRef

PUBLISHED = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def write(folder: Path, settings: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(settings))
    return folder


def ref_of(width_px: int, height_px: int) -> ImageRef:
    return ImageRef(sha256="0" * 64, width_px=width_px, height_px=height_px)


def picture(width_px: int, height_px: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("width_px", "height_px", "grid", "num_tokens"),
    [
        # Sides are rounded to multiples of 16 x 2 = 32 pixels; a patch is 16 pixels, a token 2 x 2 patches.
        (512, 512, (1, 32, 32), 256),
        (1000, 600, (1, 38, 62), 589),  # 600 / 32 = 18.75 -> 19, 1000 / 32 = 31.25 -> 31
        # 100 x 50 is below 65536 pixels: both sides grow by sqrt(65536 / 5000) = 3.62 to 362 x 181 and are rounded up.
        (100, 50, (1, 12, 24), 72),
        # 8000 x 4000 is above 16777216: both shrink by sqrt(32000000 / 16777216) = 1.381 to 5792.6 x 2896.3, down.
        (8000, 4000, (1, 180, 362), 16290),
    ],
)
def test_grid_by_hand(
    tmp_path: Path, width_px: int, height_px: int, grid: tuple[int, int, int], num_tokens: int
) -> None:
    preprocessor = ImagePreprocessor.from_pretrained(write(tmp_path, PUBLISHED))
    assert preprocessor.grid_thw(ref_of(width_px, height_px)) == grid
    assert preprocessor.num_tokens(ref_of(width_px, height_px)) == num_tokens


@example(width_px=201, height_px=1, bounds=(1, 1024))
@example(width_px=2, height_px=400, bounds=(1, 1024))
@given(width_px=st.integers(1, 900), height_px=st.integers(1, 900), bounds=st.sampled_from([(1, 1024), (4096, 25600)]))
def test_pixels_fill_the_grid_that_the_size_alone_gave(width_px: int, height_px: int, bounds: tuple[int, int]) -> None:
    settings = {**PUBLISHED, "size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]}}
    preprocessor = ImagePreprocessor({k: v for k, v in settings.items() if not k.endswith(("class", "type"))})
    store = ContentImageStore()
    ref = store.add_image(Image.new("RGB", (width_px, height_px)))
    if max(width_px, height_px) > 200 * min(width_px, height_px):
        with pytest.raises(DataError, match=f"{width_px}x{height_px} px, one side more than 200 times the other"):
            preprocessor.num_tokens(ref)
        return
    frames, height, width = preprocessor.grid_thw(ref)
    pixels = preprocessor.pixel_values(ref, store)
    assert pixels.dtype is torch.float32
    assert pixels.shape == (frames * height * width, preprocessor.patch_dim) == (4 * preprocessor.num_tokens(ref), 1536)


def test_a_patch_holds_its_own_pixels(tmp_path: Path) -> None:
    # 64 x 32 pixels, no resizing: patches go through a token's 2 x 2 block first, then on to the next token. Values are
    # (pixel / 255 - 0.5) / 0.5, laid out channel, frame (both alike), row, column.
    preprocessor = ImagePreprocessor.from_pretrained(write(tmp_path, PUBLISHED), min_pixels=1, max_pixels=4096)
    store = ContentImageStore()
    image = picture(64, 32)
    ref = store.add_image(image)
    values = np.asarray(image).astype(np.float64) / 127.5 - 1
    corners = [(0, 0), (0, 16), (16, 0), (16, 16), (0, 32), (0, 48), (16, 32), (16, 48)]
    for patch, (top, left) in zip(preprocessor.pixel_values(ref, store), corners, strict=True):
        block = values[top : top + 16, left : left + 16].transpose(2, 0, 1)
        expected = np.stack([block, block], axis=1).reshape(-1)
        np.testing.assert_allclose(patch.numpy(), expected, atol=1e-6)


def test_a_picture_of_another_size_than_recorded_is_refused(tmp_path: Path) -> None:
    preprocessor = ImagePreprocessor.from_pretrained(write(tmp_path, PUBLISHED))
    store = ContentImageStore()
    real = store.add_image(picture(300, 300))
    with pytest.raises(DataError, match="Record and picture do not belong together"):
        preprocessor.pixel_values(ImageRef(sha256=real.sha256, width_px=900, height_px=300), store)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("preprocessor_config.json", {**PUBLISHED, "size": None, "min_pixels": 65536, "max_pixels": 16777216}),
        ("preprocessor_config.json", {**PUBLISHED, "size": {"min_pixels": 65536, "max_pixels": 16777216}}),
        ("processor_config.json", {"image_processor": PUBLISHED}),
    ],
)
def test_older_and_newer_spellings_mean_the_same(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    preprocessor = ImagePreprocessor.from_pretrained(write(tmp_path, settings, name))
    assert (preprocessor.min_pixels, preprocessor.max_pixels) == (65536, 16777216)


def test_bounds_can_be_replaced(tmp_path: Path) -> None:
    preprocessor = ImagePreprocessor.from_pretrained(write(tmp_path, PUBLISHED), min_pixels=1024, max_pixels=4096)
    assert preprocessor.num_tokens(ref_of(512, 512)) == 4  # 64 x 64
    assert preprocessor.num_tokens(ref_of(8, 8)) == 1  # 32 x 32


@pytest.mark.parametrize(("least_px", "own_px"), [(65536, 65536), (1024, 1)])
def test_an_option_that_is_too_small_is_named(tmp_path: Path, least_px: int, own_px: int) -> None:
    write(tmp_path, {**PUBLISHED, "size": {"shortest_edge": own_px, "longest_edge": 16777216}})
    message = rf"model\.max_image_px: expected at least {least_px}, .*, got {least_px - 1}\. Raise it"
    with pytest.raises(ConfigError, match=message):
        ImagePreprocessor.from_pretrained(tmp_path, max_pixels=least_px - 1)
    assert ImagePreprocessor.from_pretrained(tmp_path, max_pixels=least_px).max_pixels == least_px


SPELLINGS: dict[str, dict[str, dict[str, Any]]] = {
    "published": {"preprocessor_config.json": PUBLISHED},
    "old": {"preprocessor_config.json": {**PUBLISHED, "size": None, "min_pixels": 65536, "max_pixels": 16777216}},
    "of a processor": {"processor_config.json": {"image_processor": PUBLISHED, "processor_class": "P"}},
    "both": {"preprocessor_config.json": PUBLISHED, "processor_config.json": {"image_processor": PUBLISHED}},
    "a processor without images": {"preprocessor_config.json": PUBLISHED, "processor_config.json": {"x": 1}},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_saved_bounds_are_what_everybody_reads(tmp_path: Path, spelling: str) -> None:
    from transformers import Qwen2VLImageProcessor

    for name, settings in SPELLINGS[spelling].items():
        write(tmp_path, settings, name)
    ImagePreprocessor.from_pretrained(tmp_path, max_pixels=262144).save_bounds(tmp_path)
    again = ImagePreprocessor.from_pretrained(tmp_path)
    assert (again.min_pixels, again.max_pixels) == (65536, 262144)
    published = Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert (published.size["shortest_edge"], published.size["longest_edge"]) == (65536, 262144)
    for name, settings in SPELLINGS[spelling].items():
        kept = json.loads((tmp_path / name).read_text())
        assert kept.get("processor_class") == settings.get("processor_class"), "the rest stays"


def test_files_with_the_right_bounds_stay_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path, PUBLISHED) / "preprocessor_config.json"
    before = file.read_bytes()
    ImagePreprocessor.from_pretrained(tmp_path).save_bounds(tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "has no preprocessor_config.json"),
        ({**PUBLISHED, "patch_size": None}, "the image settings lack patch_size"),
        ({**PUBLISHED, "size": {}}, "the image settings lack shortest_edge, longest_edge"),
        ({**PUBLISHED, "size": {"shortest_edge": 5000, "longest_edge": 4000}}, "min_pixels 5000 and max_pixels 4000"),
        ({**PUBLISHED, "size": {"shortest_edge": 10, "longest_edge": 1000}}, "room for one token of 32x32 px"),
        ([1, 2], "cannot be read as image settings"),
    ],
)
def test_unusable_settings_are_refused(tmp_path: Path, settings: Any, message: str) -> None:
    if settings is not None:
        write(tmp_path, settings)
    with pytest.raises(CheckpointError, match=message):
        ImagePreprocessor.from_pretrained(tmp_path)


def test_settings_that_are_not_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(CheckpointError, match="cannot be read as image settings"):
        ImagePreprocessor.from_pretrained(tmp_path)
