"""Answers that are read before their head goes down, because the head depends on how they end or on what they say."""

from __future__ import annotations

import msgspec

from fal_proxy.errors import UpstreamInvalid
from fal_proxy.exchange import Kind
from fal_proxy.headers import media_type
from fal_proxy.relay.events import is_event_stream
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.call import Call

RUN_WHOLE_BYTES = 1024 * 1024
ANSWER_WHOLE_BYTES = 1024 * 1024
REFUSAL_WHOLE_BYTES = 16 * 1024
_READS = frozenset([Kind.STATUS, Kind.RESULT, Kind.CANCEL])  # answers of a few bytes, which mostly come with their head


class Whole(msgspec.Struct, frozen=True, gc=False):
    """What was read before the head may go down; `ended` says whether it is the whole body."""

    body: bytes
    ended: bool


async def read_whole(call: Call, head: Head, kind: Kind, idle_seconds: float, *, rewritten: bool) -> Whole:
    """Read as much of the answer as its head depends on: on its length, too, where the body is to be rewritten."""
    if (kind.traits.answer_whole or rewritten) and head.lines(b"content-encoding"):
        raise UpstreamInvalid("upstream encoded an answer that must be read", written=True)
    if kind.traits.answer_whole:
        whole = await _read_up_to(call, ANSWER_WHOLE_BYTES, idle_seconds)
        if not whole.ended:
            raise UpstreamInvalid("upstream's answer is too large", written=True)
        return whole
    if head.status in (401, 403):  # what may say that our key is refused
        return await _read_up_to(call, REFUSAL_WHOLE_BYTES, idle_seconds)
    if rewritten and not is_event_stream(head):
        return await _read_up_to(call, ANSWER_WHOLE_BYTES, idle_seconds)
    types = head.lines(b"content-type")
    if kind is Kind.RUN and types and media_type(types[0]).lower() == b"application/json":
        lengths = head.lines(b"content-length")
        if not lengths or int(lengths[0]) <= RUN_WHOLE_BYTES:
            return await _read_up_to(call, RUN_WHOLE_BYTES, idle_seconds)
    if kind in _READS and not is_event_stream(head) and (body := call.read_at_once(RUN_WHOLE_BYTES)) is not None:
        return Whole(body, ended=True)
    return Whole(b"", ended=False)


async def _read_up_to(call: Call, limit_bytes: int, idle_seconds: float) -> Whole:
    if (body := call.read_at_once(limit_bytes)) is not None:
        return Whole(body, ended=True)
    parts: list[bytes] = []
    size = 0
    while size <= limit_bytes:
        data = await call.read(idle_seconds)
        if not data:
            return Whole(b"".join(parts), ended=True)
        parts.append(data)
        size += len(data)
    return Whole(b"".join(parts), ended=False)
