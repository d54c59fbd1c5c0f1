"""fal's signature over webhooks, judged by vectors that Node's own Ed25519 made (`data/fal_webhooks.mjs`)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.identity.fal_signature import REFRESH_SECONDS, fal_keys_of, is_good, read_fal_keys, read_signed
from fal_proxy.identity.published import MAX_BYTES, UNKNOWN_SECONDS
from fal_proxy.server import Listener, bind, serving
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.own_calls import OwnCalls
from support.peers import PATIENCE
from support.services import Asked, Clock, Reply, Service

DATA = Path(__file__).parents[1] / "data"
VECTORS: dict[str, Any] = json.loads((DATA / "fal_webhooks.json").read_bytes())
NOW = VECTORS["now"]
JWKS = json.dumps(VECTORS["jwks"]).encode()
KEYS = read_fal_keys(JWKS)
Fields = list[tuple[bytes, bytes]]


def read(vector: dict[str, Any]) -> tuple[Fields, bytes]:
    """Return header fields and body of a vector."""
    fields = [(name.encode(), value.encode()) for name, value in vector["headers"]]
    return fields, base64.b64decode(vector["body"])


def ids(vector: dict[str, Any]) -> str:
    """Return what a vector is about."""
    return str(vector["why"])


@pytest.mark.parametrize("vector", VECTORS["good"], ids=ids)
def test_a_webhook_signed_as_documented_is_good(vector: dict[str, Any]) -> None:
    fields, body = read(vector)
    signed = read_signed(fields)
    assert signed is not None
    assert signed.is_timely(NOW)
    assert is_good(signed, body, KEYS)


@pytest.mark.parametrize("vector", VECTORS["untimely"], ids=ids)
def test_a_webhook_of_another_time_is_none_of_now_however_well_signed(vector: dict[str, Any]) -> None:
    fields, body = read(vector)
    signed = read_signed(fields)
    assert signed is not None
    assert not signed.is_timely(NOW)
    assert is_good(signed, body, KEYS), "the time alone decides"


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=ids)
def test_a_webhook_without_four_well_formed_fields_is_not_looked_at(vector: dict[str, Any]) -> None:
    assert read_signed(read(vector)[0]) is None


@pytest.mark.parametrize("vector", VECTORS["forged"], ids=ids)
def test_any_other_signature_is_not_good(vector: dict[str, Any]) -> None:
    fields, body = read(vector)
    signed = read_signed(fields)
    assert signed is not None, "its form is good"
    assert signed.is_timely(NOW)
    assert not is_good(signed, body, KEYS)


@pytest.mark.parametrize("at", range(4))
def test_a_field_that_is_there_twice_is_none(at: int) -> None:
    fields, _ = read(VECTORS["good"][0])
    assert read_signed([*fields, fields[at]]) is None
    assert read_signed([*fields, (b"x-fal-webhook-else", b"x")]) is not None


def test_the_vectors_are_what_the_script_makes() -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    made = subprocess.run([node, DATA / "fal_webhooks.mjs"], capture_output=True, check=True).stdout
    assert made == (DATA / "fal_webhooks.json").read_bytes()


SETS = [
    (b"[]", "no object"),
    (b'{"keys": []}', "no keys"),
    (b'{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}', "no key of fal's kind"),
    (b'{"keys": [{"kty": "OKP", "crv": "X25519", "x": "%b"}]}' % (b"A" * 43), "a curve that signs nothing"),
    (b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}]}', "three bytes are no key"),
]


@pytest.mark.parametrize(("data", "reason"), SETS)
def test_a_set_without_an_ed25519_key_is_none(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=r"JSON object|Ed25519"):
        read_fal_keys(data)


KINDS = [
    ({}, "as fal publishes them"),
    ({"alg": "EdDSA", "use": "sig"}, "and says what for"),
    ({"alg": "Ed25519"}, "by its newer name"),
    ({"kid": None}, "without a name"),
]


@pytest.mark.parametrize(("changes", "reason"), KINDS)
@pytest.mark.parametrize("padding", ["", "="])
def test_a_key_verifies_however_it_is_written(changes: dict[str, Any], reason: str, padding: str) -> None:
    entry = {**VECTORS["jwks"]["keys"][-1], **changes}
    entry["x"] += padding
    fields, body = read(VECTORS["good"][0])
    signed = read_signed(fields)
    assert signed is not None
    keys = read_fal_keys(json.dumps({"keys": [{name: value for name, value in entry.items() if value}]}).encode())
    assert is_good(signed, body, keys), reason


class Rest:
    """fal's REST host below an override."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reply = Reply(200, JWKS)
        self.service = Service(self._answer)

    def _answer(self, asked: Asked) -> Reply:
        return self.reply if asked.path == "/base/rest.fal.ai/.well-known/jwks.json" else Reply(404)


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    """A running one."""
    sock = bind("127.0.0.1", 0)
    running = Rest(Listener(None, sock).url)
    async with serving(Listener(running.service, sock)):
        yield running


async def test_keys_are_fetched_below_the_override_once_kept_and_fetched_again_when_old(rest: Rest) -> None:
    clock = Clock()
    calls = OwnCalls(seconds=PATIENCE, max_bytes=MAX_BYTES, connections=1)
    keys = fal_keys_of(Route(rest.url + "/base"), calls, clock=clock)
    assert len(rest.service.asked) == 0, "nobody asked for them yet"
    for _ in range(3):
        assert [key.kid for key in await keys.current()] == ["older", "newer"]
    assert len(rest.service.asked) == 1
    assert not any(name == b"authorization" for name, _ in rest.service.asked[0].headers), "they are public"
    rest.reply = Reply(200, b'{"keys": []}')
    clock.now += REFRESH_SECONDS
    assert len(await keys.current()) == 2, "an empty set is no reason to forget the last good one"
    assert len(rest.service.asked) == 2
    clock.now += UNKNOWN_SECONDS - 1
    assert len(await keys.anew()) == 2
    assert len(rest.service.asked) == 2, "not twice in half a minute"
    rest.reply = Reply(200, json.dumps({"keys": VECTORS["jwks"]["keys"][-1:]}).encode())
    clock.now += 1
    assert [key.kid for key in await keys.anew()] == ["newer"]
    await keys.close()


async def test_without_any_keys_nobody_is_believed(rest: Rest) -> None:
    rest.reply = Reply(500)
    calls = OwnCalls(seconds=PATIENCE, max_bytes=MAX_BYTES, connections=1)
    keys = fal_keys_of(Route(rest.url + "/base"), calls)
    with pytest.raises(Refusal) as refused:
        await keys.current()
    assert (refused.value.status, refused.value.error_type) == (503, "identity_unavailable")
    await keys.close()


def test_fal_itself_is_asked_without_an_override() -> None:
    assert Route().address(b"rest.fal.ai", b"/.well-known/jwks.json") == b"https://rest.fal.ai/.well-known/jwks.json"
