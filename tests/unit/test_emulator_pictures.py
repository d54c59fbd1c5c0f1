"""Pictures: repeatable, different, of the size that was asked for."""

import asyncio
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image, ImageStat

from fal_proxy.emulator.pictures import Gallery, Picture, encode, render

BASE = Picture("fal-ai/flux/dev", "a mountain lake", 7, 320, 240)


def test_the_same_picture_has_the_same_bytes() -> None:
    assert encode(render(BASE), "png") == encode(render(BASE), "png")


def test_everything_a_picture_depends_on_changes_its_bytes() -> None:
    others = [
        replace(BASE, endpoint="fal-ai/flux/schnell"),
        replace(BASE, prompt="a mountain lake."),
        replace(BASE, seed=8),
        replace(BASE, width=321),
        replace(BASE, index=1),
    ]
    encoded = {encode(render(picture), "png") for picture in [BASE, *others]}
    assert len(encoded) == 1 + len(others)


@pytest.mark.parametrize("word", ["mountain", "aurora", "dune", "silk", "paper"])
@pytest.mark.parametrize("size", [(256, 192), (1, 1), (2048, 3), (31, 700)])
def test_every_scene_fills_any_size(word: str, size: tuple[int, int]) -> None:
    image = render(replace(BASE, prompt=word, width=size[0], height=size[1]))
    assert image.size == size
    if min(size) > 100:
        assert max(ImageStat.Stat(image).stddev) > 8


def test_a_variation_keeps_something_of_its_source() -> None:
    black, white = BytesIO(), BytesIO()
    Image.new("RGB", (64, 64), "black").save(black, "PNG")
    Image.new("RGB", (64, 64), "white").save(white, "PNG")
    dark, bright = render(BASE, black.getvalue()), render(BASE, white.getvalue())
    assert ImageStat.Stat(dark).mean[1] + 40 < ImageStat.Stat(bright).mean[1]


async def test_a_gallery_draws_each_picture_once_even_when_asked_twice_at_once() -> None:
    gallery = Gallery()
    first, second = await asyncio.gather(gallery.show(BASE), gallery.show(BASE))
    assert first is second
    assert first[:2] == b"\xff\xd8"
    assert await gallery.show(replace(BASE, source=BASE)) != first
