"""What each model costs, in the unit that its inference bills in; the figures are fal's of some day, or made up."""

from decimal import Decimal
from typing import NamedTuple

from .addresses import glob


class Tariff(NamedTuple):
    """The price of one endpoint."""

    unit: str
    usd: Decimal  # per unit


_TABLE = (
    ("fal-ai/flux/dev", "megapixels", "0.025"),
    ("fal-ai/flux/dev/image-to-image", "megapixels", "0.03"),
    ("fal-ai/flux/schnell", "megapixels", "0.003"),
    ("fal-ai/fast-sdxl", "images", "0.0025"),
    ("*/lcm-sd15-i2i", "images", "0.0005"),
    ("fal-ai/kling-video/**", "seconds", "0.28"),
    ("fal-ai/whisper", "compute seconds", "0.00111"),
    ("fal-ai/any-llm", "requests", "0.001"),
    ("emulator/**", "requests", "0.001"),
)
_TARIFFS = tuple((glob(pattern), Tariff(unit, Decimal(usd))) for pattern, unit, usd in _TABLE)


def find_tariff(endpoint: str) -> Tariff | None:
    """Return what an endpoint costs; None for one that is made up, though the emulator answers for it."""
    return next((tariff for pattern, tariff in _TARIFFS if pattern.fullmatch(endpoint)), None)
