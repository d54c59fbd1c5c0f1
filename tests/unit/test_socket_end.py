"""One end of a WebSocket on a transport that is a list: what it tells, when, and what it says by itself."""

from __future__ import annotations

import asyncio

import pytest

from fal_proxy.sockets import end
from fal_proxy.sockets.frames import BINARY, CLOSE, CONT, NO_FRAME, PING, PONG, TEXT, Closing, FrameReader, Message
from support.websocket import closing, frame

TURNS = 100_000


class Wire(end.End):
    """An end whose transport is a list."""

    def __init__(self) -> None:
        super().__init__(FrameReader(masked=True, max_bytes=1000), masks=False)
        self.said: list[bytes] = []
        self._write = self.said.append
        self.paces: list[str] = []

    def pace(self, *, paused: bool) -> None:
        """Play the transport."""
        self._set_pace(paused)

    def lose(self) -> None:
        """Play a connection that has ended."""
        self._no_more = True
        self._read()

    def _pause(self) -> None:
        self.paces.append("pause")

    def _resume(self) -> None:
        self.paces.append("resume")


class Heard:
    """A listener; `limit` is after how many messages it holds the end back."""

    def __init__(self, wire: Wire, limit: int = TURNS) -> None:
        self._wire = wire
        self._limit = limit
        self.data: list[bytes] = []
        self.ends: list[Closing] = []
        self.writable = 0

    def on_message(self, message: Message) -> None:
        assert not self.ends
        self.data.append(message.data)
        if len(self.data) % self._limit == 0:
            self._wire.hold()

    def on_closing(self, closing: Closing) -> None:
        self.ends.append(closing)

    def on_writable(self) -> None:
        self.writable += 1


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a turn last: on a busy machine 2 ms are over soon."""
    monkeypatch.setattr(end, "TURN_SECONDS", 60.0)


NUMBERS = [b"%d" % n for n in range(300)]
SENT = b"".join(frame(TEXT, data) for data in NUMBERS)


async def test_nothing_is_told_before_somebody_listens_and_reading_stops_meanwhile() -> None:
    wire = Wire()
    wire.on_bytes(frame(PING, b"x") + SENT)
    assert (wire.said, wire.paces) == ([], ["pause"])
    heard = Heard(wire)
    wire.listen(heard)
    assert heard.data == NUMBERS
    assert (wire.said, wire.paces) == ([frame(PONG, b"x", masked=False)], ["pause", "resume"])


async def test_a_turn_is_bounded_and_the_rest_comes_in_order_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end, "TURN_SECONDS", 0.0)
    wire = Wire()
    heard = Heard(wire)
    wire.listen(heard)
    wire.on_bytes(SENT)
    assert 0 < len(heard.data) < 5, "a turn without time is a turn of a few"
    assert wire.paces == ["pause"]
    seen = set()
    for _ in range(TURNS):
        if len(heard.data) == len(NUMBERS):
            break
        seen.add(len(heard.data))
        await asyncio.sleep(0)
    assert heard.data == NUMBERS
    assert len(seen) > 50, "others had their turns between"
    assert wire.paces == ["pause", "resume"]


async def test_pieces_of_a_message_count_as_much_as_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end, "TURN_SECONDS", 0.0)
    wire = Wire()
    heard = Heard(wire)
    wire.listen(heard)
    wire.on_bytes(frame(TEXT, b"a", fin=False) + frame(CONT, b"", fin=False) * 200 + frame(CONT, b"b"))
    assert (heard.data, wire.paces) == ([], ["pause"])
    for _ in range(TURNS):
        if heard.data:
            break
        await asyncio.sleep(0)
    assert heard.data == [b"ab"]


async def test_what_is_held_back_comes_later_even_behind_the_end_of_the_connection() -> None:
    wire = Wire()
    heard = Heard(wire, limit=100)
    wire.listen(heard)
    wire.on_bytes(SENT)
    assert heard.data == NUMBERS[:100]
    wire.lose()
    assert (heard.data, heard.ends) == (NUMBERS[:100], [])
    wire.release()
    assert heard.data == NUMBERS[:200]
    wire.release()
    wire.release()
    assert (heard.data, heard.ends) == (NUMBERS, [Closing(NO_FRAME, broken=True)])
    wire.lose()
    assert len(heard.ends) == 1


async def test_the_end_is_told_once_and_answered_once() -> None:
    wire = Wire()
    heard = Heard(wire)
    wire.listen(heard)
    wire.on_bytes(frame(BINARY, b"last") + closing(4000, "bye") + frame(BINARY, b"behind"))
    wire.on_bytes(frame(BINARY, b"behind") + closing(4001))
    wire.lose()
    assert (heard.data, heard.ends) == ([b"last"], [Closing(4000, "bye")])
    assert wire.said == [closing(4000, "bye", masked=False)]
    wire.send(Message(frame(BINARY, b"x", masked=False), 2, text=False))
    assert len(wire.said) == 1, "nothing is said behind a close frame"


async def test_a_breach_is_said_and_told() -> None:
    wire = Wire()
    heard = Heard(wire)
    wire.listen(heard)
    wire.on_bytes(frame(TEXT, b"\xff"))
    assert [each.code for each in heard.ends] == [1007]
    assert wire.said[0][0] == 0x80 | CLOSE
    assert wire.said[0][2:4] == (1007).to_bytes(2, "big")


async def test_who_does_not_listen_any_more_is_told_nothing() -> None:
    wire = Wire()
    heard = Heard(wire)
    wire.listen(heard)
    wire.listen(None)
    wire.on_bytes(SENT + frame(PING, b"x") + closing(1000))
    wire.lose()
    assert (heard.data, heard.ends) == ([], [])
    assert wire.said == [frame(PONG, b"x", masked=False), closing(1000, masked=False)]


async def test_of_pings_that_come_from_somebody_who_reads_nothing_the_last_is_answered() -> None:
    wire = Wire()
    heard = Heard(wire)
    wire.listen(heard)
    wire.pace(paused=True)
    wire.on_bytes(b"".join(frame(PING, data) for data in NUMBERS))
    assert wire.said == []
    wire.pace(paused=False)
    assert wire.said == [frame(PONG, NUMBERS[-1], masked=False)]
    wire.pace(paused=True)
    wire.pace(paused=False)
    assert (len(wire.said), heard.writable) == (1, 2)
