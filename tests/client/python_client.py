"""Scenarios of the Python client, run as a process: it reads its addresses from the environment, once.

`python python_client.py SCENARIO ENDPOINT`; prints one line of JSON. Nothing of the client is changed, but in scenarios
that say so.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import fal_client
from fal_client import client
from websockets.exceptions import InvalidStatus


def sync(endpoint: str, use_jwt: bool = False) -> Any:
    """Send and receive three times."""
    answers = []
    with fal_client.realtime(endpoint, use_jwt=use_jwt, max_buffering=5) as connection:
        for number in range(3):
            connection.send({"n": number, "bytes": b"\x00\xff"})
            answer = connection.recv()
            assert answer is not None
            assert answer["input"] == {"n": number, "bytes": b"\x00\xff"}
            answers.append(answer["input"]["n"])
    return answers


def of_async(endpoint: str, use_jwt: bool = False) -> Any:
    """Do the same with the asynchronous client."""

    async def talk() -> Any:
        answers = []
        async with fal_client.realtime_async(endpoint, use_jwt=use_jwt, max_buffering=5) as connection:
            for number in range(3):
                await connection.send({"n": number, "bytes": b"\x00\xff"})
                answer = await connection.recv()
                assert answer is not None
                answers.append(answer["input"]["n"])
        return answers

    return asyncio.run(talk())


def path_sync(endpoint: str, use_jwt: bool = False) -> Any:
    """Talk to an app with a path of its own."""
    with fal_client.ws_connect(endpoint, use_jwt=use_jwt, path="/chat") as socket:
        socket.send("hello")
        return socket.recv()


def path_async(endpoint: str, use_jwt: bool = False) -> Any:
    """Do the same with the asynchronous client."""

    async def talk() -> Any:
        async with fal_client.ws_connect_async(endpoint, use_jwt=use_jwt, path="/chat") as socket:
            await socket.send("hello")  # type: ignore[attr-defined,unused-ignore]
            return await socket.recv()  # type: ignore[attr-defined,unused-ignore]

    return asyncio.run(talk())


def default(endpoint: str) -> Any:
    """Talk as the client does unless it is told otherwise: with a token of rest.fal.ai."""
    client.MAX_ATTEMPTS = 2  # instead of ten, whose pauses add up to a minute
    return sync(endpoint, use_jwt=True)


def led(talk: Callable[[str, bool], Any]) -> Callable[[str], Any]:
    """Return a scenario with tokens of the proxy's, for which a constant of the client must be changed."""

    def run(endpoint: str) -> Any:
        client.REST_URL = f"https://{os.environ['FAL_RUN_HOST'].removesuffix('/fal.run')}/rest.fal.ai"
        return talk(endpoint, True)

    return run


def ended(endpoint: str) -> Any:
    """Return the error that the client makes of the end."""
    with fal_client.realtime(endpoint, use_jwt=False) as connection:
        if endpoint != "a/closed":  # which is closed before anything could be said
            connection.send({"n": 1})
        try:
            while connection.recv() is not None:
                pass
        except fal_client.client.RealtimeError as error:
            return {"error": error.error, "reason": error.reason}
    return None


def refused(endpoint: str) -> Any:
    """Return what the client can see of a refused handshake."""
    try:
        sync(endpoint)
    except InvalidStatus as error:
        return {"status": error.response.status_code, "body": json.loads(error.response.body or b"null")}
    return None


SCENARIOS: dict[str, Callable[[str], Any]] = {
    "sync": sync,
    "of_async": of_async,
    "path_sync": path_sync,
    "path_async": path_async,
    "default": default,
    "led_sync": led(sync),
    "led_of_async": led(of_async),
    "led_path_sync": led(path_sync),
    "ended": ended,
    "refused": refused,
}

if __name__ == "__main__":
    try:
        result = SCENARIOS[sys.argv[1]](sys.argv[2])
    except Exception as error:  # noqa: BLE001 -- whatever it is, the test wants to see it
        result = {"failed": type(error).__name__, "text": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")
