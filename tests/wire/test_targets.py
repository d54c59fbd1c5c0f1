"""The corpus of target URLs through the live server, in both spellings: what is refused never reaches upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.policy.target import resolve
from support.corpus import Case, cases
from support.peers import Peer, Serve, Upstream
from support.proxied import MOUNT, Proxy, proxied
from support.raw import RawAnswer, raw_client, request


def _is_sendable(line: bytes) -> bool:
    """Say whether a socket delivers the value as it is: no control characters, no spaces that HTTP strips."""
    return all(0x20 <= byte != 0x7F for byte in line) and line == line.strip()


SENDABLE = [case for case in cases() if all(_is_sendable(line) for line in case.lines)]


async def _answer_everything(peer: Peer) -> None:
    while True:
        head = await peer.read_head()
        await peer.read(_content_length(head))
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")


def _content_length(head: bytes) -> int:
    fields = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    return next((int(value) for name, _, value in fields if name == b"content-length"), 0)


@pytest.fixture
async def upstream(serve: Serve) -> Upstream:
    return serve(_answer_everything)


@pytest.fixture
async def proxy(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with proxied(f"http://127.0.0.1:{upstream.port}", tmp_path) as proxy:
        yield proxy


def _received(upstream: Upstream) -> bytes:
    return b"".join(bytes(peer.received) for peer in upstream.peers)


def _judge(case: Case, answer: RawAnswer, sent: bytes) -> None:
    type_ = answer.one(b"x-fal-error-type")
    if case.allowed:
        assert type_ != b"invalid_target", case.why
    else:
        assert 400 <= answer.status < 500, case.why
    if sent:
        assert case.allowed, f"reached upstream: {case.why}"
        line = sent.split(b"\r\n")[0]
        assert line == case.method.encode() + b" /" + case.lines[0].removeprefix(b"https://") + b" HTTP/1.1"


async def _ask(proxy: Proxy, upstream: Upstream, case: Case, path: str, headers: list[tuple[str, str]]) -> None:
    before = len(_received(upstream))
    async with raw_client(proxy.port) as client:
        await client.send(request(case.method, path, headers + list(proxy.bearer.items()), b"{}"))
        answer = await client.answer()
    _judge(case, answer, _received(upstream)[before:])


async def test_corpus_target_in_the_header_comes_out_as_labelled(
    proxy: Proxy, upstream: Upstream, subtests: pytest.Subtests
) -> None:
    for case in SENDABLE:
        with subtests.test(case.why):
            headers = [("x-fal-target-url", line.decode("latin-1")) for line in case.lines]
            await _ask(proxy, upstream, case, MOUNT, headers)


async def test_corpus_target_in_the_path_comes_out_as_labelled(
    proxy: Proxy, upstream: Upstream, subtests: pytest.Subtests
) -> None:
    for case in SENDABLE:
        if len(case.lines) == 1 and case.lines[0].startswith(b"https://") and b" " not in case.lines[0]:
            with subtests.test(case.why):
                below = case.lines[0].removeprefix(b"https:/").decode("latin-1")
                await _ask(proxy, upstream, case, MOUNT + below, [])


def test_values_that_no_socket_delivers_are_refused_by_the_grammar_itself() -> None:
    unsendable = [case for case in cases() if case not in SENDABLE]
    assert len(unsendable) > 5
    for case in unsendable:
        with pytest.raises(Refusal):
            resolve(case.lines[0], case.method)


WRONG_ADDRESSES = [
    ("GET", MOUNT, [], "no target at all"),
    ("POST", f"{MOUNT}/", [], "the mount with a slash is the mount"),
    ("POST", f"{MOUNT}?x=1", [("x-fal-target-url", "https://fal.run/a/b")], "a query on the bare mount"),
    ("POST", f"{MOUNT}?", [("x-fal-target-url", "https://fal.run/a/b")], "an empty query on the bare mount"),
    ("POST", f"{MOUNT}/fal.run/a/b", [("x-fal-target-url", "https://fal.run/a/b")], "both spellings at once"),
    ("POST", f"{MOUNT}/fal.run/a/b?", [], "an empty query is not the same target"),
    ("POST", f"{MOUNT}/fal.run/a/b#c", [], "a fragment in the request line"),
    ("POST", f"{MOUNT}//fal.run/a/b", [], "an empty segment before the host"),
    ("POST", f"{MOUNT}/https://fal.run/a/b", [], "a URL in the path"),
]


@pytest.mark.parametrize(("method", "path", "headers", "reason"), WRONG_ADDRESSES)
async def test_contradictory_or_missing_address_is_400_and_nothing_is_sent(
    method: str, path: str, headers: list[tuple[str, str]], reason: str, proxy: Proxy, upstream: Upstream
) -> None:
    async with raw_client(proxy.port) as client:
        await client.send(request(method, path, headers + list(proxy.bearer.items()), b"{}"))
        answer = await client.answer()
    assert (answer.status, answer.one(b"x-fal-error-type")) == (400, b"invalid_target"), reason
    assert _received(upstream) == b""


async def test_both_spellings_reach_the_same_target(proxy: Proxy, upstream: Upstream) -> None:
    async with raw_client(proxy.port) as client:
        target = [("x-fal-target-url", "https://fal.run/fal-ai/flux/dev?seed=7")]
        await client.send(request("POST", MOUNT, target + list(proxy.bearer.items()), b"{}"))
        assert (await client.answer()).status == 200
        await client.send(request("POST", f"{MOUNT}/fal.run/fal-ai/flux/dev?seed=7", proxy.bearer, b"{}"))
        assert (await client.answer()).status == 200
    assert _received(upstream).count(b"POST /fal.run/fal-ai/flux/dev?seed=7 HTTP/1.1\r\n") == 2
