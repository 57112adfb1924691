"""Images by content: stored once, upright, refused with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from axpo.errors import DataError
from axpo.images import ContentImageStore


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def test_equal_bytes_are_one_picture_on_disk_too(tmp_path: Path) -> None:
    store = ContentImageStore(tmp_path)
    data = encoded(Image.new("RGB", (8, 6), "red"), "PNG")
    first, second = store.add_bytes(data), store.add_bytes(bytes(data))
    assert first == second
    assert (first.width_px, first.height_px) == (8, 6)
    store.persist(first)
    store.persist(second)
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.sha256}.png"]
    assert store.load(first) is store.load(second)


def test_a_persisted_picture_leaves_memory_and_is_read_from_its_file(tmp_path: Path) -> None:
    store = ContentImageStore(tmp_path / "images", max_decoded_px=1)
    assert not (tmp_path / "images").exists(), "nothing is written before there is something to write"
    pictures = [Image.effect_noise((64, 64), 50 + i).convert("RGB") for i in range(3)]
    refs = [store.add_image(picture) for picture in pictures]
    before = [store.encoded(ref) for ref in refs]
    for ref in refs:
        store.persist(ref)
    assert store.add_image(pictures[0]) == refs[0]
    assert not store._bytes
    assert [store.encoded(ref) for ref in refs] == before
    assert [store.load(ref).tobytes() for ref in refs] == [picture.tobytes() for picture in pictures]


def test_a_photograph_held_sideways_is_turned_upright() -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 10, 20))  # the left edge, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    store = ContentImageStore()
    ref = store.add_bytes(encoded(picture, "JPEG", exif=exif, quality=95))
    assert (ref.width_px, ref.height_px) == store.load(ref).size == (20, 40)
    assert min(store.load(ref).getpixel((10, 3))) > 200
    assert max(store.load(ref).getpixel((10, 36))) < 60


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"row 3: not a readable image"):
        ContentImageStore().add_bytes(data, origin="row 3")


def photograph(format: str) -> bytes:
    return encoded(Image.effect_noise((200, 150), 90).convert("RGB"), format)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_an_image_that_lacks_its_end_or_its_middle_is_refused_when_it_is_added(format: str, share: float) -> None:
    data = photograph(format)
    cut = data[: int(len(data) * share)]
    for broken in (cut, cut + b"IEND\xae\x42\x60\x82", *([] if format == "JPEG" else [cut + data[-2:]])):
        with pytest.raises(DataError, match=r"row 3: not a readable image \(\d+ bytes\)"):
            ContentImageStore().add_bytes(broken, origin="row 3")


def test_a_flipped_byte_in_a_png_is_found_when_it_is_added() -> None:
    data = bytearray(photograph("PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(DataError, match="not a readable image"):
        ContentImageStore().add_bytes(bytes(data))


def test_what_was_added_once_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ContentImageStore()
    data = photograph("PNG")
    ref = store.add_bytes(data)
    monkeypatch.setattr("axpo.images._decode", lambda data: pytest.fail("decoded again"))
    assert store.add_bytes(bytes(data)) == ref


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.png: No such file"):
        ContentImageStore().add_file(tmp_path / "nothing.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(DataError, match="limit"):
        ContentImageStore().add_bytes(encoded(Image.new("1", (20_000, 20_000)), "PNG"))


def test_decoded_pictures_are_bounded_by_pixels_the_last_used_stay() -> None:
    store = ContentImageStore(max_decoded_px=250)
    first, second, third = (store.add_image(Image.new("RGB", (10, 10), (shade, 0, 0))) for shade in (1, 2, 3))
    kept, other = store.load(first), store.load(second)
    assert store.load(first) is kept
    store.load(third)  # 300 pixels: the one used longest ago goes
    assert store.load(first) is kept
    assert store.load(second) is not other


def test_formats_that_start_other_programs_are_refused() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DataError, match="not a readable image"):
        ContentImageStore().add_bytes(eps)


def test_a_palette_with_transparent_colours_is_read_without_a_warning() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=bytes([0, 255]))
    store = ContentImageStore()
    loaded = store.load(store.add_bytes(buffer.getvalue()))
    assert (loaded.getpixel((0, 0)), loaded.getpixel((1, 0))) == ((255, 0, 0), (0, 0, 255))
