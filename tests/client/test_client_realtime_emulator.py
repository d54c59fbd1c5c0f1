"""The official client's realtime against the emulator itself, without a proxy between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from support.emulated import Emulated, emulated
from support.node import Node

CREDENTIALS = "id:secret"
# A red dot of 1 x 1.
DOT = "data:image/gif;base64,R0lGODlhAQABAPAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="


class Page:
    """The client and an emulator of its own."""

    def __init__(self, node: Node, fal: Emulated) -> None:
        self.fal = fal
        self._node = node

    async def play(self, scenario: str, **params: Any) -> Any:
        """Run a scenario of realtime.mjs."""
        sockets = f"ws://127.0.0.1:{self.fal.port}"
        given = {"credentials": CREDENTIALS, "direct": self.fal.url, "sockets": sockets, "url": "", **params}
        environ = {"SCENARIO": json.dumps(given)}
        async with self._node.started("harness.mjs", "realtime.mjs", scenario, environ=environ) as run:
            return await run.result()


@asynccontextmanager
async def page(node: Node, **emulator: Any) -> AsyncIterator[Page]:
    """Run an emulator for the client."""
    async with emulated(**emulator) as fal:
        yield Page(node, fal)


async def test_a_conversation_fetches_a_token_once_and_gets_every_result(node: Node) -> None:
    inputs = [{"prompt": "žluťoučký 🐎", "n": number} for number in range(3)]
    async with page(node) as client:
        seen = await client.play("converse", endpoint="a/b/c", inputs=inputs, options={"maxBuffering": 2})
        assert [result["input"] for result in seen["results"]] == inputs
        assert seen["errors"] == []
        # The client closes without a code and takes the 1005 of its own close for an error, in browsers too.
        assert [error["status"] for error in seen["onClose"]] == [1005]
        [socket] = seen["sockets"]
        url = urlsplit(socket["url"])
        assert (url.scheme, url.netloc, url.path) == ("wss", "fal.run", "/a/b/c/realtime")
        assert parse_qs(url.query)["max_buffering"] == ["2"]
        minted, handshake = client.fal.app.journal
        assert (minted.method, minted.host, minted.target) == ("POST", "rest.fal.ai", b"/tokens/")
        assert json.loads(minted.body) == {"allowed_apps": ["b"], "token_expiration": 120}
        assert handshake.header("authorization") is None
        assert handshake.session is not None
        assert (handshake.session.received, handshake.session.sent) == (3, 3)
        assert (handshake.session.close_code, handshake.session.closed_by_client) == (1005, True)


async def test_a_drawing_becomes_a_picture(node: Node) -> None:
    async with page(node) as client:
        given = {"prompt": "a lake", "image_url": DOT, "sync_mode": True, "seed": 1}
        seen = await client.play("converse", endpoint="110602490-lcm-sd15-i2i", inputs=[given, given])
        assert seen["errors"] == []
        first, second = (result["images"][0]["url"] for result in seen["results"])
        assert first == second
        assert first.startswith("data:image/jpeg;base64,")


async def test_bytes_survive(node: Node) -> None:
    async with page(node) as client:
        seen = await client.play("bytes", endpoint="a/b")
        wanted = hashlib.sha256(bytes(index % 256 for index in range(100_000))).hexdigest()
        assert seen == {"errors": [], "sha256": wanted, "length": 100_000}


async def test_timeout_is_no_error_and_the_next_input_reconnects_with_a_new_token(node: Node) -> None:
    async with page(node) as client:
        seen = await client.play("untilClosed", endpoint="emulator/idle", input={"n": 1}, again={"n": 2})
        assert [result["input"] for result in seen["results"]] == [{"n": 1}, {"n": 2}]
        assert seen["errors"] == []
        assert seen["sockets"][0]["close"]["code"] == 1000
        assert [entry.host for entry in client.fal.app.journal] == ["rest.fal.ai", "fal.run"] * 2


@pytest.mark.parametrize(
    ("endpoint", "emulator", "errors", "code"),
    [
        ("emulator/fail", {}, [("INTERNAL_ERROR: Internal Server Error", 400)], 1000),
        (
            "a/b",
            {"faults": "a/b:close"},
            [("Error closing the connection: Concurrent session limit reached.", 1013)],
            1013,
        ),
        ("a/b", {"faults": "a/b:drop"}, [("Error closing the connection: ", 1006)], 1006),
        (
            "a/b",
            {"faults": "fal.run/**:status=403"},
            [("Unknown error", 500), ("Error closing the connection: ", 1006)],
            1006,
        ),
    ],
)
async def test_what_ends_badly_is_an_error(
    node: Node, endpoint: str, emulator: dict[str, Any], errors: list[tuple[str, int]], code: int
) -> None:
    async with page(node, **emulator) as client:
        seen = await client.play("untilClosed", endpoint=endpoint, input={"n": 1})
        assert seen["results"] == []
        assert [(error["message"], error["status"]) for error in seen["errors"]] == errors
        assert seen["sockets"][0]["close"]["code"] == code


async def test_unauthorized_on_an_open_socket_is_no_error_and_leads_to_a_new_token(node: Node) -> None:
    moments = iter([0.0, *[3600.0] * 1000])  # the first token is minted an hour before everything else

    async with page(node, late_refusals=True, clock=lambda: next(moments)) as client:
        seen = await client.play("untilClosed", endpoint="a/b", input={"n": 1}, again={"n": 2})
        assert seen["errors"] == []
        assert [result["input"] for result in seen["results"]] == [{"n": 2}]
        assert [entry.host for entry in client.fal.app.journal] == ["rest.fal.ai", "fal.run"] * 2
        assert [socket["close"]["code"] for socket in seen["sockets"][:1]] == [1000]
