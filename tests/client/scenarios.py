"""What an app does with Python's fal_client; a process of its own, because the client reads its hosts when imported.

Sync and async clients are asked the same: what the sync one returns at once, the async one returns when awaited.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fal_client


async def got(answer: Any) -> Any:
    """Return what either client answers."""
    return await answer if inspect.isawaitable(answer) else answer


async def each(items: Any) -> AsyncIterator[Any]:
    """Yield what either client yields."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def told(status: Any) -> dict[str, Any]:
    """Return a status with the name of its class."""
    return {"is": type(status).__name__, **asdict(status)}


async def run(client: Any, endpoint: str, arguments: Any, **options: Any) -> Any:
    return await got(client.run(endpoint, arguments, **options))


async def run_file(client: Any, endpoint: str, file: str) -> Any:
    return await got(client.run(endpoint, {"image_url": fal_client.encode_file(Path(file))}))


async def stream(client: Any, endpoint: str, arguments: Any) -> Any:
    return [event async for event in each(client.stream(endpoint, arguments))]


async def subscribe(client: Any, endpoint: str, arguments: Any) -> Any:
    updates: list[Any] = []
    ids: list[str] = []
    result = await got(
        client.subscribe(
            endpoint,
            arguments,
            with_logs=True,
            on_enqueue=ids.append,
            on_queue_update=lambda status: updates.append(told(status)),
        )
    )
    return {"result": result, "updates": updates, "ids": ids}


async def queue(client: Any, endpoint: str, arguments: Any) -> Any:
    handle = await got(client.submit(endpoint, arguments))
    urls = [handle.status_url, handle.response_url, handle.cancel_url]
    first = told(await got(handle.status(with_logs=True)))
    events = [told(status) async for status in each(handle.iter_events(with_logs=True))]
    result = await got(handle.get())
    by_id = {
        "status": told(await got(client.status(endpoint, handle.request_id))),
        "result": await got(client.result(endpoint, handle.request_id)),
    }
    return {"id": handle.request_id, "urls": urls, "first": first, "events": events, "result": result, "by_id": by_id}


async def realtime(client: Any, endpoint: str, arguments: Any, use_jwt: bool) -> Any:
    connecting = client.realtime(endpoint, use_jwt=use_jwt)
    async with AsyncExitStack() as stack:
        opened = hasattr(connecting, "__aenter__")
        connection = await stack.enter_async_context(connecting) if opened else stack.enter_context(connecting)
        await got(connection.send(arguments))
        return await got(connection.recv())


async def constants(client: Any) -> Any:
    return [url for name, url in vars(fal_client.client).items() if name in ("REST_URL", "CDN_URL")]


async def cancel(client: Any, endpoint: str, arguments: Any) -> Any:
    one, other = [await got(client.submit(endpoint, arguments)) for _ in range(2)]
    await got(one.cancel())
    await got(client.cancel(endpoint, other.request_id))
    return [await error_of(handle.get) for handle in (one, other)]


async def fails(client: Any, way: str, endpoint: str, arguments: Any) -> Any:
    return await error_of(getattr(client, way), endpoint, arguments)


async def error_of(call: Any, *arguments: Any) -> Any:
    """Return the client's error that a call ends with, or its result."""
    try:
        return {"result": await got(call(*arguments))}
    except fal_client.client.FalClientError as error:
        code, kind = getattr(error, "status_code", None), getattr(error, "error_type", None)
        return {"message": str(error), "status": code, "type": kind}


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (constants, run, run_file, stream, subscribe, queue, realtime, cancel, fails)
}


async def main(mode: str, prelude: str) -> None:
    """Play what each line asks for with the client that `mode` names, after the app's own lines in `prelude`."""
    exec(prelude)
    fal_client.client.MAX_ATTEMPTS = 5  # instead of ten, whose pauses add up to a minute
    made = fal_client.AsyncClient if mode == "async" else fal_client.SyncClient
    usual = made()
    for line in sys.stdin:
        asked = json.loads(line)
        key = asked.pop("key", None)
        result = await SCENARIOS[asked.pop("scenario")](made(key=key) if key else usual, **asked)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
