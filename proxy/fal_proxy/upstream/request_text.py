"""A request's head as text: what of it is known before its body is, made once for every time that it is sent."""

from __future__ import annotations

from fal_proxy.headers import Headers


def request_text(method: bytes, target: bytes, authority: bytes, headers: Headers) -> bytes:
    """Return request line, Host and fields, all but framing and the empty line at the end.

    `headers` must not hold framing fields or Host. Raises ValueError for bytes that would change the framing.
    """
    if b" " in target or b" " in method:
        raise ValueError("a request line has two spaces")
    line = b"%b %b HTTP/1.1\r\n" % (method, target)
    if line.count(b"\n") != 1 or line.count(b"\r") != 1 or b"\0" in line:
        raise ValueError("a request line must not contain line breaks or NUL")
    return line + field_text([(b"host", authority), *headers])


def field_text(headers: Headers) -> bytes:
    """Return fields as lines. Raises ValueError for bytes that would make more of them, or none."""
    text = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    count = len(headers)
    if text.count(b"\n") != count or text.count(b"\r") != count or b"\0" in text:
        raise ValueError("a request head must not contain line breaks or NUL")
    return text
