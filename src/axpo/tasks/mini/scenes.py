"""Pictures of the mini task: a photograph with three coloured cards, each carrying one to six dots."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTO_FOLDER = Path(__file__).with_name("photos")
HELD_OUT_PHOTOS = ("dragonfly", "fog", "nuthatch", "stream", "sunset")
"""Photographs that only held-out questions use."""
SCENE_PX = 1024
VIEW_PX = 160
"""Side of what the model sees of a scene: 100 patches, 25 visual tokens."""
CROP_PX = 96
"""Side of a zoomed crop as the model sees it: 9 visual tokens."""
CARD_PX = 42
COLORS = {
    "red": (205, 45, 45),
    "green": (40, 160, 60),
    "blue": (50, 90, 215),
    "yellow": (235, 200, 40),
    "purple": (150, 55, 175),
    "orange": (240, 125, 30),
}
COUNTS = (1, 2, 3, 4, 5, 6)
SHADE_OF_ONE, SHADE_PER_DOT, SHADE_NOISE = 1.12, 0.075, 0.05
"""Brightness of a card with one dot, what each further dot takes from it, and the standard deviation of chance: with
these a perfect judge of brightness would name the right number about three times in five."""
_INK = (15, 15, 15)
_OVERSAMPLING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card of a scene."""

    color: str
    count: int
    center_px: tuple[int, int]
    dot_radius_px: float
    angle_deg: float
    layout_seed: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The square around the card whatever its angle, relative to the scene in 0..1000."""
        half = (
            CARD_PX * 0.5 * (abs(math.cos(math.radians(self.angle_deg))) + abs(math.sin(math.radians(self.angle_deg))))
        )
        x, y = self.center_px
        scale = 1000 / SCENE_PX
        return (
            math.floor((x - half) * scale),
            math.floor((y - half) * scale),
            math.ceil((x + half) * scale),
            math.ceil((y + half) * scale),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene before it is drawn: the photograph, which part of it, and the cards."""

    photo: str
    crop_seed: int
    cards: tuple[Card, ...]


def sample_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """A random scene; held-out scenes use photographs that training never shows."""
    photos = sorted(path.stem for path in PHOTO_FOLDER.glob("*.jpg"))
    photo = rng.choice([name for name in photos if (name in HELD_OUT_PHOTOS) == held_out])
    centers: list[tuple[int, int]] = []
    while len(centers) < 3:
        candidate = (rng.randint(195, SCENE_PX - 195), rng.randint(195, SCENE_PX - 195))
        if all(math.dist(candidate, other) > 170 for other in centers):
            centers.append(candidate)
    cards = tuple(
        Card(
            color=color,
            count=rng.choice(COUNTS),
            center_px=center,
            dot_radius_px=rng.uniform(3.4, 4.3),
            angle_deg=rng.uniform(-25, 25),
            layout_seed=rng.getrandbits(32),
        )
        for color, center in zip(rng.sample(sorted(COLORS), 3), centers, strict=True)
    )
    return Scene(photo=photo, crop_seed=rng.getrandbits(32), cards=cards)


def draw_scene(scene: Scene) -> Image:
    """The picture of a scene, 1024x1024 RGB."""
    return paste_cards(draw_backdrop(scene), scene.cards)


def draw_backdrop(scene: Scene) -> Image:
    """A random part of the scene's photograph, 1024x1024 RGB."""
    from PIL import Image as PilImage

    rng = random.Random(scene.crop_seed)
    photo = _photo(scene.photo)
    side = rng.randint(SCENE_PX // 2, SCENE_PX)
    left = rng.randint(0, photo.width - side)
    top = rng.randint(0, photo.height - side)
    box = (left, top, left + side, top + side)
    picture = photo.resize((SCENE_PX, SCENE_PX), PilImage.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        picture = picture.transpose(PilImage.Transpose.FLIP_LEFT_RIGHT)
    return picture


def paste_cards(picture: Image, cards: tuple[Card, ...]) -> Image:
    """The cards on top of the picture, which is changed."""
    for card in cards:
        tile = _draw_card(card)
        picture.paste(tile, (card.center_px[0] - tile.width // 2, card.center_px[1] - tile.height // 2), tile)
    return picture


@functools.cache
def _photo(name: str) -> Image:
    from PIL import Image as PilImage

    return PilImage.open(PHOTO_FOLDER / f"{name}.jpg").convert("RGB")


def _draw_card(card: Card) -> Image:
    from PIL import Image as PilImage
    from PIL import ImageDraw

    shade, dots = _layout(card)
    side = CARD_PX * _OVERSAMPLING
    body = tuple(min(255, round(channel * shade)) for channel in COLORS[card.color])
    tile = PilImage.new("RGBA", (side, side), (*body, 255))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, side - 1, side - 1), outline=(250, 250, 250, 255), width=3 * _OVERSAMPLING)
    radius = card.dot_radius_px * _OVERSAMPLING
    for x, y in dots:
        cx, cy = x * side, y * side
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=(*_INK, 255))
    big = tile.rotate(card.angle_deg, resample=PilImage.Resampling.BICUBIC, expand=True)
    return big.resize((round(big.width / _OVERSAMPLING), round(big.height / _OVERSAMPLING)), PilImage.Resampling.BOX)


def dots_px(card: Card) -> tuple[tuple[float, float], ...]:
    """Centres of the card's dots in the scene."""
    turn = math.radians(card.angle_deg)
    placed: list[tuple[float, float]] = []
    for x, y in _layout(card)[1]:
        dx, dy = (x - 0.5) * CARD_PX, (y - 0.5) * CARD_PX
        placed.append(
            (
                card.center_px[0] + dx * math.cos(turn) + dy * math.sin(turn),
                card.center_px[1] - dx * math.sin(turn) + dy * math.cos(turn),
            )
        )
    return tuple(placed)


def _layout(card: Card) -> tuple[float, list[tuple[float, float]]]:
    """Brightness of the card, and its dots' places on a jittered 3x3 grid, relative to the card.

    The more dots, the darker the card, roughly: what can be told from afar.
    """
    rng = random.Random(card.layout_seed)
    shade = SHADE_OF_ONE - SHADE_PER_DOT * (card.count - 1) + rng.gauss(0, SHADE_NOISE)
    cells = rng.sample([(i, j) for i in range(3) for j in range(3)], card.count)
    return shade, [
        (0.24 + 0.26 * i + rng.uniform(-0.02, 0.02), 0.24 + 0.26 * j + rng.uniform(-0.02, 0.02)) for i, j in cells
    ]
