"""Every JavaScript client that the proxy works with: what each of them says by itself, and where it differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from client.stage import Stage
from support.node import Run
from support.snippets import at, client_lines

ATTEMPTS = 4  # one, and three repeats
# Rows of the README's table.
IN_A_PAGE = "`@fal-ai/client` 1.0 to 1.10, `@fal-ai/serverless-client` 0.15, in a page"
WITH_A_KEY = "the same, with a user key"
ELSEWHERE = "the same, in a page of another origin (`cors.origins`)"
IN_NODE = "`@fal-ai/client` 1.10 in Node"
IN_NODE_BEFORE = "`@fal-ai/client` and `@fal-ai/serverless-client` before 1.10 in Node"
AI_SDK = "`@ai-sdk/fal` 3 (images, video, transcripts)"
CURL = "`curl`"


@dataclass(frozen=True)
class Client:
    """One published version, as npm delivers it, and how it differs from the newest."""

    name: str
    package: str
    why: str
    rest: str = "rest.fal.ai"
    storage_type: str = "fal-cdn-v3"
    # What it repeats by itself: nothing; what is transient; by mistake everything else.
    repeats: Literal["nothing", "transient", "the rest"] = "transient"
    wraps: bool = True

    def data(self, result: Any) -> Any:
        """Return the model's output from what the client returns."""
        return result["data"] if self.wraps else result

    def attempts(self, status: int) -> int:
        """Return how often the client sends a request that is answered with `status`."""
        transient = status in (429, 502, 503, 504)
        return ATTEMPTS if self.repeats == ("transient" if transient else "the rest") else 1

    def initiate(self, way: str = "initiate") -> str:
        """Return the request line with which an upload begins."""
        query = f"?storage_type={self.storage_type}" if self.storage_type else ""
        return f"POST /storage/upload/{way}{query}"


_ALPHA = "rest.alpha.fal.ai"
CLIENTS = [
    Client("serverless-client 0.15", "@fal-ai/serverless-client", "the name before 1.0: bare results, one singleton",
           rest=_ALPHA, storage_type="", repeats="nothing", wraps=False),
    Client("1.0.4", "fal-1.0", "the last without storage type and multipart", _ALPHA, storage_type="", repeats="nothing"),
    Client("1.2.3", "fal-1.2", "multipart uploads, no repeats yet", _ALPHA, repeats="nothing"),
    Client("1.6.0", "fal-1.6.0", "the first with repeats, its condition upside down", _ALPHA, repeats="the rest"),
    Client("1.6.2", "fal-1.6", "the same, corrected", _ALPHA),
    Client("1.8.5", "fal-1.8", "headers of its own, life cycles of uploads", _ALPHA),
    Client("1.9.2", "fal-1.9.2", "the last that asks rest.alpha.fal.ai", _ALPHA),
    Client("1.9.6", "fal-1.9", "the last whose proxyUrl counts in browsers only"),
    Client("1.10.1", "@fal-ai/client", "the newest"),
]  # fmt: skip


class Fetched(NamedTuple):
    """One request that left the page."""

    method: str
    ours: bool
    path: str
    target: str | None
    authorization: str | None
    status: int


@dataclass(frozen=True)
class Page:
    """A client in a page of the proxy's own origin, and the stage behind it."""

    client: Client
    stage: Stage
    run: Run

    async def play(
        self,
        scenario: str,
        *,
        row: str = "",
        origin: str = "",
        browser: bool = True,
        credentials: str | None = None,
        **params: Any,
    ) -> tuple[Any, list[Fetched]]:
        """Play a scenario in a page just opened; return what the client returned, and what it fetched.

        `row` is the row of the README's table with which the client is set up, by default that of the stage's caller.
        """
        user_key = credentials or self.stage.credentials
        line = client_lines()[row or (WITH_A_KEY if user_key else IN_A_PAGE)]
        said = await self.run.answer(
            {
                "scenario": scenario,
                "page": {"origin": origin or self.stage.proxy.origin, "browser": browser},
                "setUp": at(self.stage.proxy.origin, line),
                "userKey": user_key,
                **params,
            }
        )
        self.stage.clean(said)
        assert "returned" in said, said
        return said["returned"], [Fetched(**each) for each in said["fetched"]]
