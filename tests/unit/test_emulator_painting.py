"""Painting: repeatable, and quick once the prompt is known."""

from io import BytesIO

import pytest
from PIL import Image, ImageDraw, ImageStat

from fal_proxy.emulator.pictures import encode, paint


def sketch(colour: str, size: tuple[int, int] = (160, 120)) -> bytes:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=colour)
    return encode(image, "png")


def test_the_same_drawing_has_the_same_bytes() -> None:
    assert paint("a lake", 1, (160, 120), sketch("red"), 0.8) == paint("a lake", 1, (160, 120), sketch("red"), 0.8)


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (512, 512), (768, 9)])
def test_a_painting_has_the_size_that_was_asked_for(size: tuple[int, int]) -> None:
    for source in (None, sketch("red")):
        with Image.open(BytesIO(paint("dunes", 1, size, source, 1.0))) as image:
            assert image.size == size


def test_strength_moves_the_picture_away_from_the_drawing() -> None:
    with Image.open(BytesIO(sketch("red"))) as opened:
        drawing = opened.convert("RGB")

    def distance(strength: float) -> float:
        with Image.open(BytesIO(paint("blue silk at night", 1, drawing.size, sketch("red"), strength))) as image:
            pairs = zip(ImageStat.Stat(image).mean, ImageStat.Stat(drawing).mean, strict=True)
            return sum(abs(mine - theirs) for mine, theirs in pairs)

    assert distance(0.0) < distance(0.5) < distance(1.0)
