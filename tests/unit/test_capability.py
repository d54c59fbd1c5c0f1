"""Capabilities: what is sealed comes back, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.identity.capability import UPLOAD_SECONDS, Bearer, Seals, Upload

NEW, OLD = Secret("the newer secret, of 32 bytes and more"), Secret("the older secret, of 32 bytes and more")
ADA = Caller("key::ada", "key", "gold", ambient=True, network="net:1", by_network=False)


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def uploads(*secrets: Secret, purpose: bytes = b"upload", clock: Clock | None = None) -> Seals[Upload]:
    """Return seals of uploads."""
    return Seals(Upload, purpose, secrets or (NEW,), clock or Clock())


def upload(seals: Seals[Upload]) -> Upload:
    """Return the right to one upload of Ada's."""
    fields = {"host": "v3b.fal.media", "path": "/files/b/1/x", "query": "s=1", "content_type": "image/png"}
    return Upload(**seals.holder(ADA), **fields, multipart=False, max_bytes=10)  # type: ignore[arg-type]


def test_what_was_sealed_comes_back() -> None:
    seals = uploads()
    right = upload(seals)
    assert seals.open(seals.seal(right).encode()) == right


def test_its_caller_is_the_one_it_was_given_to_and_nothing_that_a_browser_attaches() -> None:
    seals = uploads()
    caller = seals.open(seals.seal(upload(seals)).encode()).known()
    assert (caller.id, caller.source, caller.plan, caller.network) == ("key::ada", "key", "gold", "net:1")
    assert not caller.ambient


def test_two_capabilities_for_the_same_are_not_alike() -> None:
    seals = uploads()
    right = upload(seals)
    assert seals.seal(right) != seals.seal(right)
    assert upload(seals).id != right.id


def test_a_capability_ends() -> None:
    clock = Clock()
    seals = uploads(clock=clock)
    text = seals.seal(upload(seals)).encode()
    clock.now += UPLOAD_SECONDS - 1
    seals.open(text)
    clock.now += 1
    with pytest.raises(Refusal) as refused:
        seals.open(text)
    assert (refused.value.status, refused.value.error_type) == (410, "capability_expired")


def test_an_older_secret_still_opens_and_the_newest_seals() -> None:
    before, during, after = uploads(OLD), uploads(OLD, NEW), uploads(NEW)
    assert during.find(before.seal(upload(before)).encode())
    assert after.find(during.seal(upload(during)).encode())
    assert after.find(before.seal(upload(before)).encode()) is None


def test_another_purpose_or_secret_opens_nothing() -> None:
    seals = uploads()
    text = seals.seal(upload(seals)).encode()
    assert uploads(purpose=b"bearer").find(text) is None
    assert Seals(Bearer, b"bearer", [NEW]).find(text) is None
    assert uploads(OLD).find(text) is None


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_other_bytes_open(text: bytes) -> None:
    with pytest.raises(Refusal, match="no such upload"):
        uploads().open(text)


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_one_changed_character_spoils_it(place: int, change: int) -> None:
    seals = uploads()
    text = bytearray(seals.seal(upload(seals)).encode())
    text = text[: len(text) // 4 * 4]  # whole groups: of a last half one some bits mean nothing
    place %= len(text)
    text[place] ^= change
    assert seals.find(bytes(text)) is None
