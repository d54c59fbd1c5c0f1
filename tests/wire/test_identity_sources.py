"""Who may call, through the real proxy: one good and one bad case per source, and the rules between them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from typing import Any

import msgspec
import pytest

from fal_proxy.settings import ForwardSource, HeaderSource, Identity, JwtSource, KeySource, Plan, Settings
from support.issuer import AUDIENCE, Issuer, issuing, rsa_signer, token
from support.peers import Serve, Upstream
from support.proxied import MOUNT, OPEN_PLAN, Proxy, proxied
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok
from support.services import Asked, Reply, Service, served

TARGET = ("x-fal-target-url", "https://fal.run/fal-ai/flux/dev")
OURS = ("Origin", "http://127.0.0.1")
FOREIGN = ("Origin", "https://evil.example")
SESSION = ("Cookie", "session=ada")
NAMED = ("X-Forwarded-User", "ada")
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer on loopback."""
    async with issuing() as running:
        yield running


def _knows(asked: Asked) -> Reply:
    session = asked.values(b"cookie") == [b"session=ada"]
    return Reply(200, b'{"id": "ada"}') if session else Reply(401)


@pytest.fixture
def whoami() -> Service:
    """A service that knows one session."""
    return Service(_knows)


@pytest.fixture
def upstream(serve: Serve) -> Upstream:
    """An upstream that answers everything."""
    return serve(answering(ok()))


@pytest.fixture
async def proxy(
    tmp_path: Path, settings: Settings, issuer: Issuer, whoami: Service, upstream: Upstream
) -> AsyncIterator[Proxy]:
    """A proxy with all five sources."""
    async with served(whoami) as url:
        identity = Identity(
            sources=("key", "jwt", "forward", "header", "anonymous"),
            key=KeySource(file=str(tmp_path / "users.toml")),
            jwt=JwtSource(issuer=issuer.url, audience=AUDIENCE),
            forward=ForwardSource(url=url),
            header=HeaderSource(from_=("127.0.0.1",), secret_header="x-secret"),
        )
        plans = {"default": OPEN_PLAN, "small": Plan(endpoints=("fal-ai/whisper",))}
        chosen = msgspec.structs.replace(settings, identity=identity, plans=plans)
        environ = {"FAL_PROXY_HEADER_SECRET": SECRET}
        async with proxied(f"http://127.0.0.1:{upstream.port}", tmp_path, chosen, environ) as running:
            yield running


async def _ask(proxy: Proxy, *headers: tuple[str, str]) -> RawAnswer:
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", MOUNT, [TARGET, *headers], b"{}"))
        return await client.answer()


def _bearer(issuer: Issuer, **claims: Any) -> tuple[str, str]:
    text = token({"alg": "RS256", "kid": "rsa"}, issuer.claims(int(time()), **claims), rsa_signer().sign)
    return "Authorization", f"Bearer {text}"


