"""The models of the emulator by endpoint id; an id that is not in the table answers like emulator/echo."""

from ..addresses import glob
from .developer import echo, fail, large, slow, split
from .drawing import lcm
from .images import FAST_SDXL, FLUX_DEV, FLUX_IMAGE_TO_IMAGE, FLUX_SCHNELL
from .plan import Call, Event, Failure, Model, Plan
from .schema import InvalidInputError
from .speech import whisper
from .text import any_llm
from .video import kling

__all__ = ["Call", "Event", "Failure", "InvalidInputError", "Model", "Plan", "find_model"]

_TABLE: tuple[tuple[str, Model], ...] = (
    ("fal-ai/flux/dev", FLUX_DEV),
    ("fal-ai/flux/schnell", FLUX_SCHNELL),
    ("fal-ai/flux/dev/image-to-image", FLUX_IMAGE_TO_IMAGE),
    ("fal-ai/fast-sdxl", FAST_SDXL),
    ("*/lcm-sd15-i2i", lcm),  # fal-ai, and in older clients 110602490
    ("fal-ai/kling-video/**", kling),
    ("fal-ai/whisper", whisper),
    ("fal-ai/any-llm", any_llm),
    ("emulator/slow", slow),
    ("emulator/fail", fail),
    ("emulator/split", split),
    ("emulator/large", large),
)
_PATTERNS = tuple((glob(pattern), model) for pattern, model in _TABLE)


def find_model(endpoint: str) -> Model:
    """Return the model that serves an endpoint id."""
    return next((model for pattern, model in _PATTERNS if pattern.fullmatch(endpoint)), echo)
