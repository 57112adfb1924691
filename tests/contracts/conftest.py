"""A tiny random Qwen3-VL with pictures and prompts, for the contracts between model, engine and trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from axpo.images import ContentImageStore
from axpo.models.loading import load_model
from axpo.models.preprocessing import ImagePreprocessor
from axpo.types import ImageRef

SIZES_PX = ((96, 64), (64, 64), (160, 96), (700, 40))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    model: Any
    preprocessor: ImagePreprocessor
    store: ContentImageStore
    images: tuple[ImageRef, ...]
    image_token_id: int
    vision_ids: tuple[int, int]
    """Start and end of an image."""

    def words(self, num_tokens: int, *, seed: int) -> list[int]:
        """Random ids of ordinary text."""
        return np.random.default_rng(seed).integers(30, 200, num_tokens).tolist()

    def dialogue(self, *parts: int | ImageRef, seed: int = 0) -> tuple[int, ...]:
        """Ids of a dialogue: a number stands for so many text tokens, an image for itself with its two marks."""
        ids: list[int] = []
        for index, part in enumerate(parts):
            if isinstance(part, int):
                ids += self.words(part, seed=1000 * seed + index)
            else:
                start, end = self.vision_ids
                ids += [start, *[self.image_token_id] * self.preprocessor.num_tokens(part), end]
        return tuple(ids)

    def grids(self, images: Sequence[ImageRef]) -> torch.Tensor:
        return torch.tensor([self.preprocessor.grid_thw(ref) for ref in images]).reshape(-1, 3)

    def pixels(self, images: Sequence[ImageRef]) -> torch.Tensor:
        return torch.cat([self.preprocessor.pixel_values(ref, self.store) for ref in images])


def load_setting(checkpoint: Path) -> Setting:
    model = load_model(checkpoint, dtype="float32", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a fresh initialisation is so even that a mistake would hardly show
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    store = ContentImageStore()
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in SIZES_PX]
    return Setting(
        model=model,
        preprocessor=ImagePreprocessor.from_pretrained(checkpoint),
        store=store,
        images=tuple(store.add_image(Image.fromarray(array)) for array in arrays),
        image_token_id=model.config.image_token_id,
        vision_ids=(model.config.vision_start_token_id, model.config.vision_end_token_id),
    )


@pytest.fixture(scope="module")
def setting(tiny_checkpoint: Path) -> Setting:
    return load_setting(tiny_checkpoint)


@pytest.fixture
def own_setting(tiny_checkpoint: Path) -> Setting:
    """A model of its own, for tests that change it."""
    return load_setting(tiny_checkpoint)
