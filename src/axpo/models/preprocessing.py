"""Pictures -> patches, exactly as the checkpoint's own image processor makes them. Needs no torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from axpo.errors import CheckpointError, ConfigError, DataError
from axpo.models.loading import find_checkpoint_file

if TYPE_CHECKING:
    from torch import Tensor

    from axpo.protocols import ImageStore
    from axpo.types import ImageRef

MAX_ASPECT_RATIO = 200
SETTINGS_FILES = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
"""Where a checkpoint may keep its image settings, and under which key; the first one counts."""


class ImagePreprocessor:
    """Resizes, normalises and cuts pictures into patches; knows how many tokens a picture becomes without decoding it.

    Settings are those of a published `preprocessor_config.json`; build it with `from_pretrained`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

        self.patch_size: int = settings["patch_size"]
        self.temporal_patch_size: int = settings["temporal_patch_size"]
        self.merge_size: int = settings["merge_size"]
        self.min_pixels: int = settings["size"]["shortest_edge"]
        self.max_pixels: int = settings["size"]["longest_edge"]
        self._processor = Qwen2VLImageProcessorPil(**settings)
        self._smart_resize = smart_resize

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> ImagePreprocessor:
        """Read the settings of a checkpoint: a folder, or a hub id through huggingface_hub's cache.

        `min_pixels` and `max_pixels` (the option `model.max_image_px`) replace the checkpoint's bounds on the resized
        picture, in pixels. Raises `CheckpointError` when the settings are missing or unusable, `ConfigError` when
        `max_pixels` does not fit them.
        """
        settings = _read_settings(path)
        size = settings["size"]
        size["shortest_edge"] = size["shortest_edge"] if min_pixels is None else min_pixels
        size["longest_edge"] = size["longest_edge"] if max_pixels is None else max_pixels
        factor_px = settings["patch_size"] * settings["merge_size"]
        least_px = max(size["shortest_edge"], factor_px**2)
        if max_pixels is not None and max_pixels < least_px:
            raise ConfigError(
                f"model.max_image_px: expected at least {least_px}, to which {path} scales up smaller pictures, "
                f"got {max_pixels}. Raise it, or leave it out for the checkpoint's own bound."
            )
        if not 0 < size["shortest_edge"] <= size["longest_edge"] or size["longest_edge"] < factor_px**2:
            raise CheckpointError(
                f"{path}: images between min_pixels {size['shortest_edge']} and max_pixels {size['longest_edge']} are "
                f"impossible: need 0 < min_pixels <= max_pixels and room for one token of {factor_px}x{factor_px} px."
            )
        return cls(settings)

    def save_bounds(self, folder: Path) -> None:
        """Put the bounds into the image settings that lie in `folder`; whoever loads them then sees the same pixels.

        Files that say so already stay as they are, byte for byte.
        """
        bounds = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        for name, key in SETTINGS_FILES:
            file = folder / name
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            settings: dict[str, Any] = content if key is None else content.get(key, {})
            if settings and _bounds(settings) != bounds:
                for spelling in ("min_pixels", "max_pixels"):
                    settings.pop(spelling, None)
                settings["size"] = bounds
                file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def patch_dim(self) -> int:
        """Numbers per patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def grid_thw(self, ref: ImageRef) -> tuple[int, int, int]:
        """Patches in time, height and width, from the picture's size alone.

        Raises `DataError` for a picture more than 200 times as long as wide.
        """
        width_px, height_px = ref.width_px, ref.height_px
        if max(width_px, height_px) > MAX_ASPECT_RATIO * min(width_px, height_px):
            raise DataError(
                f"image {ref.sha256[:12]}: {width_px}x{height_px} px, one side more than {MAX_ASPECT_RATIO} times "
                "the other, is more than the model can take. Crop or pad it."
            )
        factor_px = self.patch_size * self.merge_size
        height_px, width_px = self._smart_resize(height_px, width_px, factor_px, self.min_pixels, self.max_pixels)
        return 1, height_px // self.patch_size, width_px // self.patch_size

    def num_tokens(self, ref: ImageRef) -> int:
        """Placeholder tokens of the picture."""
        frames, height, width = self.grid_thw(ref)
        return frames * height * width // self.merge_size**2

    def num_pixels(self, ref: ImageRef) -> int:
        """Pixels of the picture as the model sees it."""
        _, height, width = self.grid_thw(ref)
        return height * width * self.patch_size**2

    def pixel_values(self, ref: ImageRef, store: ImageStore) -> Tensor:
        """Normalised patches, float32 [num_patches, patch_dim], in the order in which the vision tower merges them."""
        batch = self._processor(images=[store.load(ref)], return_tensors="pt")
        grid = tuple(batch["image_grid_thw"][0].tolist())
        if grid != self.grid_thw(ref):
            raise DataError(
                f"image {ref.sha256[:12]}: its recorded size {ref.width_px}x{ref.height_px} px gives the grid "
                f"{self.grid_thw(ref)}, the stored picture {grid}. Record and picture do not belong together."
            )
        return batch["pixel_values"]


def _read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that matter, with the names of the published file; older spellings are understood."""
    raw = _read_raw_settings(path)
    bounds = _bounds(raw)
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    settings = {**{name: raw.get(name) for name in names}, "size": bounds}
    missing = [name for name, value in {**settings, **bounds}.items() if value is None]
    if missing:
        raise CheckpointError(
            f"{path}: the image settings lack {', '.join(missing)}. Take preprocessor_config.json from its base model."
        )
    return settings


def _bounds(raw: Mapping[str, Any]) -> dict[str, Any]:
    size = cast("dict[str, Any]", raw.get("size") or {})
    return {
        "shortest_edge": size.get("shortest_edge", size.get("min_pixels", raw.get("min_pixels"))),
        "longest_edge": size.get("longest_edge", size.get("max_pixels", raw.get("max_pixels"))),
    }


def _read_raw_settings(path: str | Path) -> dict[str, Any]:
    for name, key in SETTINGS_FILES:
        file = find_checkpoint_file(path, name)
        if file is None:
            continue
        try:
            content = json.loads(file.read_text())
            return cast("dict[str, Any]", dict(content if key is None else content[key]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read as image settings ({error}).") from error
    raise CheckpointError(
        f"{path}: has no preprocessor_config.json, so it is not known how images become tokens. "
        "Copy it from the model this checkpoint was made from."
    )
