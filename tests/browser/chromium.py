"""One headless Chromium for the whole run, and what is left of a visit to a page: its result and everything it said.

Scenarios are functions of .mjs files beside this one, `({ page, context, params }) => result`; each has a browser
context of its own, as `driver.mjs` starts it. Knows no proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from support.node import Node, NodeMissing, ScriptFailed, install
from support.proxied import FAL_KEY_ID, FAL_KEY_SECRET

PATIENCE_SECONDS = 90.0
FOLDER = Path(__file__).parent
# What Chromium sends of a secret: as it is, or with the colon between its halves escaped.
SECRETS = (FAL_KEY_ID, FAL_KEY_SECRET)
_LOOPBACK = re.compile(r"127\.0\.0\.1|\[::1\]|(.+\.)?localhost")
_NETWORK = ("http", "https", "ws", "wss")


class Asked(NamedTuple):
    """One request of a page; `status` is None while there is no answer."""

    method: str
    url: str
    type: str
    headers: dict[str, str]
    body: str | None
    status: int | None
    answered: dict[str, str]

    @property
    def path(self) -> str:
        """Path and query."""
        parts = urlsplit(self.url)
        return parts.path + (f"?{parts.query}" if parts.query else "")


@dataclass(frozen=True)
class Visit:
    """What a scenario returned, and what its pages did."""

    result: Any
    console: list[dict[str, str]]
    faults: list[str]
    failed: list[dict[str, str]]
    requests: list[Asked]
    sockets: list[dict[str, Any]]
    leaks: list[str]

    @property
    def errors(self) -> list[str]:
        """What the console shows in red."""
        return [f"{line['text']} ({line['url']})" for line in self.console if line["type"] == "error"] + self.faults

    def judge_private(self, names: Collection[str] = ()) -> None:
        """Assert that the fal key was nowhere to be seen, and that nobody but this machine, or `names`, was asked."""
        assert not self.leaks, f"a fal key was seen in: {self.leaks}"
        urls = [request.url for request in self.requests] + [socket["url"] for socket in self.sockets]
        hosts = {urlsplit(url).netloc.rpartition("@")[2] for url in urls if urlsplit(url).scheme in _NETWORK}
        found = {re.sub(r":\d+$", "", host) for host in hosts} - set(names)
        strangers = [host for host in found if not _LOOPBACK.fullmatch(host)]
        assert not strangers, f"the page asked strangers: {strangers}"

    def judge(self, names: Collection[str] = ()) -> None:
        """Assert what holds for every page of ours: private, and nothing red in the console."""
        self.judge_private(names)
        assert not self.errors, self.errors


class Browser:
    """A running Chromium; scenarios are played one after the other."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self.version = str(self._answer()["version"])

    async def play(
        self,
        file: str,
        scenario: str,
        *,
        options: dict[str, Any] | None = None,
        hostile: bool = False,
        names: Collection[str] = (),
        **params: Any,
    ) -> Visit:
        """Play a scenario to its end and judge the visit; a `hostile` page may have errors in its console.

        `options` are those of Playwright's `newContext`; `names` are host names beside those of loopback that may be asked.
        Raises ScriptFailed with what the scenario threw.
        """
        asked = {"file": file, "scenario": scenario, "params": params, "options": options or {}, "secrets": SECRETS}
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await asyncio.to_thread(self._ask, json.dumps(asked))
        log = answer["log"]
        requests = [Asked(**{"headers": {}, "status": None, "answered": {}, **entry}) for entry in log.pop("requests")]
        visit = Visit(answer.get("result"), requests=requests, **log)
        if "error" in answer:
            raise ScriptFailed("\n".join([answer["error"], *visit.errors[-5:]]))
        if hostile:
            visit.judge_private(names)
        else:
            visit.judge(names)
        return visit

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ScriptFailed(f"what drives Chromium has ended:\n{self._log.read_text()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def installed() -> tuple[Node, str]:
    """Return Node with what drives a browser, and the browser. Raises NodeMissing."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise NodeMissing("chromium not found; install Debian's package of that name")
    return install(FOLDER), chromium


@contextlib.contextmanager
def launched(node: Node, chromium: str, folder: Path) -> Iterator[Browser]:
    """Run Chromium until the block ends; `folder` is its home."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "CHROMIUM": chromium,
        "FONTCONFIG_FILE": str(FOLDER / "fonts.conf"),
        "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1",
    }
    with (folder / "driver.log").open("w") as log:
        process = subprocess.Popen(
            [node.executable, "driver.mjs"],
            cwd=node.folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield Browser(process, folder / "driver.log")
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)  # the end of its input is the end of it
            process.kill()
            process.wait()


def paths(requests: Sequence[Asked]) -> list[str]:
    """Return method and path of each request."""
    return [f"{request.method} {request.path}" for request in requests]
