"""What the models accept, how they refuse, and what they plan."""

import base64
import json
from io import BytesIO
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from PIL import Image

from fal_proxy.emulator.blobs import Blob
from fal_proxy.emulator.files import Files
from fal_proxy.emulator.models import Call, InvalidInputError, Plan, find_model
from fal_proxy.emulator.models.video import CLIP
from fal_proxy.emulator.pictures import Gallery

PUBLIC = "http://emulator.test"


def call(endpoint: str, given: Any, files: Files | None = None) -> Call:
    rng = Random(7)
    return Call(endpoint, "POST", {}, {}, given, rng, files or Files(PUBLIC, rng, lambda: 0.0, Gallery()))


def plan(endpoint: str, given: Any, files: Files | None = None) -> Plan:
    return find_model(endpoint)(call(endpoint, given, files))


def refused(endpoint: str, given: Any) -> list[dict[str, Any]]:
    with pytest.raises(InvalidInputError) as caught:
        plan(endpoint, given)
    return caught.value.problems


def test_a_missing_prompt_is_refused_in_the_words_of_pydantic() -> None:
    assert refused("fal-ai/flux/dev", {"seed": 1}) == [
        {"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": {"seed": 1}}
    ]
    assert refused("fal-ai/flux/dev", None)[0]["loc"] == ["body"]
    assert refused("fal-ai/flux/dev", [1])[0]["type"] == "model_attributes_type"


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("prompt", 7, "string_type"),
        ("prompt", None, "string_type"),
        ("num_inference_steps", 0, "greater_than_equal"),
        ("num_inference_steps", 51, "less_than_equal"),
        ("num_inference_steps", 1.5, "int_from_float"),
        ("num_inference_steps", "many", "int_parsing"),
        ("num_inference_steps", True, "int_type"),
        ("guidance_scale", 0.5, "greater_than_equal"),
        ("guidance_scale", 21, "less_than_equal"),
        ("guidance_scale", "x", "float_parsing"),
        ("guidance_scale", [], "float_type"),
        ("num_images", 5, "less_than_equal"),
        ("seed", "x", "int_parsing"),
        ("enable_safety_checker", "maybe", "bool_parsing"),
        ("enable_safety_checker", {}, "bool_type"),
        ("output_format", "webp", "literal_error"),
        ("sync_mode", None, "bool_type"),
        ("image_size", "huge", "model_attributes_type"),
        ("image_size", {"width": 0, "height": 5}, "greater_than_equal"),
        ("image_size", {"width": 5, "height": 4096}, "less_than_equal"),
    ],
)
def test_each_field_of_a_text_to_image_input_is_checked(field: str, value: Any, kind: str) -> None:
    problems = refused("fal-ai/flux/schnell", {"prompt": "x", field: value})
    assert problems[0]["type"] == kind
    assert problems[0]["loc"][:2] == ["body", field]
    assert {"loc", "msg", "type", "input"} <= problems[0].keys()
    json.dumps(problems)


def test_all_problems_are_reported_at_once() -> None:
    assert [item["loc"][1] for item in refused("fal-ai/fast-sdxl", {"num_images": 9, "output_format": 1})] == [
        "prompt",
        "num_images",
        "output_format",
    ]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
        ({"width": 300, "height": "200"}, (300, 200)),
        ({}, (512, 512)),
    ],
)
async def test_every_image_size_comes_out_as_asked(size: Any, expected: tuple[int, int]) -> None:
    body = await plan("fal-ai/flux/dev", {"prompt": "x", "image_size": size}).output()
    assert (body["images"][0]["width"], body["images"][0]["height"]) == expected


async def test_a_text_to_image_answer_has_fals_shape() -> None:
    rng = Random(1)
    files = Files(PUBLIC, rng, lambda: 0.0, Gallery())
    made = plan("fal-ai/flux/dev", {"prompt": "a cat", "num_images": 3, "seed": 42, "output_format": "png"}, files)
    body = await made.output()
    assert body.keys() == {"images", "timings", "seed", "has_nsfw_concepts", "prompt"}
    assert (body["seed"], body["prompt"], body["has_nsfw_concepts"]) == (42, "a cat", [False] * 3)
    assert body["timings"]["inference"] > 0
    urls = [image["url"] for image in body["images"]]
    assert len(set(urls)) == 3
    assert all(url.startswith(f"{PUBLIC}/v3b.fal.media/files/b/") and url.endswith(".png") for url in urls)
    file = files.by_url(urls[0])
    assert file is not None
    content = await files.load(file)
    assert content is not None
    assert Image.open(BytesIO(content.bytes())).size == (1024, 768)


async def test_sync_mode_gives_the_picture_as_a_data_uri() -> None:
    body = await plan("fal-ai/flux/dev", {"prompt": "x", "sync_mode": True, "image_size": "square"}).output()
    head, _, content = body["images"][0]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(content))).format == "JPEG"


def test_flux_counts_megapixels_rounded_up_and_sdxl_counts_pictures() -> None:
    assert plan("fal-ai/flux/dev", {"prompt": "x", "num_images": 2, "image_size": "square_hd"}).units == "4"
    assert plan("fal-ai/flux/schnell", {"prompt": "x", "image_size": "square"}).units == "1"
    assert plan("fal-ai/fast-sdxl", {"prompt": "x", "num_images": 3}).units == "3"


