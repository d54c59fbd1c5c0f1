"""fal-ai/any-llm: prose about the prompt, streamed as fal streams it (cumulative output, named events, CRLF)."""

from ..exchange import Json
from .plan import Call, Event, Plan, constant
from .schema import Field, boolean, integer, number, string, validate

_FIELDS = (
    Field("prompt", string(), required=True),
    Field("system_prompt", string()),
    Field("model", string(), default="google/gemini-2.5-flash-lite"),
    Field("reasoning", boolean, default=False),
    Field("temperature", number(0, 2)),
    Field("max_tokens", integer(1)),
)
_WORD_SECONDS = 0.045
_QUOTED_CHARACTERS = 160
_OPENINGS = (
    "Here is what I can say about “{prompt}” without a model behind me.",
    "You asked: “{prompt}”. Let me think aloud — offline, and free of charge.",
    "“{prompt}” is a fine thing to ask of an emulator.",
)
_SENTENCES = (
    "Příliš žluťoučký kůň úpěl ďábelské ódy, and the bytes arrived in order. 🐎",
    "日本語の文も、途中で切れずに届きます。",
    "Light falls across the valley the way text falls across a screen: a little at a time.",
    "Every character you see may take one, two, three or four bytes: é, Ж, 語, 🌄.",
    "A good stream has no hurry; it has a beginning, a rhythm and an end.",
    "Whoever reads this while it grows will notice that nothing is repeated and nothing is lost.",
    "Das Übermäßige ist selten nötig — drei Sätze genügen meistens.",
    "The real answer costs money; this one costs a few milliseconds. ☕",
    "Στο τέλος μένει μόνο το κείμενο, ακέραιο.",
)


def any_llm(call: Call) -> Plan:
    """Plan one answer."""
    given = validate(_FIELDS, call.input)
    pieces = _prose(call, given["prompt"]).split(" ")
    if given["max_tokens"]:
        pieces = pieces[: given["max_tokens"]]
    reasoning = "The user wants an answer; no model is here; answer kindly." if given["reasoning"] else None

    def output(words: int, *, partial: bool) -> Json:
        return {"output": " ".join(pieces[:words]), "reasoning": reasoning, "partial": partial, "error": None}

    seconds = _WORD_SECONDS * len(pieces)
    final = constant(output(len(pieces), partial=False))
    stream = [Event(_WORD_SECONDS * n, constant(output(n, partial=True))) for n in range(1, len(pieces) + 1)]
    return Plan(
        run_seconds=seconds,
        output=final,
        logs=((0.0, f"routing to {given['model']}"), (seconds, f"{len(pieces)} tokens")),
        events=(*stream, Event(seconds, final)),
        named_events=True,
    )


def _prose(call: Call, prompt: str) -> str:
    quoted = " ".join(prompt[:_QUOTED_CHARACTERS].split())
    # The first sentence after the opening is always the one with multi-byte text: clients must survive it.
    rest = call.rng.sample(_SENTENCES[1:], 4)
    return " ".join([call.rng.choice(_OPENINGS).replace("{prompt}", quoted), _SENTENCES[0], *rest])
