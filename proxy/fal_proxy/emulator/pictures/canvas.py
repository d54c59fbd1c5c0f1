"""The brushes of the scenes: noise, gradients, light, grain. All deterministic, all cheap, all Pillow.

Heights are images of mode F in 0-1; masks are of mode L.
"""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageMath, ImageOps

from .palette import Colour, ramp

Size = tuple[int, int]


def noise(rng: Random, size: Size, cells: float, octaves: int = 4, fade: float = 0.5) -> Image.Image:
    """Return fractal noise as heights; `cells` is how many features span the longer side."""
    # Noise on a grid shows the grid; a turned, larger sheet of it does not.
    side = round(math.hypot(*size)) + 2
    total: Image.Image | None = None
    for octave in range(octaves):
        grid = max(2, round(cells * 2**octave * side / max(size))) + 1
        layer = Image.frombytes("L", (grid, grid), rng.randbytes(grid * grid)).convert("F")
        total = add(total, layer.resize((side, side), Image.Resampling.BICUBIC), fade**octave)
    if total is None:
        raise ValueError("noise needs an octave")
    turned = total.rotate(rng.uniform(15, 75), Image.Resampling.BILINEAR)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    return normal(turned.crop((left, top, left + size[0], top + size[1])))


def add(first: Image.Image | None, second: Image.Image, weight: float = 1.0) -> Image.Image:
    """Add two height images."""
    if first is None:
        return second.point(lambda value: value * weight + 0)
    summed: Image.Image = ImageMath.lambda_eval(lambda by: by["a"] + by["b"] * weight, a=first, b=second)
    return summed


def normal(heights: Image.Image) -> Image.Image:
    """Stretch heights to exactly 0-1."""
    low, high = (value if isinstance(value, float) else 0.0 for value in heights.getextrema())
    scale = 1 / max(1e-6, high - low)
    return heights.point(lambda value: value * scale + -low * scale)


def pleat(heights: Image.Image, turns: float) -> Image.Image:
    """Fold heights: every 1/turns of them rises smoothly to 1 and falls back to 0."""

    def fold(by: dict[str, Any]) -> Any:
        scaled = by["heights"] * turns
        part = scaled - by["float"](by["int"](scaled))
        return part * part * (1 - part) * (1 - part) * 16

    folded: Image.Image = ImageMath.lambda_eval(fold, heights=heights)
    return folded


def to_mask(heights: Image.Image, scale: float = 255.0, offset: float = 0.0) -> Image.Image:
    """Convert heights to a mask, clipped to 0-255."""
    return heights.point(lambda value: value * scale + offset).convert("L")


def warp(image: Image.Image, rng: Random, strength: float, cells: int = 4) -> Image.Image:
    """Bend an image smoothly, by up to `strength` of its longer side."""
    width, height = image.size
    columns, rows = 24, max(2, round(24 * height / width))
    reach = strength * max(width, height)
    fields = []
    for _ in range(2):
        coarse = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
        fields.append(coarse.resize((columns + 1, rows + 1), Image.Resampling.BICUBIC).tobytes())

    def source(column: int, row: int) -> tuple[float, float]:
        dx, dy = (field[row * (columns + 1) + column] / 127.5 - 1 for field in fields)
        x = min(width - 1, max(0, column * width / columns + dx * reach))
        return x, min(height - 1, max(0, row * height / rows + dy * reach))

    mesh = []
    for column in range(columns):
        for row in range(rows):
            box = (
                column * width // columns,
                row * height // rows,
                (column + 1) * width // columns,
                (row + 1) * height // rows,
            )
            corners = ((column, row), (column, row + 1), (column + 1, row + 1), (column + 1, row))
            mesh.append((box, tuple(value for corner in corners for value in source(*corner))))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def tint(mask: Image.Image, colours: Sequence[Colour]) -> Image.Image:
    """Colour a mask along a ramp of colours, dark to light."""
    flat = [channel for colour in ramp(colours) for channel in colour]
    image = mask.copy()
    image.putpalette(flat)
    return image.convert("RGB")


def vertical(size: Size, colours: Sequence[Colour]) -> Image.Image:
    """Return a smooth gradient from top to bottom."""
    column = Image.new("RGB", (1, max(2, size[1])))
    column.putdata(ramp(colours, max(2, size[1])))
    return column.resize(size)


def fall(size: Size, top: float, bottom: float, bend: float = 1.0) -> Image.Image:
    """Return a mask that goes from `top` to `bottom` (0-1) downwards; a bend above 1 holds the top longer."""
    rows = max(2, size[1])
    column = Image.new("L", (1, rows))
    column.putdata([round(255 * (top + (bottom - top) * (row / (rows - 1)) ** bend)) for row in range(rows)])
    return column.resize(size)


