"""The image models: flux and SDXL from text, flux from another picture, each with streamed partial results.

Inputs and outputs have fal's shapes (fal.ai/models/fal-ai/flux/dev/api); what is in the pictures is not our business.
"""

import base64
import binascii
import math
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL import Image, ImageFilter

from ..exchange import Json
from ..pictures import Picture, encode
from .plan import Call, Event, Failure, Output, Plan
from .schema import Field, boolean, integer, number, one_of, size, string, validate
from .timing import generation_seconds, step_logs

SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
# fal allows sides up to 14142; pictures of that size would only cost the developer's machine time.
LARGEST_SIDE = 2048
_LARGEST_SOURCE_BYTES = 50 * 1024 * 1024
_KEPT_SOURCE_BYTES = 256 * 1024
_KEPT_SOURCE_SIDE = 1024
_MESSAGES = {
    "file_download_error": "Failed to download the file. Please check if the URL is accessible and try again.",
    "file_too_large": "File size exceeds the maximum allowed size.",
    "image_load_error": "Failed to load the image. Please ensure the image file is not corrupted or unsupported.",
}
_PARTIAL_EVENTS = 5
_PARTIAL_SIDE = 256


@dataclass(frozen=True)
class ImageModel:
    """One image model; `unit` is what fal bills it in."""

    steps: int
    guidance: float
    unit: Literal["megapixels", "images"]
    from_image: bool = False

    def __call__(self, call: Call) -> Plan:
        """Plan one generation."""
        given = validate(self._fields(), call.input)
        source = None
        if self.from_image:
            found = read_source(call, given["image_url"])
            if isinstance(found, Failure):
                return Plan(run_seconds=0.2, output=_nothing, units="0", failure=found, events=())
            source, given["image_size"] = found
        seed = call.rng.getrandbits(32) if given["seed"] is None else int(given["seed"])
        width, height = given["image_size"]
        pictures = [
            Picture(call.endpoint, given["prompt"], seed, width, height, index, given["output_format"], source)
            for index in range(given["num_images"])
        ]
        seconds = generation_seconds(call.rng)
        steps: int = given["num_inference_steps"]
        shared = {"seed": seed, "has_nsfw_concepts": [False] * len(pictures), "prompt": given["prompt"]}
        timings = {"inference": round(seconds * 0.9, 6)}

        async def output() -> Json:
            images = [await _image(call, picture, inline=given["sync_mode"]) for picture in pictures]
            return {"images": images, "timings": timings, **shared}

        def preview(share: float) -> Output:
            async def partial_output() -> Json:
                return {"images": [await _preview(call, picture, share) for picture in pictures], **shared}

            return partial_output

        shares = [step / _PARTIAL_EVENTS for step in range(1, _PARTIAL_EVENTS)]
        events = [Event(seconds * share, preview(share)) for share in shares]
        return Plan(
            run_seconds=seconds,
            output=output,
            units=self._units(width, height, len(pictures)),
            held_bytes=len(source) if isinstance(source, bytes) else 0,
            logs=step_logs(steps, seconds),
            events=(*events, Event(seconds, output)),
        )

    def _fields(self) -> tuple[Field, ...]:
        common = (
            Field("prompt", string(), required=True),
            Field("num_inference_steps", integer(1, 50), default=self.steps),
            Field("guidance_scale", number(1, 20), default=self.guidance),
            Field("num_images", integer(1, 4), default=1),
            Field("seed", integer()),
            Field("enable_safety_checker", boolean, default=True),
            Field("output_format", one_of("jpeg", "png"), default="jpeg"),
            Field("sync_mode", boolean, default=False),
        )
        if self.from_image:
            image = (Field("image_url", string(), required=True), Field("strength", number(0.01, 1), default=0.95))
            return (*image, *common)
        default = SIZES["square_hd" if self.unit == "images" else "landscape_4_3"]
        return (*common, Field("image_size", size(SIZES, LARGEST_SIDE), default=default))

    def _units(self, width: int, height: int, images: int) -> str:
        # flux is billed per megapixel, each picture rounded up; SDXL is counted in pictures here.
        return str(images * (math.ceil(width * height / 1_000_000) if self.unit == "megapixels" else 1))


