"""Where the time of one request goes: the proxy with a clock around every stage, as a process of its own.

`python -m bench.spine` serves as `fal-proxy serve` does. SIGUSR1 begins to count, SIGUSR2 writes what was counted to
`spine.json`: of each stage its own nanoseconds, without those of the stages it calls, and how often it was entered.
A coroutine's time is that of its steps, so that waiting costs nothing. Processor time, so that others on the machine do not count.
"""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import sys
import types
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from inspect import iscoroutinefunction
from pathlib import Path
from time import thread_time_ns
from typing import Any

from fal_proxy import gateway
from fal_proxy.admission.accounts import Account
from fal_proxy.admission.gate import Gate
from fal_proxy.app import App, create_app
from fal_proxy.downstream.cycle import Cycle
from fal_proxy.downstream.flow import Outlet
from fal_proxy.gateway import Gateway
from fal_proxy.identity import Identities
from fal_proxy.judging import Judging
from fal_proxy.protocol import HttpProtocol
from fal_proxy.relay import http as relay_http
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.inbound import Inbound
from fal_proxy.reply import Reply
from fal_proxy.server import Listener, bind, serve
from fal_proxy.telemetry.access import AccessLog
from fal_proxy.telemetry.lines import LineWriter
from fal_proxy.telemetry.metrics import _Exchanges
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import KeyPool

REPORT = Path("spine.json")
# Each stage: its name in the report, and the functions whose time it is.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "read: cut, parse, begin a task": [(HttpProtocol, "data_received")],
    "ASGI: scope to request, routes": [(App, "_http")],
    "spine: what is between stages": [(Gateway, "handle"), (Gateway, "_relay")],
    "host, CORS": [(Gateway, "_enter")],
    "identify": [(Identities, "identify")],
    "target, origin, policy, fields up": [(Judging, "decide")],
    "body: read, input, price": [(Gateway, "_judge_body"), (Inbound, "read_first")],
    "key": [(KeyPool, "choose"), (KeyPool, "of_job")],
    "admit": [(Gateway, "_demand"), (Gate, "admit")],
    "watch the caller": [(Inbound, "watch"), (Inbound, "_watch"), (Inbound, "close"), (Cycle, "receive")],
    "relay": [(gateway, "relay"), (relay_http, "answer"), (relay_http, "read_whole")],
    "engine: up": [(Engine, "open"), (Engine, "reuse"), (Call, "send")],
    "engine: wait and read": [(Call, "head"), (Call, "read"), (Call, "release")],
    "parse the answer": [(Connection, "data_received")],
    "key guard": [(KeyGuard, "judge"), (KeyGuard, "judge_fields")],
    "fields down": [(Reply, "head"), (Reply, "at_once")],
    "write: head and body down": [(Cycle, "send"), (Cycle, "answer")],
    "socket: write up": [(Connection, "write")],
    "socket: write down": [(Outlet, "write")],
    "account, settle": [(Gateway, "_account"), (Account, "answered"), (Account, "ended"), (Account, "close")],
    "access line": [(AccessLog, "write")],
    "metrics": [(_Exchanges, "count")],
}


class Clock:
    """A stack of stages; time belongs to the one on top."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.entered: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = 0

    def begin(self) -> None:
        """Count from zero."""
        self.spent.clear()
        self.entered.clear()

    def enter(self, stage: str) -> None:
        """Let time belong to a stage."""
        now = thread_time_ns()
        if self._stack:
            self.spent[self._stack[-1]] += now - self._since
        self._stack.append(stage)
        self._since = thread_time_ns()

    def leave(self) -> None:
        """Let time belong to the stage before."""
        now = thread_time_ns()
        self.spent[self._stack.pop()] += now - self._since
        self._since = thread_time_ns()

    def report(self) -> None:
        """Write down what was counted."""
        beside = REPORT.with_suffix(".new")
        beside.write_text(json.dumps({"spent": self.spent, "entered": self.entered}))
        beside.replace(REPORT)

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with this clock around it."""
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*arguments: Any, **named: Any) -> Any:
                self.entered[stage] += 1
                return await self._steps(stage, function(*arguments, **named))

            return coroutine

        @functools.wraps(function)
        def plain(*arguments: Any, **named: Any) -> Any:
            self.entered[stage] += 1
            self.enter(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.leave()

        return plain

    @types.coroutine
    def _steps(self, stage: str, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        thrown: BaseException | None = None
        while True:
            self.enter(stage)
            try:
                waits_for = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                self.leave()
            thrown = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 -- it is the coroutine's, cancellation too
                thrown = error


def main() -> None:
    """Serve with clocks until SIGTERM; the first line of stdout ends with the port."""
    clock = Clock()
    for stage, functions in STAGES.items():
        for owner, name in functions:
            setattr(owner, name, clock.around(stage, getattr(owner, name)))
    app = create_app()
    sock = bind("127.0.0.1", 0)
    listener = Listener(app, sock, trusted_proxies=["127.0.0.1"])
    app.access.outlet = lines = LineWriter(sys.stdout)

    def announce() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, clock.begin)
        loop.add_signal_handler(signal.SIGUSR2, clock.report)
        sys.stdout.write(f"listening on {listener.url}\n")
        sys.stdout.flush()
        lines.start()

    serve(listener, announce)


if __name__ == "__main__":
    main()
