"""fal-ai/lcm-sd15-i2i: a picture from a drawing and a prompt, fast enough to be painted with over a realtime socket.

Inputs and outputs have fal's shapes (fal.ai/models/fal-ai/lcm-sd15-i2i/api); `request_id` comes back as it was given.
"""

import asyncio

from ..blobs import Blob
from ..exchange import Json
from ..pictures import Picture, paint
from .images import data_uri, read_source
from .plan import Call, Failure, Plan, constant
from .schema import Field, boolean, integer, number, string, validate

LARGEST_SIDE = 768
_SECONDS = 0.06
_FIELDS = (
    Field("prompt", string(), required=True),
    Field("image_url", string(), required=True),
    Field("strength", number(0, 1), default=0.8),
    Field("seed", integer()),
    Field("negative_prompt", string(), default=""),
    Field("num_inference_steps", integer(1, 12), default=4),
    Field("guidance_scale", number(0, 20), default=1.0),
    Field("num_images", integer(1, 8), default=1),
    Field("enable_safety_checks", boolean, default=True),
    Field("sync_mode", boolean, default=False),
    Field("request_id", string(), default=""),
)


def lcm(call: Call) -> Plan:
    """Plan one picture; nothing is painted before somebody asks for the output."""
    given = validate(_FIELDS, call.input)
    found = read_source(call, given["image_url"])
    if isinstance(found, Failure):
        return Plan(run_seconds=_SECONDS, output=constant(None), units="0", failure=found)
    source, (width, height) = found
    scale = min(1.0, LARGEST_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    seed = call.rng.getrandbits(32) if given["seed"] is None else int(given["seed"])
    count: int = given["num_images"]

    async def output() -> Json:
        content = await call.files.gallery.show(source) if isinstance(source, Picture) else source
        images = []
        for index in range(count):
            made = await asyncio.to_thread(
                paint, given["prompt"], seed + index, size, content, float(given["strength"])
            )
            name = f"{call.rng.getrandbits(96):024x}.jpg"
            url = (
                data_uri("image/jpeg", made)
                if given["sync_mode"]
                else call.files.publish(name, "image/jpeg", Blob.of(made))
            )
            images.append({"url": url, "width": size[0], "height": size[1], "content_type": "image/jpeg"})
        return {
            "images": images,
            "timings": {"inference": _SECONDS},
            "seed": seed,
            "num_inference_steps": given["num_inference_steps"],
            "request_id": given["request_id"],
            "nsfw_content_detected": [False] * count,
        }

    held = len(source) if isinstance(source, bytes) else 0
    return Plan(run_seconds=_SECONDS, output=output, units=str(count), held_bytes=held)
