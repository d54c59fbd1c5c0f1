"""What `dev` shows of the last requests: which belong together, and what of them is hidden."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from fal_proxy.demo.trace import HIDDEN, KEPT, Trace
from fal_proxy.emulator import Entry
from fal_proxy.relay.inbound import Message
from fal_proxy.request import Request
from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET

MOUNT = "/api/fal/proxy"
USER_KEY = "fpk_" + "u" * 43
SECRETS = (FAL_KEY.reveal(), FAL_KEY_SECRET, FAL_KEY_ID, USER_KEY)
RUN = (b"x-fal-target-url", b"https://fal.run/fal-ai/flux/dev")
JSON = (b"content-type", b"application/json")


class Scene:
    """A trace, the journal it reads, and a proxy played by hand."""

    def __init__(self) -> None:
        self.journal: list[Entry] = []
        self.trace = Trace([MOUNT, "/api/fal/tokens"], self.journal, lambda: SECRETS)

    async def arrives(
        self,
        *headers: tuple[bytes, bytes],
        path: str = MOUNT,
        method: str = "POST",
        body: bytes = b"",
        query: bytes | None = None,
    ) -> Sent:
        """Let a request come from a browser and be read."""
        request = Request(method, path.encode(), query, list(headers), "127.0.0.1", "http")
        gone: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            gone.append(message)

        receiving, sending = self.trace.watch(request, receive, send)
        await receiving()
        return Sent(sending, gone)

    def reaches_fal(
        self,
        host: str,
        target: str,
        body: bytes = b"",
        method: str = "POST",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> Entry:
        """Let fal receive a request."""
        key = (b"authorization", b"Key " + FAL_KEY.reveal().encode())
        entry = Entry(method, host, target.encode(), [*headers, key], body, len(body))
        self.journal.append(entry)
        return entry

    @property
    def shown(self) -> list[dict[str, object]]:
        """What the page is told."""
        return self.trace.shown()


class Sent:
    """A request on its way, to be answered."""

    def __init__(self, sending: object, gone: list[Message]) -> None:
        self._sending, self.gone = sending, gone

    async def answered(self, status: int = 200) -> None:
        """Answer it."""
        await self._sending({"type": "http.response.start", "status": status, "headers": []})  # type: ignore[operator]


async def test_both_sides_of_a_request_are_shown_together() -> None:
    scene = Scene()
    body = b'{"prompt":"a pier"}'
    sent = await scene.arrives(RUN, JSON, (b"cookie", b"fal_proxy_anon=abc.def"), body=body)
    scene.reaches_fal("fal.run", "/fal-ai/flux/dev", body, headers=[JSON])
    await sent.answered()

    [shown] = scene.shown
    assert (shown["status"], shown["name"], shown["polling"]) == (200, "fal.run/fal-ai/flux/dev", False)
    assert shown["browser"] == {
        "method": "POST",
        "target": MOUNT,
        "headers": [
            ["x-fal-target-url", RUN[1].decode()],
            ["content-type", "application/json"],
            ["cookie", f"fal_proxy_anon={HIDDEN}"],
        ],
        "body": '{"prompt":"a pier"}',
    }
    assert shown["fal"] == {
        "method": "POST",
        "target": "/fal-ai/flux/dev",
        "headers": [["content-type", "application/json"], ["authorization", f"Key {HIDDEN}"]],
        "body": '{"prompt":"a pier"}',
        "host": "fal.run",
        "status": None,
    }
    assert sent.gone[0]["status"] == 200, "what is watched goes on"


async def test_a_refused_request_is_not_shown_with_anothers_arrival() -> None:
    scene = Scene()
    scene.reaches_fal("fal.run", "/fal-ai/flux/dev", b"{}")  # long ago
    refused, admitted = await scene.arrives(RUN, body=b"{}"), await scene.arrives(RUN, body=b"{}")
    await refused.answered(429)
    scene.reaches_fal("fal.run", "/fal-ai/flux/dev", b"{}")
    await admitted.answered()

    newest, oldest = scene.shown
    assert newest["fal"] is not None
    assert (oldest["status"], oldest["fal"]) == (429, None)


async def test_requests_alike_but_for_their_bodies_are_not_confused() -> None:
    scene = Scene()
    bodies = [b'{"seed":1}', b'{"seed":2}', b'{"seed":3}']
    sent = [await scene.arrives(RUN, JSON, body=body) for body in bodies]
    for body in reversed(bodies):
        scene.reaches_fal("fal.run", "/fal-ai/flux/dev", body, headers=[JSON])
    for one in sent:
        await one.answered()

    for shown in scene.shown:
        assert shown["browser"]["body"] == shown["fal"]["body"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "query", "headers", "host", "target", "reason"),
    [
        (f"{MOUNT}/fal.run/a/b", None, (), "fal.run", "/a/b", "path form"),
        (f"{MOUNT}/queue.fal.run/a/b/requests/x/status", b"logs=1", (), "queue.fal.run", "/a/b/requests/x/status?logs=1", "query"),
        (f"{MOUNT}/fal.run/a/b/realtime", b"fal_jwt_token=t&max_buffering=2", (), "fal.run", "/a/b/realtime?max_buffering=2", "a ticket is ours"),
        ("/api/fal/tokens", None, ((b"x-fal-target-url", b"https://rest.fal.ai/tokens/"),), "rest.fal.ai", "/tokens/", "the second mount"),
        (f"{MOUNT}/uploads/sealed", None, (), "v3b.fal.media", "/files/b/x?X-Fal-Signature=s", "known by its bytes alone"),
    ],
)  # fmt: skip
async def test_every_form_of_address_finds_its_arrival(
    path: str, query: bytes | None, headers: tuple[tuple[bytes, bytes], ...], host: str, target: str, reason: str
) -> None:
    scene = Scene()
    sent = await scene.arrives(*headers, path=path, query=query, body=b"12345")
    scene.reaches_fal(host, target, b"12345")
    await sent.answered()
    assert scene.shown[0]["fal"] is not None, reason


@pytest.mark.parametrize("path", ["/healthz", f"{MOUNT}/me", f"{MOUNT}/client.js", MOUNT, "/elsewhere/fal.run/a/b"])
async def test_what_is_not_for_fal_is_not_remembered(path: str) -> None:
    scene = Scene()
    await scene.arrives(path=path)
    assert scene.shown == []


@pytest.mark.parametrize(
    ("headers", "query", "body", "reason"),
    [
        (((b"authorization", f"Key {USER_KEY}".encode()),), None, b"", "the user's own key"),
        (((b"authorization", f"Bearer {FAL_KEY.reveal()}".encode()),), None, b"", "a fal key where it does not belong"),
        (((b"cookie", b"session=" + FAL_KEY_SECRET.encode()),), None, b"", "a cookie of the app's"),
        (((b"x-other", f"key={FAL_KEY_SECRET}".encode()),), None, b"", "a field that nobody thought of"),
        (((b"referer", b"http://localhost/?key=" + FAL_KEY_ID.encode()),), None, b"", "a page's own address"),
        ((), b"fal_jwt_token=secret-ticket", b"", "a ticket"),
        ((JSON,), None, f'{{"key":"{FAL_KEY.reveal()}"}}'.encode(), "a body"),
        ((JSON,), None, f'{{"key":"{USER_KEY}"}}'.encode(), "a user key in a body"),
    ],
)
async def test_no_secret_is_shown_wherever_it_stands(
    headers: tuple[tuple[bytes, bytes], ...], query: bytes | None, body: bytes, reason: str
) -> None:
    scene = Scene()
    path = f"{MOUNT}/fal.run/a/b"
    sent = await scene.arrives(*headers, path=path, query=query, body=body)
    scene.reaches_fal("fal.run", "/a/b", body, headers=headers)
    await sent.answered()

    text = json.dumps(scene.shown, ensure_ascii=False)
    assert HIDDEN in text
    for secret in (*SECRETS, "secret-ticket"):
        assert secret not in text, reason


async def test_an_uploads_capability_and_bytes_are_not_shown() -> None:
    scene = Scene()
    sent = await scene.arrives(
        (b"content-type", b"image/png"), path=f"{MOUNT}/uploads/sealed-capability/1", body=b"\x89PNG"
    )
    await sent.answered()
    [shown] = scene.shown
    assert shown["browser"]["target"] == f"{MOUNT}/uploads/{HIDDEN}/1"  # type: ignore[index]
    assert shown["browser"]["body"] == "(4 bytes of image/png)"  # type: ignore[index]


async def test_pictures_in_inputs_are_cut_short() -> None:
    scene = Scene()
    body = b'{"image_url":"data:image/jpeg;base64,' + b"A" * 5000 + b'","prompt":"' + b"p" * 1000 + b'"}'
    await scene.arrives(RUN, JSON, body=body)
    text = scene.shown[0]["browser"]["body"]  # type: ignore[index]
    assert text.startswith('{"image_url":"data:image/jpeg;base64,…","prompt":"pp')
    assert len(text) < 500


async def test_polls_push_no_request_out() -> None:
    scene = Scene()
    await scene.arrives(RUN, body=b"{}")
    status = (b"x-fal-target-url", b"https://queue.fal.run/fal-ai/flux/requests/1/status?logs=1")
    for _ in range(2 * KEPT):
        await scene.arrives(status, method="GET")
    shown = scene.shown
    assert len(shown) == KEPT + 1
    assert [one["polling"] for one in shown] == [True] * KEPT + [False]
