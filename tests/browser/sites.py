"""Pages of others: an origin of the test's own, which serves what the test says under any name of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from support.services import Asked, Reply, Service, served

BLANK = (
    "<!doctype html><html lang=en><meta charset=utf-8><link rel=icon href=data:,><title>a page</title><h1>A page</h1>"
)


@dataclass(frozen=True)
class Site:
    """A running origin, and what was asked of it."""

    port: int
    service: Service

    def at(self, host: str = "127.0.0.1", path: str = "") -> str:
        """Return the URL of a page, or its origin, under one of the names of this machine."""
        return f"http://{host}:{self.port}{path}"

    def asked(self, prefix: str) -> list[Asked]:
        """Return what was asked below a path."""
        return [asked for asked in self.service.asked if asked.path.startswith(prefix)]


def html(text: str = BLANK, **headers: str) -> Reply:
    """Return a page; `headers` are fields of the answer, with underscores for hyphens."""
    return document(text.encode(), "text/html; charset=utf-8", **headers)


def document(body: bytes, content_type: str, **headers: str) -> Reply:
    """Return a file of any type."""
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Reply(200, body, ((b"content-type", content_type.encode()), *named))


@contextlib.asynccontextmanager
async def site(
    files: Mapping[str, Reply] | None = None, answer: Callable[[Asked], Reply | None] = lambda asked: None
) -> AsyncIterator[Site]:
    """Serve files by path until the block ends, without any a blank page at `/`; `answer` comes before them."""
    found = {"/": html()} if files is None else files
    missing = Reply(404, b"")
    service = Service(lambda asked: answer(asked) or found.get(asked.path.partition("?")[0], missing))
    async with served(service) as url:
        yield Site(int(url.rpartition(":")[2]), service)
