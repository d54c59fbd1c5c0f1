"""One picture: what determines it, how it is drawn and encoded. The same picture has the same bytes, always."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import Literal, TypeVar, Union

from PIL import Image, ImageChops, ImageOps

from ..chance import chance
from . import canvas
from .palette import Palette
from .scenes import SCENES

Key = TypeVar("Key", str, float)

# A prompt that names one of these gets its scene, its hue, its time of day; chance decides the rest.
_SCENE_WORDS = {
    "ridges": ("mountain", "hill", "alp", "valley", "landscape", "lake", "forest", "tree", "cabin", "fjord"),
    "aurora": ("aurora", "northern", "arctic", "ice", "snow", "winter", "galaxy", "space", "star", "cosmic"),
    "dunes": ("desert", "dune", "sand", "beach", "sea", "ocean", "wave", "sahara", "island", "mars"),
    "silk": ("abstract", "silk", "fluid", "marble", "paint", "liquid", "smoke", "dream", "portrait", "flower"),
    "paper": ("paper", "poster", "graphic", "logo", "topograph", "map", "collage", "illustration", "pattern"),
}
_HUE_WORDS = {
    20.0: ("red", "mars", "fire", "autumn", "rose"),
    55.0: ("sunset", "orange", "desert", "sunrise", "warm", "dawn"),
    85.0: ("gold", "yellow", "wheat", "honey"),
    145.0: ("green", "forest", "spring", "jungle", "moss"),
    195.0: ("teal", "turquoise", "lagoon"),
    245.0: ("blue", "ocean", "sea", "sky", "winter", "ice"),
    300.0: ("purple", "violet", "neon", "dream", "lavender"),
    350.0: ("pink", "blossom", "sakura"),
}
_NIGHT_WORDS = ("night", "dark", "moon", "midnight", "star", "neon", "cyber")
_DRAWN_SIDE = 1536  # larger pictures are enlarged from this
_LEAST_SIDE = 96


@dataclass(frozen=True)
class Picture:
    """All that a picture depends on; `source` is the picture it is a variation of."""

    endpoint: str
    prompt: str
    seed: int
    width: int
    height: int
    index: int = 0
    format: Literal["jpeg", "png"] = "jpeg"
    source: Union["Picture", bytes, None] = None

    @property
    def held_bytes(self) -> int:
        """What it keeps in memory before it is drawn."""
        return len(self.prompt) + (len(self.source) if isinstance(self.source, bytes) else 0)


def render(picture: Picture, source: bytes | None = None) -> Image.Image:
    """Draw a picture; `source` is the encoded picture it varies, if any."""
    size = (picture.width, picture.height)
    rng = chance(picture.endpoint, picture.prompt, picture.seed, size, picture.index)
    scale = min(1.0, _DRAWN_SIDE / max(size))
    # Scenes need room to be recognised: a strip or a stamp is cut out of a proper picture.
    least = max(_LEAST_SIDE, round(max(size) * scale / 4))
    drawn = (max(least, round(size[0] * scale)), max(least, round(size[1] * scale)))
    prompt = picture.prompt.lower()
    scene = SCENES[_named(prompt, _SCENE_WORDS) or rng.choice(sorted(SCENES))]
    palette = Palette(rng, _named(prompt, _HUE_WORDS))
    night = any(word in prompt for word in _NIGHT_WORDS) or rng.random() < 0.2
    image = scene(rng, palette, drawn, night)
    if source is not None:
        image = _varied(image, source, rng)
    if drawn != size:
        image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return canvas.finish(image, rng)


def encode(image: Image.Image, kind: Literal["jpeg", "png"]) -> bytes:
    """Encode a picture."""
    buffer = BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", compress_level=4)
    else:
        image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _varied(image: Image.Image, source: bytes, rng: Random) -> Image.Image:
    """Repaint a source in the colours and light of a fresh image, so that its shapes are still recognised."""
    with Image.open(BytesIO(source)) as opened:
        basis = ImageOps.fit(opened.convert("RGB"), image.size, Image.Resampling.BICUBIC)
    washed = Image.blend(basis, image, rng.uniform(0.25, 0.4))
    return ImageChops.soft_light(washed, Image.blend(image, Image.new("RGB", image.size, (128, 128, 128)), 0.35))


def _named(prompt: str, words: Mapping[Key, tuple[str, ...]]) -> Key | None:
    """Return the first key one of whose words begins a word of the prompt."""
    spoken = re.findall(r"[a-z]+", prompt)
    return next((key for key, names in words.items() if any(word.startswith(names) for word in spoken)), None)
