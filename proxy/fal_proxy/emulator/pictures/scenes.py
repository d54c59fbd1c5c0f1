"""Five scenes: ridges, aurora, dunes, silk, paper. Each turns chance and a palette into an image of any size."""

import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from . import canvas
from .canvas import Size
from .palette import Palette, mix, oklch

Scene = Callable[[Random, Palette, Size, bool], Image.Image]


def ridges(rng: Random, palette: Palette, size: Size, night: bool) -> Image.Image:
    """Mountains behind mountains, paler with distance, sometimes mirrored in a lake."""
    width, height = size
    if night:
        sky = [palette.colour(0.16, 0.05), palette.colour(0.3, 0.09, 0.5), palette.colour(0.55, 0.11, 1.2)]
    else:
        sky = [palette.colour(0.62, 0.1), palette.colour(0.8, 0.09, 0.6), palette.colour(0.92, 0.08, 1.4)]
    image = canvas.vertical(size, [*sky, sky[-1]])
    clouds = canvas.noise(rng, (max(2, width // 12), max(2, height // 3)), 7, 4)  # stretched sideways below
    veil = canvas.to_mask(clouds, 420, -210).resize(size, Image.Resampling.BICUBIC)
    veil = ImageChops.multiply(veil, canvas.fall(size, 0.5, 0.0))
    image = Image.composite(canvas.vertical(size, [palette.colour(0.4 if night else 0.95, 0.06, 1.2)] * 2), image, veil)
    if night:
        image = canvas.stars(image, rng, 260, 0.6)
    sun = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.22, 0.42) * height)
    radius = min(size) * rng.uniform(0.04, 0.075)
    image = _sun(image, sun, radius, night)
    horizon = image.getpixel((width // 2, max(0, round(height * 0.55) - 1)))
    haze = horizon if isinstance(horizon, tuple) else (200, 200, 200)
    layers = rng.randint(5, 7)
    for layer in range(layers):
        near = layer / (layers - 1)
        base, swing = 0.46 + 0.5 * near**1.15, 0.09 + 0.07 * (1 - near) + rng.uniform(-0.02, 0.03)
        outline = canvas.ridge(rng, 0.5 - 0.05 * near, rng.uniform(1.1, 2.2) + near)
        mask = canvas.below(size, _range(outline, base - 0.3 * swing, swing))
        dark = palette.colour(0.62 - 0.46 * near if not night else 0.4 - 0.28 * near, 0.075 - 0.02 * near, near * 0.6)
        body = mix(dark, (haze[0], haze[1], haze[2]), 0.72 * (1 - near) ** 1.2)
        mist = mix(body, (haze[0], haze[1], haze[2]), 0.55 * (1 - near) + 0.12)
        top = max(0.0, base - swing * 1.4)
        image = Image.composite(_fade(size, body, mist, top, min(1.0, base + 0.2)), image, mask)
    return image if rng.random() < 0.55 else _lake(image, rng)


def aurora(rng: Random, palette: Palette, size: Size, night: bool) -> Image.Image:
    """Curtains of light above a dark, snowy country."""
    width, height = size
    if not 130 <= palette.base % 360 <= 320:
        palette = Palette(rng, rng.choice((150.0, 165.0, 190.0, 230.0, 290.0)))  # no aurora is brown
    half = (max(2, width // 2), max(2, height // 2))  # light has no edges
    night_sky = [palette.colour(0.11, 0.04), palette.colour(0.19, 0.06), palette.colour(0.25, 0.06, 0.6)]
    image = canvas.vertical(half, night_sky)
    small = (256, max(64, round(256 * height / width)))
    for curtain in range(rng.randint(3, 4)):
        light = _curtain(rng, small).resize(half, Image.Resampling.BICUBIC)
        halo = light.resize((32, 24)).filter(ImageFilter.GaussianBlur(2)).resize(half, Image.Resampling.BICUBIC)
        colour = palette.colour(0.76, 0.2, (1.0, 0.3, 1.3, 0.0)[curtain % 4])
        image = canvas.light(image, halo.point([round(value * 0.7) for value in range(256)]), colour)
        image = canvas.light(image, light, colour)
    sky = image
    image = canvas.stars(image.resize(size, Image.Resampling.BICUBIC), rng, 420, 0.8)
    for layer in range(3):
        near = layer / 2
        outline = canvas.ridge(rng, 0.52, rng.uniform(1.4, 2.4))
        mask = canvas.below(size, _range(outline, 0.78 + 0.09 * near, 0.1 - 0.04 * near))
        dark = palette.colour(0.22 - 0.06 * layer, 0.045, 0.3)
        image = Image.composite(
            _fade(size, mix(dark, palette.colour(0.6, 0.08, 1), 0.2), dark, 0.68, 0.95), image, mask
        )
    # The snow takes a little of the light above it.
    reflected = ImageOps.flip(sky).filter(ImageFilter.GaussianBlur(min(half) / 40)).resize(size)
    ground = ImageChops.multiply(canvas.fall(size, 0.0, 0.5, 2.5), canvas.fall(size, 0.0, 1.0, 1.5))
    return Image.composite(ImageChops.screen(image, reflected), image, ground)


def dunes(rng: Random, palette: Palette, size: Size, night: bool) -> Image.Image:
    """Long soft waves of sand, lit from one side."""
    width, height = size
    shift = 0.4 if night else 0.0
    image = canvas.vertical(size, [palette.colour(0.7 - shift, 0.08, 2), palette.colour(0.93 - shift, 0.06, 1)])
    sun = (rng.uniform(0.15, 0.85) * width, rng.uniform(0.12, 0.26) * height)
    image = _sun(image, sun, min(size) * rng.uniform(0.04, 0.07), night)
    layers = 6
    for layer in range(layers):
        near = layer / (layers - 1)
        base, swing = 0.36 + 0.56 * near, 0.05 + 0.07 * near
        line = _swell(rng, base, swing)
        lit, shaded = (
            palette.colour(0.9 - shift - 0.2 * near, 0.1, near),
            palette.colour(0.5 - shift * 0.8 - 0.25 * near, 0.09, near * 0.8),
        )
        mask = canvas.below(size, line)
        image = Image.composite(_fade(size, lit, shaded, base - swing, base + 0.3), image, mask)
        # The lee side: a lens of shadow that starts on a crest and runs down its far slope.
        shadow = ImageChops.multiply(_lee(rng, size, line, swing), canvas.fall(size, 0.7, 0.5))
        image = Image.composite(
            _fade(size, mix(shaded, lit, 0.12), mix(shaded, lit, 0.3), base - swing, base + 0.3), image, shadow
        )
    return image


def silk(rng: Random, palette: Palette, size: Size, night: bool) -> Image.Image:
    """Folds of shining cloth or of slow paint."""
    width, height = size
    scale = 560 / max(size)
    small = (max(8, round(width * scale)), max(8, round(height * scale)))
    heights = canvas.noise(rng, small, rng.uniform(1.4, 2.2), 2, 0.35)
    for _ in range(2):
        heights = canvas.warp(heights, rng, 0.14, 4)
    heights = canvas.normal(heights)
    dark = 0.16 if night else 0.26
    colours = [
        palette.colour(dark, 0.08, 0),
        palette.colour(dark + 0.2, 0.13, 0.4),
        palette.colour(0.66, 0.14, 1),
        palette.colour(0.88, 0.07, 1.4),
        palette.colour(0.7, 0.14, 2),
        palette.colour(dark + 0.15, 0.12, 2),
    ]
    image = canvas.tint(canvas.to_mask(heights), colours)
    folds = canvas.pleat(heights, rng.uniform(4.5, 8))
    fine = canvas.pleat(canvas.add(heights, folds, 0.08), rng.uniform(14, 22))
    relief = canvas.add(folds, fine, 0.22)
    moved = relief.transform(small, Image.Transform.AFFINE, (1, 0, 2, 0, 1, 2))
    slope = canvas.to_mask(canvas.add(relief, moved, -1.0), 300, 126).filter(ImageFilter.GaussianBlur(1.5))
    image = ImageChops.soft_light(image, Image.merge("RGB", (canvas.to_mask(folds, 150, 55),) * 3))
    image = ImageChops.overlay(image, Image.merge("RGB", (slope,) * 3))
    # What faces the light shines in the colour of the light.
    image = canvas.light(
        image, slope.point([max(0, value - 150) for value in range(256)]), palette.colour(0.92, 0.05, 1)
    )
    image = image.filter(ImageFilter.GaussianBlur(0.7)).crop((3, 3, small[0] - 3, small[1] - 3))
    return image.resize(size, Image.Resampling.BICUBIC)


def paper(rng: Random, palette: Palette, size: Size, night: bool) -> Image.Image:
    """Sheets of cut paper, each with its shadow on the one below."""
    reach = max(size) / 110
    # Shadows come in from outside the picture too: draw with a margin.
    margin = round(3 * reach)
    sheet = (size[0] + 2 * margin, size[1] + 2 * margin)
    scale = 360 / max(sheet)
    small = (max(8, round(sheet[0] * scale)), max(8, round(sheet[1] * scale)))
    heights = canvas.noise(rng, small, rng.uniform(2.0, 3.2), 3, 0.4)
    heights = canvas.normal(canvas.warp(heights, rng, 0.06, 5)).resize(sheet, Image.Resampling.BICUBIC)
    levels = rng.randint(7, 9)
    deep, high = (0.2, 0.85) if night else (0.36, 0.95)
    far = rng.choice((1.0, 2.0))
    image = Image.new("RGB", sheet, palette.colour(deep, 0.09))
    dark = Image.new("RGB", sheet, mix(palette.colour(0.12, 0.05), (0, 0, 0), 0.4))
    for level in range(1, levels):
        share = level / (levels - 1)
        edge = 0.14 + 0.72 * level / levels
        steep = 255 * max(size) / 14
        mask = canvas.to_mask(heights, steep, -edge * steep + 128)
        shadow = ImageChops.offset(mask, round(-reach * 0.6), round(reach)).filter(ImageFilter.GaussianBlur(reach))
        image = Image.composite(dark, image, shadow.point(lambda value: round(value * 0.42)))
        colour = palette.colour(deep + (high - deep) * share, 0.12 - 0.06 * share, far * share)
        image = Image.composite(Image.new("RGB", sheet, colour), image, mask)
    return image.crop((margin, margin, margin + size[0], margin + size[1]))


SCENES: dict[str, Scene] = {"ridges": ridges, "aurora": aurora, "dunes": dunes, "silk": silk, "paper": paper}


def _fade(
    size: Size, upper: tuple[int, int, int], lower: tuple[int, int, int], top: float, bottom: float
) -> Image.Image:
    """Return a sheet of `upper` that turns into `lower` between two heights."""
    height = size[1]
    first, last = round(top * height), max(round(top * height) + 1, round(bottom * height))
    sheet = Image.new("RGB", size, lower)
    sheet.paste(upper, (0, 0, size[0], max(0, first)))
    sheet.paste(canvas.vertical((size[0], last - first), [upper, lower]), (0, first))
    return sheet


def _lake(image: Image.Image, rng: Random) -> Image.Image:
    width, height = image.size
    shore = round(height * rng.uniform(0.68, 0.78))
    depth = height - shore
    mirrored = ImageOps.flip(image.crop((0, max(0, shore - depth), width, shore))).resize((width, depth))
    ripples = canvas.noise(rng, (24, max(4, depth // 3)), 40, 2)
    streaks = canvas.to_mask(ripples, 90, 80).resize((width, depth), Image.Resampling.BICUBIC)
    mirrored = mirrored.filter(ImageFilter.BoxBlur((width / 160, height / 260)))
    mirrored = ImageChops.soft_light(mirrored, Image.merge("RGB", (streaks,) * 3))
    mirrored = ImageChops.multiply(mirrored, canvas.vertical((width, depth), [(225, 228, 235), (165, 170, 185)]))
    image = image.copy()
    image.paste(mirrored, (0, shore))
    return image


def _curtain(rng: Random, size: Size) -> Image.Image:
    """Return the mask of one curtain: rays that stand on a wandering line, which folds over itself here and there."""
    width, height = size
    line = _swell(rng, rng.uniform(0.46, 0.66), 0.12)
    bend, waves, phase = rng.uniform(0.03, 0.09), rng.uniform(1.0, 2.2), rng.uniform(0, math.tau)
    streaks = canvas.noise(rng, (width, 8), rng.uniform(18, 40), 3, 0.6)
    folds = canvas.ridge(rng, 0.4, rng.uniform(1.0, 2.0), 3)
    ray = Image.new("L", (1, 128))
    ray.putdata([round(255 * (row / 127) ** 2.1 * min(1.0, (127 - row) / 34) ** 1.5) for row in range(128)])
    mask = Image.new("L", size)
    for step in range(width):
        at = step / width
        value = streaks.getpixel((step, 4))
        shine = value if isinstance(value, float) else 0.5
        strength = (0.2 + 0.8 * shine) * max(0.0, 0.55 + 0.45 * folds(at))
        long = max(2, round(height * (0.3 + 0.35 * shine)))
        column = ray.resize((2, long)).point([round(level * strength) for level in range(256)])
        x = round((at * 1.2 - 0.1 + bend * math.sin(math.tau * waves * at + phase)) * width)
        place = (x, round(line(at) * height) - round(long * 0.85))
        mask.paste(255, place, column)
    return mask.filter(ImageFilter.GaussianBlur(1.1))


def _sun(image: Image.Image, centre: tuple[float, float], radius: float, night: bool) -> Image.Image:
    """Put a sun, or a moon, and its glow into a sky."""
    body, halo = (
        (oklch(0.96, 0.02, 250), oklch(0.8, 0.05, 255)) if night else (oklch(0.98, 0.035, 90), oklch(0.87, 0.1, 70))
    )
    image = canvas.light(image, canvas.glow(image.size, centre, radius * 9, 0.7), halo)
    return Image.composite(Image.new("RGB", image.size, body), image, canvas.disc(image.size, centre, radius))


def _lee(rng: Random, size: Size, line: Callable[[float], float], swing: float) -> Image.Image:
    """Return the mask of the shaded side of a dune: from its highest point down along the crest and back."""
    width, height = size
    start = rng.uniform(0.0, 0.6)
    crest = min((start + step / 100 for step in range(40)), key=line)
    end = crest + rng.uniform(0.22, 0.45)
    depth = swing * rng.uniform(1.0, 1.9)
    shares = [step / 60 for step in range(61)]
    upper = [(crest + (end - crest) * share, line(crest + (end - crest) * share)) for share in shares]
    lower = [
        (x, y + depth * math.sin(math.pi * share**0.55) ** 1.3) for (x, y), share in zip(upper, shares, strict=True)
    ]
    mask = Image.new("L", size)
    outline = [(x * width, y * height) for x, y in [*upper, *reversed(lower)]]
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    return mask.filter(ImageFilter.GaussianBlur(0.8))


def _range(outline: Callable[[float], float], base: float, swing: float) -> Callable[[float], float]:
    """Place a mountain's outline at a height in the picture."""
    return lambda x: base - swing * outline(x)


def _swell(rng: Random, base: float, swing: float) -> Callable[[float], float]:
    waves = [
        (rng.uniform(0.35, 1.0) / (n + 1), rng.uniform(0.5, 1.3) * (n + 1), rng.uniform(0, math.tau)) for n in range(3)
    ]
    total = sum(weight for weight, _, _ in waves)
    return lambda x: base + swing * sum(w * math.sin(math.tau * f * x + p) for w, f, p in waves) / total
