"""What an operator can do on the admin listener, and what nobody else can: dead letters, seen and tried once more."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from contract.post import HOOK, Post
from fal_proxy.admin import Admin
from fal_proxy.environment import Secret
from fal_proxy.errors import StoreUnavailable
from fal_proxy.routes import DEAD_LETTERS, RETRY
from fal_proxy.server import Listener, bind, serving
from fal_proxy.stores.mailbox import MAX_EVENTS_PER_OWNER
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.telemetry import Telemetry
from fal_proxy.upstream.dial import Dialer
from fal_proxy.upstream.engine import Engine
from fal_proxy.webhooks.dead_letters import SHOWN, DeadLetters
from support.raw import RawAnswer, raw_client, request

TOKEN = "a-token-of-the-operator"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LETTERS = DEAD_LETTERS.path


class Away(MemoryMailbox):
    """A mailbox that does not answer."""

    async def dead_letters(self, limit: int) -> list[object]:  # type: ignore[override]
        raise StoreUnavailable("Redis does not answer")

    async def revive(self, number: int) -> bool:
        raise StoreUnavailable("Redis does not answer")


@contextlib.asynccontextmanager
async def admin(post: Post, host: str = "127.0.0.1", token: str = TOKEN) -> AsyncIterator[int]:
    """Serve an admin app that believes to listen on `host`; yield its port."""
    app = Admin(host, Secret(token) if token else None, Telemetry(["default"], Engine(Dialer(1))).metrics)
    letters = DeadLetters(post.mailbox)
    app.show(DEAD_LETTERS.raw, letters.view)
    app.act(*RETRY.around, letters.retry)
    async with serving(Listener(app, bind("127.0.0.1", 0))) as url:
        yield int(url.rpartition(":")[2])


async def ask(port: int, method: str, path: str, headers: dict[str, str] | None = None) -> RawAnswer:
    async with raw_client(port) as client:
        await client.send(request(method, path, headers))
        return await client.answer(bodiless=method == "HEAD")


def boxed(mailbox: type[MemoryMailbox] = MemoryMailbox) -> Post:
    """Return an empty mailbox."""
    made = Post(mailbox(clock=lambda: made.now))
    return made


async def given_up(post: Post, name: str = "job") -> int:
    """Leave a dead letter; return its number."""
    filed = await post.file(name, forward_url=HOOK, body=b"what the job has made")
    await post.claim()
    await post.mailbox.failed(filed.number, "status 410", None)
    return filed.number


async def test_operator_sees_what_could_not_be_delivered_and_has_it_tried_once_more() -> None:
    post = boxed()
    numbers = [await given_up(post, name) for name in ("first", "second")]
    async with admin(post) as port:
        seen = await ask(port, "GET", LETTERS)
        (newest, oldest) = msgspec.json.decode(seen.body)["dead_letters"]
        assert [newest["number"], oldest["number"]] == numbers[::-1]
        assert oldest == {
            "number": numbers[0],
            "request_id": "first",
            "endpoint_id": "fal-ai/flux",
            "forward_url": HOOK,
            "received_at": post.now,
            "given_up_at": post.now,
            "attempts": 1,
            "reason": "status 410",
        }
        assert b"what the job has made" not in seen.body
        retried = await ask(port, "POST", f"{LETTERS}/{numbers[0]}/retry", BEARER)
        assert (retried.status, msgspec.json.decode(retried.body)) == (200, {"number": numbers[0], "due": "now"})
        assert [
            each["number"] for each in msgspec.json.decode((await ask(port, "GET", LETTERS)).body)["dead_letters"]
        ] == [numbers[1]]
        assert await post.claim() == [("first", 0)]
        again = await ask(port, "POST", f"{LETTERS}/{numbers[0]}/retry", BEARER)
        assert (again.status, again.one(b"x-fal-error-type")) == (404, b"not_found")


ACTIONS = [
    (BEARER, 200, "the token"),
    ({**BEARER, "Origin": "http://127.0.0.1:9090"}, 200, "our own page, which was given the token"),
    ({}, 401, "loopback is not enough to change anything"),
    ({"Authorization": f"Bearer {TOKEN}x"}, 401, "another token"),
    ({"Authorization": f"Basic {TOKEN}"}, 401, "another scheme"),
    ({"Cookie": f"token={TOKEN}"}, 401, "what a browser sends by itself"),
    ({**BEARER, "Origin": "https://evil.example"}, 403, "another page, whatever it knows"),
    ({**BEARER, "Origin": "null"}, 403, "a sandboxed one"),
    ({**BEARER, "Host": "evil.example"}, 421, "a rebound name"),
]


@pytest.mark.parametrize(("headers", "status", "why"), ACTIONS, ids=[case[2] for case in ACTIONS])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_action_needs_the_tokens_field_and_our_own_page(
    headers: dict[str, str], status: int, why: str, host: str
) -> None:
    post = boxed()
    number = await given_up(post)
    async with admin(post, host) as port:
        answer = await ask(port, "POST", f"{LETTERS}/{number}/retry", {"Host": "127.0.0.1:9090", **headers})
    assert answer.status == status, why
    assert await post.counts() == ((1, 1, 0) if status == 200 else (1, 0, 1))


async def test_without_a_token_views_are_open_on_loopback_and_actions_are_off() -> None:
    post = boxed()
    number = await given_up(post)
    async with admin(post, token="") as port:
        assert (await ask(port, "GET", LETTERS)).status == 200
        answer = await ask(port, "POST", f"{LETTERS}/{number}/retry", {"Authorization": "Bearer "})
    assert (answer.status, answer.one(b"x-fal-error-type")) == (403, b"mode_off")
    assert await post.counts() == (1, 0, 1)


NOWHERE = [
    ("GET", "/{number}/retry", 405, "a link, an image, a prefetch"),
    ("HEAD", "/{number}/retry", 405, "as harmless"),
    ("POST", "", 405, "a view"),
    ("DELETE", "/{number}/retry", 405, "no such method"),
    ("POST", "/{number}", 404, "no action"),
    ("POST", "/x{number}/retry", 404, "no number"),
    ("POST", "/-{number}/retry", 404, "a sign"),
    ("POST", "/%31/retry", 404, "an escape"),
    ("POST", "//retry", 404, "none"),
    ("POST", "/0123456789012345678/retry", 404, "too long"),
    ("POST", "/{number}/retry/retry", 404, "twice"),
    ("POST", "/99/retry", 404, "nothing of that number"),
]


@pytest.mark.parametrize(("method", "path", "status", "why"), NOWHERE, ids=[case[3] for case in NOWHERE])
async def test_whatever_is_not_exactly_an_action_changes_nothing(method: str, path: str, status: int, why: str) -> None:
    post = boxed()
    number = await given_up(post)
    async with admin(post) as port:
        answer = await ask(port, method, LETTERS + path.format(number=number), BEARER)
    assert answer.status == status, why
    if status == 405:
        assert answer.one(b"allow") == (b"GET, HEAD" if not path else b"POST")
    assert await post.counts() == (1, 0, 1)


async def test_mailbox_that_is_away_is_an_answer_not_a_fault() -> None:
    post = boxed(Away)
    async with admin(post) as port:
        for method, path in (("GET", LETTERS), ("POST", f"{LETTERS}/7/retry")):
            answer = await ask(port, method, path, BEARER)
            assert (answer.status, answer.one(b"x-fal-error-type")) == (503, b"store_unavailable")
            assert answer.one(b"retry-after") is not None


async def test_overview_names_the_routes() -> None:
    async with admin(boxed()) as port:
        overview = msgspec.json.decode((await ask(port, "GET", "/")).body)
        routes = ["/metrics", LETTERS, f"POST {LETTERS}/<number>/retry"]
        assert overview["routes"] == routes
    assert SHOWN >= MAX_EVENTS_PER_OWNER
