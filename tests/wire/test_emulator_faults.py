"""Faults as a client meets them."""

import asyncio
import time

import httpx2
import pytest

from support.emulated import Emulated, emulated

KEY = {"authorization": "Key id:secret"}


async def post(fal: Emulated, path: str = "/fal.run/a/b") -> httpx2.Response:
    async with httpx2.AsyncClient(headers=KEY, timeout=10) as client:
        return await client.post(fal.url + path, json={"x": 1})


async def raw(fal: Emulated, path: str, body: bytes = b"{}") -> tuple[bytes, bool]:
    """Send one request and read until the connection ends; also tells whether it was reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fal.port)
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Key a\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    read = bytearray()
    try:
        while piece := await reader.read(65536):
            read += piece
    except ConnectionResetError:
        return bytes(read), True
    finally:
        writer.close()
    return bytes(read), False


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, {"detail": "invalid key credentials"}),
        (404, {"detail": 'Application "b" not found'}),
        (418, {"detail": "I'm a Teapot"}),
        (500, {"detail": "Internal Server Error", "error_type": "runner_server_error"}),
        (503, {"detail": "Service Unavailable", "error_type": "runner_scheduling_failure"}),
        (504, {"detail": "Gateway Timeout", "error_type": "request_timeout"}),
    ],
)
async def test_a_status_fault_speaks_in_fals_words(status: int, expected: dict[str, str]) -> None:
    async with emulated(faults=f"a/b:status={status}") as fal:
        answer = await post(fal)
        assert (answer.status_code, answer.json()) == (status, expected)
        assert answer.headers["x-fal-request-id"]
        assert answer.headers.get("x-fal-error-type") == expected.get("error_type")
        assert (await post(fal, "/fal.run/a/c")).status_code == 200


async def test_403_is_the_locked_account_and_429_the_concurrency_limit() -> None:
    async with emulated(faults="a/b:status=403;c/d:status=429") as fal:
        assert (await post(fal)).json()["detail"].startswith("User is locked. Reason: Exhausted balance.")
        busy = await post(fal, "/fal.run/c/d")
        assert busy.json()["error_type"] == "concurrent_requests_limit"
        assert busy.headers["x-fal-needs-retry"] == "1"


async def test_nginx502_is_html_without_a_request_id() -> None:
    async with emulated(faults="a/b:nginx502") as fal:
        answer = await post(fal)
        assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html")
        assert "nginx" in answer.text
        assert "x-fal-request-id" not in answer.headers


async def test_a_fault_follows_a_queued_request_whose_urls_lack_the_path() -> None:
    faults = "fal-ai/flux/dev:status=500;queue.fal.run/**/status:status=503"
    async with emulated(faults=faults) as fal, httpx2.AsyncClient(headers=KEY) as client:
        other = (await client.post(fal.at("queue.fal.run", "/x/y"), json={})).json()["request_id"]
        status = await client.get(fal.at("queue.fal.run", f"/x/y/requests/{other}/status"))
        assert status.status_code == 503
        submitted = await client.post(fal.at("queue.fal.run", "/fal-ai/flux/dev"), json={"prompt": "x"})
        assert submitted.status_code == 500
    async with emulated(faults="x/y/z:gzip") as fal, httpx2.AsyncClient(headers=KEY) as client:
        request_id = (await client.post(fal.at("queue.fal.run", "/x/y/z"), json={})).json()["request_id"]
        status = await client.get(fal.at("queue.fal.run", f"/x/y/requests/{request_id}/status"))
        assert status.headers["content-encoding"] == "gzip"


async def test_a_storage_fault_is_named_by_host_and_path() -> None:
    async with emulated(faults="rest.fal.ai/storage/**:status=503") as fal:
        assert (await post(fal, "/rest.fal.ai/storage/upload/initiate")).status_code == 503
        assert (await post(fal)).status_code == 200


async def test_a_delay_holds_the_answer_back_scaled_by_speed() -> None:
    async with emulated(faults="a/b:delay=10", speed=100) as fal:
        started = time.monotonic()
        assert (await post(fal)).status_code == 200
        assert time.monotonic() - started >= 0.1


async def test_reset_sends_rst_instead_of_an_answer_although_the_request_was_served() -> None:
    async with emulated(faults="a/b:reset") as fal:
        assert await raw(fal, "/queue.fal.run/a/b") == (b"", True)
        entry = await fal.finished()
        assert entry.notes == ["fault: reset"]
        assert (entry.disconnected, entry.answer_complete, entry.body_complete) == (False, False, True)


async def test_reset_after_some_body_bytes_delivers_exactly_those() -> None:
    async with emulated(faults="a/b:reset=5") as fal:
        answer, was_reset = await raw(fal, "/fal.run/a/b")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert (len(body), was_reset) == (5, True)


async def test_truncate_ends_cleanly_on_the_wire_but_short_of_its_length() -> None:
    async with emulated(faults="a/b:truncate;c/d:truncate=3") as fal:
        answer, was_reset = await raw(fal, "/fal.run/a/b")
        head, _, body = answer.partition(b"\r\n\r\n")
        length = next(int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        assert (len(body), was_reset) == (length // 2, False)
        assert (await raw(fal, "/fal.run/c/d"))[0].partition(b"\r\n\r\n")[2] == b'{"e'


async def test_a_truncated_stream_stops_inside_an_event_without_its_last_chunk() -> None:
    async with emulated(faults="fal-ai/any-llm:truncate") as fal:
        answer, _ = await raw(fal, "/fal.run/fal-ai/any-llm/stream", b'{"prompt":"x"}')
        assert answer.count(b"data: ") == 2
        assert not answer.endswith(b"0\r\n\r\n")
        with pytest.raises(httpx2.RemoteProtocolError):
            async with httpx2.AsyncClient(headers=KEY) as client:
                await client.post(fal.at("fal.run", "/fal-ai/any-llm/stream"), json={"prompt": "x"})


async def test_stall_sends_the_head_and_then_nothing() -> None:
    async with emulated(faults="a/b:stall;c/d:stall=4") as fal:
        for path, expected in (("/fal.run/a/b", b""), ("/fal.run/c/d", b'{"en')):
            reader, writer = await asyncio.open_connection("127.0.0.1", fal.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Key a\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(expected)) == expected
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
            writer.close()
            entry = await fal.finished()
            assert (entry.disconnected, entry.notes) == (True, ["fault: stall"])


async def test_the_gzip_fault_compresses_single_endpoints() -> None:
    async with emulated(faults="a/b:gzip") as fal:
        answer = await post(fal)
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.json()["endpoint"] == "a/b"
        assert "content-encoding" not in (await post(fal, "/fal.run/c/d")).headers


async def test_preflights_are_spared() -> None:
    async with emulated(faults="**:status=503") as fal, httpx2.AsyncClient() as client:
        asks = {"origin": "https://app.test", "access-control-request-method": "POST"}
        assert (await client.options(fal.at("fal.run", "/a/b"), headers=asks)).status_code == 200
