"""The apps of `examples/`, each as its reader would run it: under plain uvicorn, in front of an offline fal."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from support.commands import clean_environment
from support.emulated import Emulated, emulated
from support.proxied import FAL_KEY, MOUNT

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 30.0
CONFIG = """
[server]
hosts = ["127.0.0.1"]
[plans.default]
endpoints = ["fal-ai/**"]
[plans.generous]
endpoints = ["**"]
"""
LISTENING = re.compile(r"Uvicorn running on http://127.0.0.1:(\d+)")
SUBMIT = {"x-fal-target-url": "https://queue.fal.run/fal-ai/flux/dev"}
Client = httpx2.AsyncClient
LogIn = Callable[[Client, str], Awaitable[None]]


async def by_cookie(client: Client, name: str) -> None:
    answer = await client.post("/login", data={"name": name})
    assert answer.status_code in (200, 303), answer.text


async def by_token(client: Client, name: str) -> None:
    client.headers["authorization"] = f"Bearer a token of {name}'s"


class Example(NamedTuple):
    """A file of the folder, what uvicorn calls its app, how one logs in, and whether a page's cookie does it."""

    name: str
    app: str
    log_in: LogIn
    ambient: bool


ALL = [
    Example("starlette_app", "app", by_cookie, True),
    Example("fastapi_app", "app", by_token, False),
    Example("django_app", "application", by_cookie, True),
]


@pytest.fixture(params=ALL, ids=lambda example: example.name)
def example(request: pytest.FixtureRequest) -> Example:
    """Each example."""
    found: Example = request.param
    return found


@pytest.fixture
async def fal() -> AsyncIterator[Emulated]:
    """An offline fal."""
    async with emulated() as running:
        yield running


@pytest.fixture
def url(example: Example, fal: Emulated, tmp_path: Path) -> Iterator[str]:
    """Run the example as its head says, until the test ends, and return its address."""
    shutil.copy(EXAMPLES / f"{example.name}.py", tmp_path)
    (tmp_path / "fal-proxy.toml").write_text(CONFIG)
    environ = clean_environment(
        FAL_KEY=FAL_KEY.reveal(),
        FAL_PROXY_UPSTREAM=fal.url,
        SESSION_SECRET="s" * 32,
        DJANGO_SECRET_KEY="s" * 50,
        PYTHONUNBUFFERED="1",
    )
    with (tmp_path / "stderr.txt").open("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--port", "0", f"{example.name}:{example.app}"],
            cwd=tmp_path,
            env=environ,
            stderr=subprocess.PIPE,
            stdout=stderr,
            text=True,
        )
        try:
            assert process.stderr is not None
            said = ""
            while (found := LISTENING.search(said)) is None:
                line = process.stderr.readline()
                assert line, said
                said += line
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            _, rest = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in rest, rest


@pytest.fixture
async def visitors(url: str) -> AsyncIterator[Callable[[], Client]]:
    """Return a function that makes a client with cookies of its own."""
    async with contextlib.AsyncExitStack() as stack:
        clients: list[Client] = []

        def visit() -> Client:
            clients.append(Client(base_url=url, timeout=PATIENCE, trust_env=False))
            stack.push_async_callback(clients[-1].aclose)
            return clients[-1]

        yield visit


async def test_users_of_the_app_call_and_own_their_jobs(example: Example, visitors: Callable[[], Client]) -> None:
    ada, bob, stranger = visitors(), visitors(), visitors()
    await example.log_in(ada, "ada")
    await example.log_in(bob, "bob")
    refused = await stranger.get(f"{MOUNT}/me")
    assert (refused.status_code, refused.json()["error_type"]) == (401, "unidentified")
    me = [(await client.get(f"{MOUNT}/me")).json() for client in (ada, bob)]
    assert [one["source"] for one in me] == ["app", "app"]
    assert me[0]["id"] != me[1]["id"]
    submitted = await ada.post(MOUNT, headers=SUBMIT, json={"prompt": "a harbour"})
    assert submitted.status_code == 200, submitted.text
    status = f"{MOUNT}/queue.fal.run/fal-ai/flux/requests/{submitted.json()['request_id']}/status"
    by_header = {"x-fal-target-url": "https://" + status.removeprefix(MOUNT + "/")}
    assert (await ada.get(MOUNT, headers=by_header)).status_code in (200, 202)
    assert (await bob.get(MOUNT, headers=by_header)).json()["error_type"] == "unknown_request"


async def test_page_of_another_origin_cannot_use_the_apps_session(
    example: Example, visitors: Callable[[], Client], fal: Emulated
) -> None:
    ada = visitors()
    await example.log_in(ada, "ada")
    before = len(fal.app.journal)
    answer = await ada.post(MOUNT, headers=SUBMIT | {"origin": "https://evil.example"}, json={"prompt": "hers to pay"})
    if example.ambient:
        assert (answer.status_code, answer.json()["error_type"]) == (403, "origin_denied")
        assert len(fal.app.journal) == before
    else:
        assert answer.status_code == 200, "a page that holds the token was given it"


async def test_stream_passes_piece_by_piece(example: Example, visitors: Callable[[], Client]) -> None:
    ada = visitors()
    await example.log_in(ada, "ada")
    target = {"x-fal-target-url": "https://fal.run/fal-ai/flux/dev/stream", "accept": "text/event-stream"}
    async with ada.stream("POST", MOUNT, headers=target, json={"prompt": "a harbour"}) as answer:
        assert answer.status_code == 200
        pieces = [piece async for piece in answer.aiter_raw()]
    assert len(pieces) > 1
    assert b"".join(pieces).count(b"data:") > 1


async def test_plan_is_the_one_that_the_app_names(visitors: Callable[[], Client], example: Example) -> None:
    bob = visitors()
    await example.log_in(bob, "bob")
    expected = "generous" if example.name == "fastapi_app" else "default"
    assert (await bob.get(f"{MOUNT}/me")).json()["plan"] == expected


def test_every_example_is_run() -> None:
    assert {f"{example.name}.py" for example in ALL} == {file.name for file in EXAMPLES.glob("*.py")}