FLUX_DEV = ImageModel(steps=28, guidance=3.5, unit="megapixels")
FLUX_SCHNELL = ImageModel(steps=4, guidance=3.5, unit="megapixels")
FLUX_IMAGE_TO_IMAGE = ImageModel(steps=40, guidance=3.5, unit="megapixels", from_image=True)
FAST_SDXL = ImageModel(steps=25, guidance=7.5, unit="images")


async def _nothing() -> Json:
    return None


async def _image(call: Call, picture: Picture, *, inline: bool) -> Json:
    kind = f"image/{picture.format}"
    if inline:
        url = data_uri(kind, await call.files.gallery.show(picture))
    else:
        name = f"{call.rng.getrandbits(96):024x}.{'jpg' if picture.format == 'jpeg' else 'png'}"
        url = call.files.publish(name, kind, picture)
    return {"url": url, "width": picture.width, "height": picture.height, "content_type": kind}


async def _preview(call: Call, picture: Picture, share: float) -> Json:
    """Return a small data URI of the picture that gets less blurred as the share grows."""
    scale = min(1.0, _PARTIAL_SIDE / max(picture.width, picture.height))
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    finished = Image.open(BytesIO(await call.files.gallery.show(picture))).convert("RGB").resize((width, height))
    blurred = finished.filter(ImageFilter.GaussianBlur((1 - share) * 0.06 * _PARTIAL_SIDE))
    url = data_uri("image/jpeg", encode(blurred, "jpeg"))
    return {"url": url, "width": width, "height": height, "content_type": "image/jpeg"}


def data_uri(kind: str, content: bytes) -> str:
    """Return content as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def read_source(call: Call, url: str) -> tuple[Picture | bytes | None, tuple[int, int]] | Failure:
    """Find the picture behind an input URL without ever asking the network: ours, a data URI, or else none."""
    if url.startswith("data:"):
        try:
            return _measured(base64.b64decode(url.partition(",")[2], validate=True), url)
        except binascii.Error:
            return _refused("image_load_error", url)
    if call.files.is_ours(url):
        file = call.files.by_url(url)
        if file is None or file.content is None:
            return _refused("file_download_error", url)
        if isinstance(file.content, Picture):
            return file.content, (file.content.width, file.content.height)
        if file.content.size > _LARGEST_SOURCE_BYTES:
            return _refused("file_too_large", url)
        return _measured(file.content.bytes(), url)
    if url.startswith(("https://", "http://")):
        return None, SIZES["landscape_4_3"]
    return _refused("file_download_error", url)


def _measured(content: bytes, url: str) -> tuple[bytes, tuple[int, int]] | Failure:
    try:
        with Image.open(BytesIO(content)) as image:
            scale = min(1.0, LARGEST_SIDE / max(image.size))
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            if len(content) > _KEPT_SOURCE_BYTES:
                # Jobs and files hold on to their source: keep no more of a photograph than shows.
                image.draft("RGB", (_KEPT_SOURCE_SIDE, _KEPT_SOURCE_SIDE))
                small = image.convert("RGB")
                small.thumbnail((_KEPT_SOURCE_SIDE, _KEPT_SOURCE_SIDE))
                content = encode(small, "jpeg")
            return content, size
    except (OSError, ValueError, Image.DecompressionBombError):
        return _refused("image_load_error", url)


def _refused(kind: str, url: str) -> Failure:
    item: dict[str, Json] = {
        "loc": ["body", "image_url"],
        "msg": _MESSAGES[kind],
        "type": kind,
        "url": f"https://docs.fal.ai/errors#{kind}",
        "input": url[:200],
    }
    if kind == "file_too_large":
        item["ctx"] = {"max_size": _LARGEST_SOURCE_BYTES}
    return Failure(422, {"detail": [item]})
