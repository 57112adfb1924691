"""Pictures of an interpreter: those of the dialogue, and those that a cell shows."""

from __future__ import annotations

import io
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from axpo.tools.sandbox.wire import MAX_ASPECT_RATIO, Limits

if TYPE_CHECKING:
    from PIL.Image import Image

_EXIF_ORIENTATION = 0x0112


class Gallery:
    """Knows the dialogue's pictures and collects what a cell shows: PIL images and matplotlib figures."""

    def __init__(self, limits: Limits, folder: str) -> None:
        self.images: list[Image] = []
        """The dialogue's pictures, upright and in RGB."""
        self.paths: list[str] = []
        self._limits = limits
        self._folder = os.path.join(folder, "images")
        self._shown: list[tuple[int, int, bytes]] = []
        self._num_left_out = 0
        self._take_over_show()

    def add_to_dialogue(self, data: bytes, suffix: str) -> None:
        """One more picture, encoded. It is decoded when it is used."""
        from PIL import ImageOps
        from PIL.Image import open as open_image

        image: Image = open_image(io.BytesIO(data))
        if image.mode != "RGB" or image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image).convert("RGB")
        path = os.path.join(self._folder, f"{len(self.images)}.{suffix}")
        self.images.append(image)
        self.paths.append(path)
        try:
            os.makedirs(self._folder, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
        except OSError as error:  # the code has filled its disk
            print(f"{path}: {error.strerror}", file=sys.stderr)

    def show(self, value: Any) -> bool:
        """Take a picture for the answer; False when the value is none."""
        if not self.is_picture(value):
            return False
        if len(self._shown) >= self._limits.max_images:
            self._num_left_out += 1
        else:
            image = self._fit(self._draw(value) if _is_figure(value) else value)
            self._shown.append((image.width, image.height, image.tobytes()))
        return True

    def is_picture(self, value: Any) -> bool:
        """True for PIL images and matplotlib figures."""
        pil = sys.modules.get("PIL.Image")
        return _is_figure(value) or (pil is not None and isinstance(value, pil.Image))

    def is_open(self, value: Any) -> bool:
        """True for a figure of pyplot that is shown with the others at the end of the cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        number = getattr(value, "number", None)
        return pyplot is not None and _is_figure(value) and number is not None and pyplot.fignum_exists(number)

    def show_figures(self, *_: Any, **__: Any) -> None:
        """Take all open figures, then close them."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            for number in pyplot.get_fignums():
                self.show(pyplot.figure(number))
            self.close_figures()

    def close_figures(self) -> None:
        """Those of a cell that failed must not be shown by the next one."""
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")

    def take_shown(self) -> list[tuple[int, int, bytes]]:
        """Width, height and RGB pixels of what was shown since the last time."""
        shown, self._shown, self._num_left_out = self._shown, [], 0
        return shown

    @property
    def num_left_out(self) -> int:
        """Pictures shown beyond the limit."""
        return self._num_left_out

    def _draw(self, figure: Any) -> Image:
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        width_in, height_in = figure.get_size_inches()
        figure.set_dpi(min(figure.dpi, math.sqrt(self._limits.max_image_px / (width_in * height_in))))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        page = Image.new("RGB", drawn.size, "white")
        page.paste(drawn, mask=drawn.getchannel("A"))
        return page

    def _fit(self, image: Image) -> Image:
        width_px, height_px = image.size
        if min(width_px, height_px) * MAX_ASPECT_RATIO < max(width_px, height_px) or width_px * height_px == 0:
            raise ValueError(f"an image of {width_px}x{height_px} px cannot be shown: its shape is too extreme")
        if width_px * height_px > self._limits.max_image_px:  # before the conversion, which would copy all of it
            size = fitting_size(width_px, height_px, self._limits.max_image_px)
            image = (image.convert("RGB") if image.mode in ("P", "1") else image).resize(size)
        return image.convert("RGB")

    def _take_over_show(self) -> None:
        def show(picture: Any, *_: Any, **__: Any) -> None:
            self._show_one(picture)

        if "matplotlib.pyplot" in sys.modules:
            import matplotlib.pyplot as plt
            from matplotlib.figure import Figure
            from PIL.Image import Image as PilImage

            for owner, function in ((plt, self.show_figures), (Figure, show), (PilImage, show)):
                owner.show = function  # type: ignore[assignment]  # theirs open windows

    def _show_one(self, value: Any) -> None:
        self.show(value)
        if _is_figure(value) and "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close(value)


def fitting_size(width_px: int, height_px: int, max_px: int) -> tuple[int, int]:
    """The size in the same proportions, as good as whole pixels allow, of at most `max_px` pixels and not too thin."""
    scale = math.sqrt(max_px / (width_px * height_px))
    short_px = max(1, math.floor(min(width_px, height_px) * scale))
    long_px = math.floor(max(width_px, height_px) * scale)
    long_px = max(1, min(long_px, MAX_ASPECT_RATIO * short_px, max_px // short_px))
    return (short_px, long_px) if width_px < height_px else (long_px, short_px)


def _is_figure(value: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)