def glow(size: Size, centre: tuple[float, float], radius: float, strength: float = 1.0) -> Image.Image:
    """Return the mask of a soft light around a point; `radius` in pixels is where it has gone."""
    side = 128
    disc = Image.new("L", (side, side))
    disc.putdata(
        [
            round(255 * strength * max(0.0, 1 - math.hypot(x - 63.5, y - 63.5) / 63.5) ** 2.2)
            for y in range(side)
            for x in range(side)
        ]
    )
    spread = max(2, round(radius * 2))
    mask = Image.new("L", size)
    place = (round(centre[0] - radius), round(centre[1] - radius))
    mask.paste(disc.resize((spread, spread), Image.Resampling.BICUBIC), place)
    return mask


def disc(size: Size, centre: tuple[float, float], radius: float) -> Image.Image:
    """Return the mask of a disc with a smooth edge."""
    side = max(4, round(radius * 2)) * 2
    large = Image.new("L", (side, side))
    ImageDraw.Draw(large).ellipse((2, 2, side - 3, side - 3), fill=255)
    mask = Image.new("L", size)
    small = large.resize((side // 2, side // 2), Image.Resampling.LANCZOS)
    mask.paste(small, (round(centre[0] - side / 4), round(centre[1] - side / 4)))
    return mask


def light(image: Image.Image, mask: Image.Image, colour: Colour) -> Image.Image:
    """Add coloured light where the mask says, as lamps add up: never beyond white."""
    lamp = ImageOps.colorize(mask, (0, 0, 0), colour)
    return ImageChops.screen(image, lamp)


def below(size: Size, line: Callable[[float], float]) -> Image.Image:
    """Return the mask of everything below a line; the line maps x in 0-1 to y in 0-1."""
    width, height = size
    steps = max(2, width // 2)
    points = [(step * width / steps, line(step / steps) * height) for step in range(steps + 1)]
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([*points, (width, height), (0, height)], fill=255)
    return mask.filter(ImageFilter.GaussianBlur(0.7))


def ridge(rng: Random, roughness: float = 0.5, frequency: float = 2.0, octaves: int = 6) -> Callable[[float], float]:
    """Return a mountain's outline: a function from x in 0-1 to a height around 0, within about -1 and 1."""
    waves = [
        (roughness**octave, frequency * 2.03**octave * rng.uniform(0.85, 1.15), rng.uniform(0, math.tau))
        for octave in range(octaves)
    ]
    total = sum(weight for weight, _, _ in waves)

    def height(x: float) -> float:
        # Sharp crests, round valleys: the absolute value of a sine folds at zero.
        folded = (weight * (1 - 2 * abs(math.sin(math.pi * rate * x + phase))) for weight, rate, phase in waves)
        return sum(folded) / total

    return height


def stars(image: Image.Image, rng: Random, count: int, down_to: float) -> Image.Image:
    """Scatter stars over the upper part of an image, most of them faint."""
    width, height = image.size
    sky = Image.new("L", image.size)
    draw = ImageDraw.Draw(sky)
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, 1) ** 1.3 * down_to * height
        radius, brightness = max(width, height) / 1900 * rng.uniform(0.5, 1.5), round(60 + 195 * rng.random() ** 3)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=brightness)
    return light(image, sky.filter(ImageFilter.GaussianBlur(0.6)), (235, 240, 255))


def finish(image: Image.Image, rng: Random, grain: float = 0.035) -> Image.Image:
    """Darken the corners a little and add the grain that makes smooth gradients look photographed."""
    width, height = image.size
    corners = glow(image.size, (width / 2, height / 2), math.hypot(width, height) * 0.95)
    eased = corners.point([round(255 * (1 - (1 - value / 255) ** 5)) for value in range(256)])
    shade = ImageOps.colorize(eased, (120, 120, 128), (255, 255, 255))
    image = ImageChops.multiply(image, shade)
    tile = (min(width, 512), min(height, 512))
    speckles = Image.frombytes("L", tile, rng.randbytes(tile[0] * tile[1])).filter(ImageFilter.GaussianBlur(0.6))
    sheet = Image.new("L", image.size)
    for left in range(0, width, tile[0]):
        for top in range(0, height, tile[1]):
            sheet.paste(speckles, (left, top))
    texture = sheet.point(lambda value: 128 + (value - 128) * grain * 4)
    return ImageChops.soft_light(image, Image.merge("RGB", (texture, texture, texture)))