def _error(answer: RawAnswer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error_type"]


async def test_token_of_the_issuer_may_call_from_any_place(proxy: Proxy, issuer: Issuer, upstream: Upstream) -> None:
    text = _bearer(issuer)
    assert (await _ask(proxy, text)).status == 200
    assert (await _ask(proxy, ("Authorization", text[1].replace("Bearer", "Key")))).status == 200
    assert (await _ask(proxy, text, FOREIGN)).status == 200, "no browser attaches a token by itself"
    assert all(text[1][7:].encode() not in bytes(peer.received) for peer in upstream.peers)
    assert issuer.fetches == 1


async def test_token_that_is_not_accepted_is_401_and_falls_through_to_nobody(proxy: Proxy, issuer: Issuer) -> None:
    for bad in (_bearer(issuer, exp=1), _bearer(issuer, aud="other"), ("Authorization", "Bearer a.b.c")):
        answer = await _ask(proxy, bad, SESSION, NAMED, ("X-Secret", SECRET), OURS)
        assert _error(answer) == (401, "unidentified")
        assert answer.one(b"www-authenticate") == b"Bearer"


async def test_plan_of_the_token_decides_what_it_opens(proxy: Proxy, issuer: Issuer) -> None:
    for plan in ("small", "unknown", "__class__"):
        assert _error(await _ask(proxy, _bearer(issuer, plan=plan))) == (403, "endpoint_denied")


async def test_issuer_that_cannot_be_asked_is_503_for_its_tokens_only(proxy: Proxy, issuer: Issuer) -> None:
    issuer.overrides["/keys"] = Reply(500)
    answer = await _ask(proxy, _bearer(issuer))
    assert _error(answer) == (503, "identity_unavailable")
    assert answer.one(b"retry-after") == b"5"
    assert (await _ask(proxy, *proxy.bearer.items())).status == 200


async def test_session_of_the_operators_service_may_call_from_our_page(proxy: Proxy, upstream: Upstream) -> None:
    answer = await _ask(proxy, SESSION, OURS)
    assert (answer.status, answer.one(b"set-cookie")) == (200, None), "no anonymous cookie for whoever is known"
    assert all(b"session=ada" not in bytes(peer.received) for peer in upstream.peers)


async def test_unknown_session_is_the_next_sources_business(proxy: Proxy, whoami: Service) -> None:
    answer = await _ask(proxy, ("Cookie", "session=eve"), OURS)
    assert answer.status == 200
    assert b"fal_proxy_anon=" in (answer.one(b"set-cookie") or b""), "anonymous"
    assert len(whoami.asked) == 1


async def test_service_that_gives_no_usable_answer_is_503(proxy: Proxy, whoami: Service) -> None:
    whoami.answer = lambda asked: Reply(500)
    answer = await _ask(proxy, SESSION, OURS)
    assert _error(answer) == (503, "identity_unavailable")
    assert answer.one(b"retry-after") == b"1"
    assert answer.one(b"access-control-allow-origin") == OURS[1].encode(), "the page can read why"


async def test_header_of_the_listed_proxy_may_call_from_our_page(proxy: Proxy, upstream: Upstream) -> None:
    answer = await _ask(proxy, NAMED, ("X-Secret", SECRET), OURS)
    assert (answer.status, answer.one(b"set-cookie")) == (200, None)
    sent = b"".join(bytes(peer.received) for peer in upstream.peers).lower()
    assert b"forwarded-user" not in sent
    assert SECRET.encode() not in sent


async def test_header_without_the_secret_names_nobody(proxy: Proxy) -> None:
    answer = await _ask(proxy, NAMED, OURS)
    assert b"fal_proxy_anon=" in (answer.one(b"set-cookie") or b""), "anonymous"


@pytest.mark.parametrize("twin", ["X-Forwarded-User", "X_Forwarded_User", "X-Forwarded_User"])
async def test_second_spelling_of_the_header_is_401(twin: str, proxy: Proxy) -> None:
    assert _error(await _ask(proxy, NAMED, (twin, "root"), ("X-Secret", SECRET), OURS)) == (401, "unidentified")


AMBIENT = [("forward auth", [SESSION]), ("the trusted header", [NAMED, ("X-Secret", SECRET)])]
PAGES = [
    ([FOREIGN], 403, "a foreign page rides on the visitor's proof"),
    ([("Origin", "null")], 403, "a sandboxed page has no origin"),
    ([("Origin", "http://127.0.0.1.evil.example")], 403, "begins like ours"),
    ([("Sec-Fetch-Site", "cross-site")], 403, "a form or an image of another site"),
    ([("Sec-Fetch-Site", "same-site")], 403, "a sibling is not ours"),
    ([("Sec-Fetch-Site", "none")], 403, "typed into the address bar"),
    ([("Sec-Fetch-Site", "same-origin")], 200, "our own page"),
    ([OURS], 200, "our own page"),
    ([], 200, "no browser: no form can set the target's header"),
]


@pytest.mark.parametrize(("page", "status", "reason"), PAGES)
@pytest.mark.parametrize(("source", "proof"), AMBIENT, ids=[source for source, _ in AMBIENT])
async def test_proof_that_a_browser_attaches_counts_for_our_pages_only(
    source: str,
    proof: list[tuple[str, str]],
    page: list[tuple[str, str]],
    status: int,
    reason: str,
    proxy: Proxy,
    upstream: Upstream,
) -> None:
    answer = await _ask(proxy, *proof, *page)
    assert answer.status == status, (source, reason)
    if status == 403:
        assert _error(answer) == (403, "origin_denied")
        assert not any(peer.received for peer in upstream.peers), "nothing was dialled for it"
