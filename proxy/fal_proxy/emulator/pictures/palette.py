"""Colours that go together: a few hues chosen by rule in OKLCH, where equal steps look equal.

The conversion is Björn Ottosson's (bottosson.github.io/posts/oklab).
"""

import math
from collections.abc import Sequence
from random import Random

Colour = tuple[int, int, int]


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Convert lightness 0-1, chroma 0-0.4 and hue in degrees to sRGB, clipped into its gamut."""
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _gamma(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _gamma(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _gamma(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def ramp(colours: Sequence[Colour], steps: int = 256) -> list[Colour]:
    """Spread colours evenly over so many steps."""
    last = len(colours) - 1
    spread: list[Colour] = []
    for step in range(steps):
        position = step / max(1, steps - 1) * last
        index = min(int(position), last - 1)
        spread.append(mix(colours[index], colours[index + 1], position - index))
    return spread


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours; a share of 1 is the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return (red, green, blue)


class Palette:
    """A family of colours around one hue: `base`, a neighbour `near`, and an accent `far`."""

    def __init__(self, rng: Random, hue: float | None = None) -> None:
        self.base = rng.uniform(0, 360) if hue is None else hue + rng.uniform(-14, 14)
        turn = rng.choice((-1, 1))
        self.near = self.base + turn * rng.uniform(28, 55)
        self.far = self.base + turn * rng.choice((120, 150, 165, 180)) + rng.uniform(-12, 12)

    def colour(self, lightness: float, chroma: float, role: float = 0.0) -> Colour:
        """Return a colour; role 0 is the base hue, 1 the neighbour, 2 the accent, fractions lie between."""
        hues = (self.base, self.near, self.far)
        if role >= 2:
            return oklch(lightness, chroma, self.far)
        whole = int(role)
        return oklch(lightness, chroma, hues[whole] + (hues[whole + 1] - hues[whole]) * (role - whole))


def _gamma(linear: float) -> int:
    if linear <= 0:
        return 0
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return max(0, min(255, round(value * 255)))