async def test_partial_pictures_come_first_and_the_stream_ends_with_the_result() -> None:
    events = plan("fal-ai/flux/dev", {"prompt": "x", "image_size": "square"}).events
    assert events is not None
    bodies = [await event.output() for event in events]
    assert all(body["images"][0]["url"].startswith("data:image/jpeg;base64,") for body in bodies[:-1])
    assert bodies[-1]["images"][0]["url"].startswith(PUBLIC)
    assert [event.at_seconds for event in events] == sorted(event.at_seconds for event in events)


async def test_image_to_image_keeps_the_size_of_a_source_it_can_see_and_never_asks_the_network() -> None:
    files = Files(PUBLIC, Random(1), lambda: 0.0, Gallery())
    buffer = BytesIO()
    Image.new("RGB", (120, 90), "navy").save(buffer, "PNG")
    ours = files.publish("in.png", "image/png", Blob.of(buffer.getvalue()))
    inline = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    endpoint = "fal-ai/flux/dev/image-to-image"
    for url, size in [(ours, (120, 90)), (inline, (120, 90)), ("https://example.invalid/a.png", (1024, 768))]:
        body = await plan(endpoint, {"prompt": "x", "image_url": url}, files).output()
        assert (body["images"][0]["width"], body["images"][0]["height"]) == size
        again = await plan(endpoint, {"prompt": "y", "image_url": body["images"][0]["url"]}, files).output()
        made = files.by_url(again["images"][0]["url"])
        assert made is not None
        assert await files.load(made) is not None


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("ftp://example.test/a.png", "file_download_error"),
        (f"{PUBLIC}/v3b.fal.media/files/b/00000000/none.png", "file_download_error"),
        ("data:image/png;base64,AAAA", "image_load_error"),
        ("data:image/png;base64,!", "image_load_error"),
    ],
)
def test_a_source_that_cannot_be_used_fails_as_fal_words_it(url: str, kind: str) -> None:
    failure = plan("fal-ai/flux/dev/image-to-image", {"prompt": "x", "image_url": url}).failure
    assert failure is not None
    assert failure.status == 422
    assert failure.body["detail"][0]["type"] == kind


async def test_a_video_is_a_playable_file_with_its_true_size() -> None:
    made = plan("fal-ai/kling-video/v2/master/text-to-video", {"prompt": "x", "duration": "10", "seed": 5})
    body = await made.output()
    assert made.units == "10"
    assert body["seed"] == 5
    assert body["video"] == {
        "url": body["video"]["url"],
        "content_type": "video/mp4",
        "file_name": "output.mp4",
        "file_size": CLIP.stat().st_size,
    }
    assert CLIP.read_bytes()[4:8] == b"ftyp"
    assert CLIP.stat().st_size < 20_000
    assert refused("fal-ai/kling-video/v1/pro/image-to-video", {"prompt": "x"})[0]["loc"] == ["body", "image_url"]


async def test_the_same_audio_gives_the_same_transcript_in_chunks_that_follow_each_other() -> None:
    first = await plan("fal-ai/whisper", {"audio_url": "https://x.test/a.mp3"}).output()
    again = await plan("fal-ai/whisper", {"audio_url": "https://x.test/a.mp3"}).output()
    other = await plan("fal-ai/whisper", {"audio_url": "https://x.test/b.mp3"}).output()
    assert first == again != other
    assert " ".join(chunk["text"] for chunk in first["chunks"]) == first["text"]
    times = [moment for chunk in first["chunks"] for moment in chunk["timestamp"]]
    assert times == sorted(times)


async def test_streamed_text_grows_word_by_word_has_multi_byte_characters_and_ends_not_partial() -> None:
    made = plan("fal-ai/any-llm", {"prompt": "why"})
    assert made.events is not None
    bodies = [await event.output() for event in made.events]
    texts = [body["output"] for body in bodies]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert "žluťoučký kůň" in texts[-1]
    assert [body["partial"] for body in bodies] == [True] * (len(bodies) - 1) + [False]
    assert await made.output() == bodies[-1]


def test_slow_and_fail_do_exactly_what_they_are_told() -> None:
    assert plan("emulator/slow", {"seconds": 12.5, "queue_seconds": 3}).run_seconds == 12.5
    assert plan("emulator/slow", {"seconds": 12.5, "queue_seconds": 3}).queue_seconds == 3
    failure = plan("emulator/fail", {"status": 418, "body": {"x": [1]}}).failure
    assert failure is not None
    assert (failure.status, failure.body) == (418, {"x": [1]})
    assert refused("emulator/fail", {"status": 200})[0]["type"] == "greater_than_equal"


async def test_an_unknown_endpoint_echoes_any_input() -> None:
    for given in ({"a": 1}, [1, "ž"], None, "text"):
        assert (await plan("someone/anything/at/all", given).output())["input"] == given


def test_a_large_photograph_is_kept_small_but_its_result_has_its_size() -> None:
    buffer = BytesIO()
    Image.frombytes("RGB", (1500, 1000), Random(1).randbytes(4_500_000)).save(buffer, "PNG")
    inline = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    made = plan("fal-ai/flux/dev/image-to-image", {"prompt": "x", "image_url": inline})
    assert 0 < made.held_bytes < len(buffer.getvalue()) / 2
    assert made.units == "2"
