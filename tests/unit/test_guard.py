"""The key guard: whatever the form, the chunks and what stands around it, no 16 characters of a secret get past it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fal_proxy.environment import Secret
from fal_proxy.errors import UpstreamCut, UpstreamInvalid
from fal_proxy.relay import guard as guards
from fal_proxy.relay.guard import ENCODED_RUN_CHARS, RUN_CHARS, KeyGuard, watched
from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET

ODD = "x:Zy_/+~.\"\\Qq09<>?{}|^`jklmno!$&'()*,;=@[]"  # every kind of character that a header can hold
KEYS = [FAL_KEY, Secret("id:0123456789abcdef0123456789abcdef"), Secret(ODD), Secret("id:exactly-16-chars")]
SECRETS = [FAL_KEY_SECRET, "0123456789abcdef0123456789abcdef", ODD[2:], "exactly-16-chars"]

Encode = Callable[[bytes, random.Random], bytes]


def some(escape: Callable[[int], bytes], share: float) -> Encode:
    """Escape a share of the characters."""

    def encode(text: bytes, chance: random.Random) -> bytes:
        escaped = (escape(byte) if chance.random() < share else bytes([byte]) for byte in text)
        return b"".join(escaped)

    return encode


def in_base64(lead: int, encode: Callable[[bytes], bytes]) -> Encode:
    return lambda text, chance: encode(chance.randbytes(lead) + text + chance.randbytes(2))


FORMS: list[tuple[str, Encode]] = [
    ("raw", lambda text, _: text),
    ("percent, lower case", some(lambda byte: b"%%%02x" % byte, 1)),
    ("percent, upper case, half of it", some(lambda byte: b"%%%02X" % byte, 0.5)),
    ("percent, here and there", some(lambda byte: b"%%%02x" % byte, 0.1)),
    ("JSON, lower case", some(lambda byte: b"\\u%04x" % byte, 1)),
    ("JSON, upper case, half of it", some(lambda byte: b"\\u%04X" % byte, 0.5)),
    ("JSON, here and there", some(lambda byte: b"\\u%04x" % byte, 0.1)),
    ("hex", lambda text, _: text.hex().encode()),
    ("HEX", lambda text, _: text.hex().upper().encode()),
    ("hex, then percent", lambda text, chance: some(lambda byte: b"%%%02x" % byte, 0.5)(text.hex().encode(), chance)),
    *[(f"base64 behind {lead} bytes", in_base64(lead, base64.b64encode)) for lead in range(3)],
    *[(f"base64url behind {lead} bytes", in_base64(lead, base64.urlsafe_b64encode)) for lead in range(3)],
]
IDS = [name for name, _ in FORMS]


def made(*keys: Secret) -> KeyGuard:
    guard = KeyGuard()
    guard.watch_for(keys or KEYS)
    return guard


def fed(guard: KeyGuard, chunks: Iterable[bytes], *, patient: bool = True) -> tuple[bytes, bool]:
    """Return what went down and whether it was cut; impatient: what is held back never waits for the next chunk."""
    watch, down = guard.watch(), b""
    try:
        for chunk in chunks:
            down += watch.feed(chunk)
            if not patient:
                down += watch.release()
    except UpstreamInvalid:
        assert not watch.held
        return down, True
    return down + watch.release(), False


def chunked(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [chunk for chunk in [*chunks, data] if chunk]


@pytest.mark.parametrize(("name", "encode"), FORMS, ids=IDS)
@pytest.mark.parametrize("secret", SECRETS)
def test_key_is_cut_wherever_the_chunks_of_its_text_end(name: str, encode: Encode, secret: str) -> None:
    guard, chance = made(), random.Random(7)
    text = encode(secret.encode(), chance)
    around = b'{"detail": "Key ', b'", "more": true}'
    body = around[0] + text + around[1]
    for cut in range(1, len(body)):
        down, cut_off = fed(guard, [body[:cut], body[cut:]])
        assert cut_off, (cut, body)
        assert len(down) <= len(around[0]) + 4 * 6, "what precedes it, and less than four characters of it"
    assert fed(guard, [bytes([byte]) for byte in body])[1], "byte by byte"


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_run_of_16_characters_passes_in_any_form_or_chunking(data: st.DataObject) -> None:
    guard, chance = made(), random.Random(data.draw(st.integers(0, 2**32)))
    secret = data.draw(st.sampled_from(SECRETS)).encode()
    name = data.draw(st.sampled_from(IDS))
    run = min(ENCODED_RUN_CHARS if "hex" in name.lower() or "base64" in name else RUN_CHARS, len(secret))
    begin = data.draw(st.integers(0, len(secret) - run))
    end = data.draw(st.integers(begin + run, len(secret)))
    encode = dict(FORMS)[name]
    text = data.draw(st.text(max_size=300)).encode("utf-8", "replace").replace(b"\0", b"?")
    body = text + encode(secret[begin:end], chance) + data.draw(st.binary(max_size=300)).replace(b"\0", b"?")
    sizes = data.draw(st.lists(st.integers(1, 60), max_size=60))
    down, cut = fed(guard, chunked(body, sizes), patient=data.draw(st.booleans()))
    assert cut
    assert body.startswith(down), "what went down before is what upstream sent"
    assert not guard.holds_key(down)
    for at in range(len(secret) - RUN_CHARS + 1):
        assert secret[at : at + RUN_CHARS] not in down


@given(st.lists(st.binary(max_size=400), max_size=12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_innocent_bodies_pass_byte_for_byte(chunks: list[bytes], patient: bool) -> None:
    body = b"".join(chunks)
    runs = [secret[at : at + RUN_CHARS].encode() for secret in SECRETS for at in range(len(secret) - RUN_CHARS + 1)]
    assume(not any(run in body for run in runs))  # hypothesis draws the constants of this file too
    assert fed(made(), chunks, patient=patient) == (body, False)


@given(st.integers(0, len(FAL_KEY_SECRET)), st.integers(1, RUN_CHARS - 1), st.lists(st.integers(1, 40), max_size=20))
@settings(max_examples=300, deadline=None)
def test_what_begins_like_a_key_and_goes_on_otherwise_passes_whole(begin: int, size: int, sizes: list[int]) -> None:
    body = b"data: " + FAL_KEY_SECRET.encode()[begin : begin + size] + b"!\n\n" * 3
    assert fed(made(FAL_KEY), chunked(body, sizes)) == (body, False)


INNOCENT = [
    (FAL_KEY_ID.encode(), "the public half is no secret"),
    (FAL_KEY_SECRET[: RUN_CHARS - 1].encode() * 400, "a beginning, over and over"),
    (json.dumps({"url": "https://x/?a=%20%2F%3D%C3%A9", "é": "\u00e9\n\""}).encode() * 9, "honest escapes"),
    (b"%", "a sign that begins an escape"),
    (b"\\u00", "and another"),
    (b"%zz\\u00zz%6", "no escapes at all"),
    (random.Random(1).randbytes(1 << 20), "a picture"),
    (base64.b64encode(random.Random(2).randbytes(1 << 20)), "a picture in a data URL"),
    (random.Random(3).randbytes(1 << 18).hex().encode(), "hashes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), INNOCENT, ids=[reason for _, reason in INNOCENT])
def test_ordinary_answers_pass(body: bytes, reason: str) -> None:
    for size in (1 << 16, 1000):
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        assert fed(made(), chunks) == (body, False), reason


@pytest.mark.parametrize(("name", "encode"), FORMS, ids=IDS)
def test_key_is_found_deep_inside_a_large_chunk_and_in_a_head(name: str, encode: Encode) -> None:
    guard, text = made(FAL_KEY), encode(FAL_KEY_SECRET.encode(), random.Random(3))
    padding = b"abcdefg 0123 " * 5000
    assert fed(guard, [padding + text + padding])[1]
    assert fed(guard, [padding + text[:20], text[20:] + padding])[1]
    with pytest.raises(UpstreamInvalid) as caught:
        guard.judge_fields([(b"content-type", b"text/plain"), (b"x-fal-echo", b"Key " + text)])
    assert FAL_KEY_SECRET not in str(caught.value)
    for body in (b"", b"{}", b"\0", b"{}" * 5000, b"\0" * 5000):  # a NUL ends the search for escapes in the body alone
        with pytest.raises(UpstreamInvalid):
            guard.judge_fields([(b"x-fal-echo", text)], body)
    with pytest.raises(UpstreamInvalid):
        guard.judge_fields([(b"content-type", b"text/plain")], padding[:100] + text)
    with pytest.raises(UpstreamInvalid):
        guard.judge(text)


def test_raw_key_is_found_among_compressed_bytes() -> None:
    noise = random.Random(5).randbytes(40_000)
    assert fed(made(FAL_KEY), [noise + FAL_KEY_SECRET.encode() + noise])[1]


def test_libc_and_python_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [b"x" * 9000 + encode(FAL_KEY_SECRET.encode(), random.Random(1)) for _, encode in FORMS] + [b"x" * 9000]
    by_libc = [made(FAL_KEY).holds_key(body) for body in bodies]
    monkeypatch.setattr(guards, "_libc_holds", lambda data, piece: piece in data)
    assert by_libc == [made(FAL_KEY).holds_key(body) for body in bodies] == [True] * len(FORMS) + [False]


def test_found_key_is_counted_and_logged_without_itself(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[bool] = []
    guard = KeyGuard(lambda: counted.append(True))
    guard.watch_for([FAL_KEY])
    assert fed(guard, [b"x", FAL_KEY.reveal().encode()])[1]
    assert (len(counted), [record.levelname for record in caplog.records]) == (1, ["WARNING"])
    assert FAL_KEY_SECRET not in caplog.text


def test_keys_can_change_under_way_and_short_ones_cut_nothing() -> None:
    guard = made(KEYS[1])
    watch = guard.watch()
    assert watch.feed(FAL_KEY_SECRET.encode() + b" ")
    assert watch.feed(b"." * 400)
    guard.watch_for([FAL_KEY, Secret("a:b")])
    assert watch.feed(b"a:b ") == b"a:b "
    with pytest.raises(UpstreamInvalid):
        watch.feed(FAL_KEY_SECRET.encode())
    guard.watch_for([])
    assert fed(guard, [FAL_KEY_SECRET.encode()])[1] is False


class Feed:
    """What upstream sends, when the test says so."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    async def read(self) -> bytes:
        item = await self.queue.get()
        if isinstance(item, Exception):
            raise item
        return item


