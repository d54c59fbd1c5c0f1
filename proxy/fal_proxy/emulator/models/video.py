"""fal-ai/kling-video/**: a short real video, the same for everybody, with fal's input and output around it."""

from functools import cache
from pathlib import Path

from ..blobs import Blob
from ..exchange import Json
from .plan import Call, Plan
from .schema import Field, integer, number, one_of, string, validate
from .timing import generation_seconds, step_logs

CLIP = Path(__file__).with_name("clip.mp4")
_FIELDS = (
    Field("prompt", string(1, 2500), required=True),
    Field("duration", one_of("5", "10"), default="5"),
    Field("aspect_ratio", one_of("16:9", "9:16", "1:1"), default="16:9"),
    Field("negative_prompt", string(0, 2500), default="blur, distort, and low quality"),
    Field("cfg_scale", number(0, 1), default=0.5),
    Field("seed", integer()),
)


def kling(call: Call) -> Plan:
    """Plan one video; the image-to-video endpoints also need `image_url`."""
    image = (Field("image_url", string(), required=True),) if "image-to-video" in call.endpoint else ()
    given = validate((*_FIELDS, *image), call.input)
    seed = call.rng.getrandbits(32) if given["seed"] is None else given["seed"]

    async def output() -> Json:
        clip = _clip()
        url = call.files.publish("output.mp4", "video/mp4", clip)
        video = {"url": url, "content_type": "video/mp4", "file_name": "output.mp4", "file_size": clip.size}
        return {"video": video, "seed": seed}

    seconds = generation_seconds(call.rng, 4.0, 7.0)
    # Billed per second of video.
    return Plan(run_seconds=seconds, output=output, units=given["duration"], logs=step_logs(20, seconds))


@cache
def _clip() -> Blob:
    return Blob.of(CLIP.read_bytes())
