"""Repainting a drawing again and again: what the prompt stands for is drawn once, each stroke costs some milliseconds."""

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from .canvas import Size
from .picture import Picture, encode, render

KEPT_BACKDROPS = 16
_BACKDROP_SIDE = 256  # light and colour only: nobody sees more of it


def paint(prompt: str, seed: int, size: Size, source: bytes | None, strength: float) -> bytes:
    """Return a JPEG of the source's shapes in the prompt's colours; strength 0 keeps the source, 1 only its outlines."""
    scale = _BACKDROP_SIDE / max(size)
    backdrop = _backdrop(prompt, seed, max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    image = backdrop.resize(size, Image.Resampling.BILINEAR)
    if source is None:
        return encode(image, "jpeg")
    with Image.open(BytesIO(source)) as opened:
        opened.draft("RGB", size)
        drawing = ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.BILINEAR)
    # The light of the drawing on the prompt's scene, then as much of the drawing's own colours as strength leaves.
    lit = ImageChops.overlay(image, ImageOps.grayscale(drawing).convert("RGB"))
    mixed = Image.blend(drawing, lit, 0.85 * strength)
    edges = ImageOps.grayscale(drawing).filter(ImageFilter.FIND_EDGES)
    ImageDraw.Draw(edges).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=0)  # the filter leaves the rim as it was
    return encode(ImageChops.multiply(mixed, ImageOps.invert(edges).convert("RGB")), "jpeg")


@lru_cache(maxsize=KEPT_BACKDROPS)
def _backdrop(prompt: str, seed: int, width: int, height: int) -> Image.Image:
    return render(Picture("painting", prompt, seed, width, height))