async def test_tail_that_might_be_a_key_waits_for_the_next_piece_and_no_longer_than_the_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed, tail = Feed(), FAL_KEY_SECRET[:6].encode()
    monkeypatch.setattr(guards, "HOLD_SECONDS", 3600.0)
    pieces = watched(b"data: " + tail, feed.read, made(FAL_KEY).watch())
    assert await anext(pieces) == b"data: "
    feed.queue.put_nowait(b"!\n\n")
    assert await anext(pieces) == tail + b"!\n\n", "together with what follows it, long before the hold ends"
    monkeypatch.setattr(guards, "HOLD_SECONDS", 0.01)
    feed.queue.put_nowait(b"data: " + tail)
    assert [await anext(pieces), await anext(pieces)] == [b"data: ", tail], "nothing followed"
    feed.queue.put_nowait(FAL_KEY_SECRET[6:15].encode())
    assert await anext(pieces) == FAL_KEY_SECRET[6:15].encode(), "released too, and remembered"
    feed.queue.put_nowait(FAL_KEY_SECRET[15:].encode())
    with pytest.raises(UpstreamInvalid):
        await anext(pieces)


async def test_a_drip_of_characters_does_not_lengthen_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "HOLD_SECONDS", 0.3)
    clock = asyncio.get_running_loop().time
    began, asked = clock(), 0

    async def read() -> bytes:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)  # always before the hold of the last piece ends
        return FAL_KEY_SECRET[3 + asked].encode()

    pieces = watched(FAL_KEY_SECRET[:4].encode(), read, made(FAL_KEY).watch())
    first = await anext(pieces)
    assert FAL_KEY_SECRET.encode().startswith(first)
    assert asked < 11, "released before the key is cut"
    assert clock() - began >= 0.25
    await pieces.aclose()


@pytest.mark.parametrize("ending", [b"", UpstreamCut("lost")])
async def test_held_tail_goes_down_before_the_end_whatever_the_end_is(ending: bytes | Exception) -> None:
    feed, tail = Feed(), FAL_KEY_SECRET[-6:].encode()
    feed.queue.put_nowait(ending)
    pieces = watched(b"x" + tail, feed.read, made(FAL_KEY).watch())
    assert [await anext(pieces), await anext(pieces)] == [b"x", tail]
    with pytest.raises(StopAsyncIteration if ending == b"" else UpstreamCut):
        await anext(pieces)
