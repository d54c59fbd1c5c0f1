"""The answers fal gives: JSON, server-sent events and its six shapes of error. Knows nothing of who asked or why."""

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from .exchange import Json

Headers = list[tuple[str, str]]

# Infrastructure errors by status, from fal's docs page "Request errors".
ERROR_TYPES = {
    400: "bad_request",
    499: "client_cancelled",
    500: "runner_server_error",
    502: "runner_incomplete_response",
    503: "runner_scheduling_failure",
    504: "request_timeout",
}


@dataclass
class Answer:
    """One response; a streamed body without `length` is sent chunked."""

    status: int
    headers: Headers = field(default_factory=list)
    body: bytes | AsyncGenerator[bytes, None] = b""
    length: int | None = None


def json_answer(status: int, value: Json, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """Answer with a JSON value; non-ASCII text is sent as UTF-8, as fal's apps do."""
    return Answer(status, [("content-type", "application/json"), *headers], encode(value))


def encode(value: Json) -> bytes:
    """Encode JSON compactly; what could not be UTF-8 (half a surrogate pair) goes back as the client wrote it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def event_stream(events: AsyncGenerator[bytes, None], headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """Answer with server-sent events, one write per item."""
    framing = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
    return Answer(200, [*framing, *headers], events)


def event(value: Json, *, named: bool = False) -> bytes:
    """Frame one event; `named` is the form of fal-ai/any-llm: an event line and CRLF line ends."""
    line = encode(value)
    return b"event: event\r\ndata: " + line + b"\r\n\r\n" if named else b"data: " + line + b"\n\n"


def detail(status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """Answer with the plain shape of fal's gateway and of FastAPI: {"detail": "..."}."""
    return json_answer(status, {"detail": text}, headers)


def invalid(problems: Sequence[Json], headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """Answer 422 as pydantic does; a refused input costs nothing, which fal says with units of 0."""
    return json_answer(422, {"detail": list(problems)}, [("x-fal-billable-units", "0"), *headers])


def infrastructure(status: int, text: str, error_type: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """Answer with the shape of fal's infrastructure: the type in the body and in a header."""
    body = {"detail": text, "error_type": error_type}
    return json_answer(status, body, [("x-fal-error-type", error_type), *headers])


def queue_state(status: int, state: str) -> Answer:
    """Answer with a bare queue state, as status and cancel do for requests they cannot serve."""
    return json_answer(status, {"status": state})


def nginx(status: int) -> Answer:
    """Answer as the ingress does when nothing behind it lives: HTML, and no x-fal-request-id.

    The Python client retries a 502 only when it looks like this.
    """
    title = f"{status} {HTTPStatus(status).phrase}"
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    return Answer(status, [("content-type", "text/html")], page.encode())


def of_status(status: int, app: str) -> Answer:
    """Answer with that status in the words fal uses for it."""
    if status == 401:
        return detail(401, "invalid key credentials")
    if status == 403:
        return detail(403, "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing")
    if status == 404:
        return detail(404, f'Application "{app.rpartition("/")[2]}" not found' if app else "Not Found")
    if status == 422:
        problem = {
            "loc": ["body", "prompt"],
            "msg": "The content could not be processed because it was flagged by a content checker.",
            "type": "content_policy_violation",
            "url": "https://docs.fal.ai/errors#content_policy_violation",
        }
        return invalid([problem])
    if status == 429:
        # Hints go by two names: X-Fal-Retryable in fal's older docs, X-Fal-Needs-Retry in the newer.
        problem = {"loc": ["body"], "msg": "Too many concurrent requests.", "type": "concurrent_requests_limit"}
        body = {"detail": [problem], "error_type": "concurrent_requests_limit"}
        return json_answer(429, body, [("x-fal-needs-retry", "1"), ("x-fal-retryable", "1")])
    if status in ERROR_TYPES and status >= 500:
        hints = [("x-fal-needs-retry", "1"), ("x-fal-retryable", "1")] if status in (503, 504) else []
        return infrastructure(status, _phrase(status), ERROR_TYPES[status], hints)
    return detail(status, _phrase(status))


def of_fault(kind: str, argument: float | None, app: str, request_id: str) -> Answer | None:
    """Answer for a fault that answers in the app's place; None for one that strikes elsewhere."""
    if kind == "nginx502":
        return nginx(502)
    if kind != "status":
        return None
    answer = of_status(int(argument or 503), app)
    answer.headers.append(("x-fal-request-id", request_id))
    return answer


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
