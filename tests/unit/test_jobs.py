"""What fal's queue answers say about a job, and what they do not say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.admission.jobs import StatusEvents, Submitted, app_of, is_completed, read_submitted

URL = "https://queue.fal.run/fal-ai/flux/requests/1"

SUBMITTED = [
    ({"request_id": "1", "response_url": URL}, Submitted("1", "fal-ai/flux"), "as fal names it"),
    ({"request_id": "1"}, Submitted("1", "fal-ai/flux-pro"), "without an address: as submitted"),
    ({"request_id": "1", "response_url": 7}, Submitted("1", "fal-ai/flux-pro"), "an address that is no text"),
    ({"request_id": "1", "response_url": ""}, Submitted("1", "fal-ai/flux-pro"), "an empty address"),
    ({"request_id": "x" * 128}, Submitted("x" * 128, "fal-ai/flux-pro"), "the longest id"),
    ({"request_id": "x" * 129}, None, "an id that is too long to keep"),
    ({"request_id": ""}, None, "an empty id"),
    ({"request_id": 1}, None, "an id that is no text"),
    ({"request_id": None}, None, "no id"),
    ({"detail": {"request_id": "1"}}, None, "an id that is not the answer's own"),
    (["request_id", "1"], None, "no object"),
    (
        {"request_id": "1", "response_url": "https://queue.fal.run/workflows/owner/flow/requests/1"},
        Submitted("1", "workflows/owner/flow"),
        "under a namespace",
    ),
    (
        {"request_id": "1", "response_url": "https://next.example/api/fal/proxy/queue.fal.run/fal-ai/flux/requests/1"},
        Submitted("1", "fal-ai/flux"),
        "as another proxy names it that ours stands in front of",
    ),
]


@pytest.mark.parametrize(("answer", "submitted", "reason"), SUBMITTED, ids=[row[-1] for row in SUBMITTED])
def test_a_submits_answer_names_the_job_and_its_app(answer: Any, submitted: Submitted | None, reason: str) -> None:
    assert read_submitted(json.dumps(answer).encode(), "fal-ai/flux-pro/v1/fill") == submitted, reason


APPS = [
    ("fal-ai/flux", "fal-ai/flux", "owner and alias"),
    ("fal-ai/flux/dev/image-to-image", "fal-ai/flux", "a path of the app is the same app"),
    ("workflows/owner/flow/extra", "workflows/owner/flow", "a namespace belongs to the app"),
    ("comfy/owner/graph", "comfy/owner/graph", "the other namespace"),
    ("owner/workflows/x", "owner/workflows", "no namespace in second place"),
    ("", "", "nothing"),
]


@pytest.mark.parametrize(("endpoint_id", "app", "reason"), APPS, ids=[row[-1] for row in APPS])
def test_an_app_is_owner_and_alias_with_the_namespace(endpoint_id: str, app: str, reason: str) -> None:
    assert app_of(endpoint_id) == app, reason


STATUSES = [
    (b'{"status":"COMPLETED"}', True, "as fal says it"),
    (b' {"logs":[], "status" : "COMPLETED"}\r\n', True, "with blanks around"),
    (b'{"status":"IN_PROGRESS","logs":[{"message":"COMPLETED"}]}', False, "a log message"),
    (b'{"status":"IN_PROGRESS","logs":[{"status":"COMPLETED"}]}', False, "the status of something inside"),
    (b'{"metrics":{"status":"COMPLETED"}}', False, "a nested status only"),
    (b'{"message":"\\"status\\":\\"COMPLETED\\""}', False, "quoted in a text"),
    (b'{"status":"completed"}', False, "another spelling"),
    (b'{"status":["COMPLETED"]}', False, "a list"),
    (b'"COMPLETED"', False, "a text"),
    (b"COMPLETED", False, "no JSON"),
    (b'{"status":"COMPLETED"', False, "cut"),
    (b'{"status":"COMPLETED"}{', False, "more than one value"),
    (b"\xff\xfe", False, "no text at all"),
    (b"", False, "nothing"),
    (b"[" * 100_000, False, "nested too deeply"),
]


@pytest.mark.parametrize(("body", "completed", "reason"), STATUSES, ids=[row[-1] for row in STATUSES])
def test_a_job_is_completed_when_its_own_status_says_so(body: bytes, completed: bool, reason: str) -> None:
    assert is_completed(body) is completed, reason


EVENTS = [
    *((b"data: " + body.strip() + b"\n\n", completed, f"an event: {reason}") for body, completed, reason in STATUSES),
    (b'data:{"status":"COMPLETED"}\n\n', True, "no blank after the colon"),
    (b'data: {"status":"COMPLETED"}\r\n\r\n', True, "lines that end in CRLF"),
    (b'id: 1\rdata: {"status":"COMPLETED"}\r\r', True, "lines that end in CR"),
    (b'data: {"status":"COMPLETED"}\r', True, "a CR, behind which a LF may come"),
    (b': ping\rdata: {"status":"IN_QUEUE"}\r\ndata: {"status":"COMPLETED"}\n', True, "each ending once"),
    (b'event: status\nid: 1\ndata: {"status":"COMPLETED"}\n\n', True, "after other fields"),
    (b': ping\n\ndata: {"status":"IN_QUEUE"}\n\ndata: {"status":"COMPLETED"}\n\n', True, "not the first event"),
    (b'data: {"status":"COMPLETED"}\n\ndata: {"status":"IN_QUEUE"}\n\n', True, "not the last event"),
    (b': {"status":"COMPLETED"}\n\n', False, "a comment"),
    (b'event: {"status":"COMPLETED"}\n\n', False, "another field"),
    (b' data: {"status":"COMPLETED"}\n\n', False, "a field by another name"),
    (b'{"status":"COMPLETED"}\n\n', False, "no event"),
    (b'data: {"status":"COMPLETED"}', False, "a line that has not ended"),
]


@pytest.mark.parametrize(("stream", "completed", "reason"), EVENTS, ids=[row[-1] for row in EVENTS])
def test_a_status_stream_tells_of_completion_once_the_line_has_ended(
    stream: bytes, completed: bool, reason: str
) -> None:
    assert StatusEvents().feed(stream) is completed, reason
    events = StatusEvents()
    assert any(events.feed(bytes([byte])) for byte in stream[:1000]) is (completed and len(stream) <= 1000), reason


@given(st.data(), st.lists(st.sampled_from([row[0] for row in EVENTS if len(row[0]) < 1000]), max_size=6))
def test_any_split_of_the_bytes_gives_the_same_answer(data: st.DataObject, parts: list[bytes]) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    events = StatusEvents()
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert any(events.feed(piece) for piece in pieces) is StatusEvents().feed(stream)


@given(st.binary(max_size=200))
def test_anything_at_all_is_read_without_a_fault(data: bytes) -> None:
    StatusEvents().feed(data + b"\n")
    StatusEvents().feed(b"data:" + data + b"\n")
    is_completed(data)
    read_submitted(data, "fal-ai/flux")


def test_a_line_that_never_ends_is_bounded_and_what_follows_is_still_read() -> None:
    events = StatusEvents()
    for _ in range(40):
        assert not events.feed(b"x" * 65_536)
        assert len(events._line) <= 1024 * 1024 + 65_536
    assert not events.feed(b"\n")
    assert events.feed(b'data: {"status":"COMPLETED"}\n')


def test_the_rest_of_a_line_that_was_too_long_is_no_event() -> None:
    events = StatusEvents()
    events.feed(b'data: {"status":"IN_PROGRESS","logs":"' + b"x" * 1024 * 1024)
    assert not events.feed(b'data: {"status":"COMPLETED"}\n')
