"""fal-ai/whisper: a transcript that depends on the audio's URL, in fal's shape. Never listens to anything."""

from random import Random

from ..chance import chance
from ..exchange import Json
from .plan import Call, Plan, constant
from .schema import Field, boolean, integer, one_of, string, validate
from .timing import generation_seconds

_FIELDS = (
    Field("audio_url", string(), required=True),
    Field("task", one_of("transcribe", "translate"), default="transcribe"),
    Field("language", string(2, 3)),
    Field("diarize", boolean, default=False),
    Field("chunk_level", one_of("none", "segment", "word"), default="segment"),
    Field("version", one_of("3"), default="3"),
    Field("batch_size", integer(1, 64), default=64),
    Field("prompt", string(), default=""),
    Field("num_speakers", integer(1)),
)
_LINES = (
    "Good morning, and thank you for calling the emulator.",
    "Nothing you hear today was said by anyone.",
    "We set out before sunrise and followed the river for about two hours.",
    "There was mist over the fields, and somewhere a dog was barking.",
    "I would like two tickets to the end of the line, please.",
    "The forecast says rain in the evening, clearing by midnight.",
    "If you can read this, the transcript arrived.",
    "Let us write that down before we forget it.",
)


def whisper(call: Call) -> Plan:
    """Plan one transcription."""
    given = validate(_FIELDS, call.input)
    # The same audio always says the same.
    rng = chance(given["audio_url"])
    lines = rng.sample(_LINES, 4)
    chunks = _chunks(rng, lines, by_word=given["chunk_level"] == "word", diarize=given["diarize"])
    body: dict[str, Json] = {
        "text": " ".join(lines),
        "chunks": [] if given["chunk_level"] == "none" else chunks,
        "inferred_languages": [given["language"] or "en"],
        "diarization_segments": [
            {"timestamp": chunk["timestamp"], "speaker": chunk["speaker"]} for chunk in chunks if given["diarize"]
        ],
    }
    seconds = generation_seconds(call.rng)
    # Billed in compute seconds.
    return Plan(
        run_seconds=seconds,
        output=constant(body),
        units=f"{seconds:.8f}",
        logs=((0.0, "loading audio"), (seconds / 2, "transcribing"), (seconds, "done")),
    )


def _chunks(rng: Random, lines: list[str], *, by_word: bool, diarize: bool) -> list[dict[str, Json]]:
    chunks: list[dict[str, Json]] = []
    at = 0.0
    for turn, line in enumerate(lines):
        for text in line.split(" ") if by_word else [line]:
            end = round(at + 0.06 * len(text) + rng.uniform(0.1, 0.4), 2)
            speaker = f"SPEAKER_{turn % 2:02d}" if diarize else None
            chunks.append({"timestamp": [round(at, 2), end], "text": text, "speaker": speaker})
            at = end
    return chunks
