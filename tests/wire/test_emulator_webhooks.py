"""The emulator's webhooks, over real sockets: what is posted, when, and how it is signed."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from support.emulated import Emulated, emulated
from support.receiver import KEY, receiving, shown_keys, submit

_NODE_VERIFIES = """
const crypto = require("node:crypto");
const { jwks, headers, body } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const field = (name) => headers["x-fal-webhook-" + name];
const digest = crypto.createHash("sha256").update(Buffer.from(body, "hex")).digest("hex");
const message = [field("request-id"), field("user-id"), field("timestamp"), digest].join("\\n");
const signature = Buffer.from(field("signature"), "hex");
const verifies = (jwk) =>
  crypto.verify(null, Buffer.from(message), crypto.createPublicKey({ key: jwk, format: "jwk" }), signature);
console.log(JSON.stringify(jwks.keys.some(verifies)));
"""


@pytest.fixture
async def fal() -> AsyncIterator[Emulated]:
    async with emulated(speed=200) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=KEY, timeout=10) as made:
        yield made


async def test_a_finished_job_is_posted_once_with_the_result_and_four_signed_headers(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    async with receiving() as hook:
        request_id = await submit(client, fal, f"{hook.url}/in?for=a%20b", "/fal-ai/flux/dev", {"prompt": "ž"})
        [webhook] = await hook.arrived(1)
        [delivery] = await fal.delivered()
        result = await client.get(fal.at("queue.fal.run", f"/fal-ai/flux/requests/{request_id}"))
    assert webhook.head.startswith("POST /in?for=a%20b HTTP/1.1\r\n")
    assert webhook.headers["host"] == hook.url.removeprefix("http://")
    assert webhook.headers["content-type"] == "application/json"
    assert webhook.headers["x-fal-webhook-request-id"] == request_id
    ids = {"request_id": request_id, "gateway_request_id": request_id}
    assert webhook.told == {**ids, "status": "OK", "payload": result.json()}
    assert result.content in webhook.body
    assert webhook.signed(await shown_keys(client, fal))
    assert (delivery.request_id, delivery.number, delivery.outcome) == (request_id, 1, "delivered")
    assert (delivery.status, delivery.body, delivery.body_bytes) == (200, webhook.body, len(webhook.body))
    assert delivery.header("x-fal-webhook-signature") == webhook.headers["x-fal-webhook-signature"]


async def test_keys_are_shown_to_anybody_at_both_hosts_in_the_documented_form(fal: Emulated) -> None:
    async with httpx2.AsyncClient() as anybody:
        shown = await shown_keys(anybody, fal)
        assert shown == await shown_keys(anybody, fal, "rest.alpha.fal.ai")
        [key] = shown["keys"]
        assert (key.keys(), key["kty"], key["crv"]) == ({"kty", "crv", "x", "kid"}, "OKP", "Ed25519")
        posted = await anybody.post(fal.at("rest.fal.ai", "/.well-known/jwks.json"))
        assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")


async def test_node_verifies_a_signature_and_refuses_one_of_another_body(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    node = shutil.which("node")
    assert node is not None, "node is missing; install Node 18 or newer"
    async with receiving() as hook:
        await submit(client, fal, hook.url)
        [webhook] = await hook.arrived(1)
    keys, verdicts = await shown_keys(client, fal), []
    for body in (webhook.body, webhook.body + b" "):
        process = await asyncio.create_subprocess_exec(
            node, "-e", _NODE_VERIFIES, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        question = {"jwks": keys, "headers": webhook.headers, "body": body.hex()}
        stdout, _ = await process.communicate(json.dumps(question).encode())
        verdicts.append(json.loads(stdout))
    assert verdicts == [True, False]


async def test_a_seed_gives_the_same_keys_and_none_gives_others(client: httpx2.AsyncClient) -> None:
    shown = []
    for seed in (7, 7, 8, None, None):
        async with emulated(seed=seed) as fal:
            shown.append((await shown_keys(client, fal))["keys"][0]["x"])
    assert shown[0] == shown[1]
    assert len(set(shown)) == 4


async def test_a_rotated_key_signs_at_once_and_the_old_one_is_shown_only_on_request(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    async with receiving() as hook:
        await submit(client, fal, hook.url)
        await hook.arrived(1)
        first = await shown_keys(client, fal)
        fal.app.rotate_webhook_key(keep_old=True)
        both = await shown_keys(client, fal)
        await submit(client, fal, hook.url)
        old, new = await hook.arrived(2)
    assert len(both["keys"]) == 2
    assert old.signed(both)
    assert new.signed(both)
    assert not new.signed(first)
    fal.app.rotate_webhook_key()
    last = await shown_keys(client, fal)
    assert len(last["keys"]) == 1
    assert not new.signed(last)


@pytest.mark.parametrize(
    ("endpoint", "given", "told", "reason"),
    [
        (
            "/emulator/fail",
            {"status": 422, "body": {"detail": [{"loc": ["body", "prompt"]}]}},
            {
                "status": "ERROR",
                "error": "Invalid status code: 422",
                "payload": {"detail": [{"loc": ["body", "prompt"]}]},
            },
            "a model's own failure shows its answer",
        ),
        (
            "/fal-ai/flux/dev",
            {"num_images": 9},
            {"status": "ERROR", "error": "Invalid status code: 422"},
            "a wrong input is found by the runner",
        ),
        (
            "/a/b",
            b'{"x":NaN}',
            {
                "status": "OK",
                "payload": None,
                "payload_error": "Response payload is not JSON serializable. Either return a JSON serializable object or "
                "use the queue endpoint to retrieve the response.",
            },
            "NaN is a float of Python's, not of JSON's",
        ),
        (
            "/emulator/slow",
            {"queue_seconds": 1000},
            {"status": "ERROR", "error": "Request did not start in time."},
            "the queue's own failure has no answer to show",
        ),
    ],
)
async def test_a_failure_is_told_in_fals_words(
    client: httpx2.AsyncClient, fal: Emulated, endpoint: str, given: Any, told: dict[str, Any], reason: str
) -> None:
    async with receiving() as hook:
        request_id = await submit(client, fal, hook.url, endpoint, given, **{"x-fal-request-timeout": "2"})
        [webhook] = await hook.arrived(1)
    assert webhook.signed(await shown_keys(client, fal))
    body = webhook.told
    assert {body.pop("request_id"), body.pop("gateway_request_id")} == {request_id}
    if "num_images" in str(given):
        assert [item["loc"][1] for item in body.pop("payload")["detail"]] == ["prompt", "num_images"]
    assert body == told, reason


async def test_a_cancelled_job_is_told_as_an_error(client: httpx2.AsyncClient, fal: Emulated) -> None:
    async with receiving() as hook:
        request_id = await submit(client, fal, hook.url, "/emulator/slow", {"queue_seconds": 10_000})
        await client.put(fal.at("queue.fal.run", f"/emulator/slow/requests/{request_id}/cancel"))
        [webhook] = await hook.arrived(1)
    assert (webhook.told["status"], webhook.told["error"]) == ("ERROR", "Request cancelled by the client.")
    assert webhook.request_id == request_id


async def test_nothing_is_posted_before_the_end_or_without_being_asked(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    async with receiving() as hook:
        await client.post(fal.at("queue.fal.run", "/a/b"), json={})
        await client.post(fal.at("queue.fal.run", "/a/b?fal_webhook="), json={})
        waiting = await submit(client, fal, hook.url, "/emulator/slow", {"queue_seconds": 80_000})
        finished = await submit(client, fal, hook.url)
        [webhook] = await hook.arrived(1)
    assert webhook.request_id == finished != waiting
    assert len(fal.app.deliveries) == 1
