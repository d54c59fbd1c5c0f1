"""One caller's connection beside its requests: its place, how long it may take, and every way in which it ends.

What is read from it, and when a request begins, is in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from fal_proxy.asgi import EXTENSION, Scope
from fal_proxy.downstream.backlog import is_waiting
from fal_proxy.downstream.cycle import Cycle
from fal_proxy.downstream.deadlines import Deadlines, Overdue, Phase, Sweep
from fal_proxy.downstream.faults import LEAVING, TOO_SLOW, Fault, tell
from fal_proxy.downstream.flow import Departure, Flow, Outlet
from fal_proxy.downstream.peers import Peers, Place
from fal_proxy.headers import Headers
from fal_proxy.lifecycle import Lifecycle

_IDLE = (Phase.IDLE, Phase.OPENED)
_ASKING = (*_IDLE, Phase.HEAD)


class Connection(HttpToolsProtocol):
    """One connection of a caller; `peers`, `sweep` and `lifecycle` are its server's."""

    flow: Flow
    cycle: Cycle

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        peers: Peers,
        sweep: Sweep,
        lifecycle: Lifecycle | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._peers, self._sweep = peers, sweep
        self._lifecycle = lifecycle or Lifecycle()
        self._place: Place | None = None
        self._deadlines = Deadlines()
        self._departure = Departure()
        self._head_done = False  # of the request that is read now, or was last
        self._behind = False  # what is read now may be meant as more of a request before it
        self._refused = False  # nothing more is read as a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own narrowing
        """Begin, if there is a place."""
        super().connection_made(transport)
        self._outlet = Outlet(transport)
        self.transport = cast("asyncio.Transport", self._outlet)
        self.flow = Flow(transport, self.loop)
        self._place = self._peers.enter(self.client[0] if self.client else None)
        self._sweep.add(self, self.loop)
        if self._place is None:
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and tell whoever works for this caller."""
        self._sweep.discard(self)
        if self._place is not None:
            self._place.release()
        self._refused = True
        self.flow.stop_looking()
        super().connection_lost(exc)
        self._departure.happen()

    def sweep(self, seconds: float) -> None:
        """Let time pass; called once a second."""
        unsent = self._outlet.transport.get_write_buffer_size()
        cycle = self._unanswered
        waits_for_us = self.flow.read_paused or (cycle is not None and cycle.waiting_for_100_continue)
        overdue = self._deadlines.look(
            seconds, willing=not waits_for_us, unsent=unsent, taken=self._outlet.written_bytes - unsent
        )
        if overdue is Overdue.RESET:
            self.cut()
        elif overdue is Overdue.TIMEOUT:
            self._refuse(TOO_SLOW)
        elif overdue is Overdue.CLOSE and not self._has_unread:
            self.transport.close()

    @property
    def may_ask(self) -> bool:
        """Say whether another request may come: no head has said that its answer is the last."""
        if self._refused or self.transport.is_closing():
            return False
        cycle = self._unanswered
        return self._deadlines.phase in _ASKING or (cycle is not None and cycle.response_started and cycle.keep_alive)

    def leave(self) -> None:
        """Let an answer that has not begun be the last one here, and say so in its head."""
        if (cycle := self._unanswered) is not None and not cycle.response_started:
            cycle.keep_alive = False

    def dismiss(self) -> bool:
        """End an idle connection with a refusal that nobody asked for; return False if a request is on its way.

        HTTP/1.1 has no goodbye. Who has just written a request, and could not know, reads this as its answer, which is
        the truth about it; everybody else finds a connection that is of no more use (RFC 9110 §15.5.9 knows such answers).
        """
        if self._deadlines.phase not in _IDLE or self._refused or self.transport.is_closing():
            return True
        if self._has_unread:
            return False
        self.transport.write(LEAVING.answer([]))
        self._linger()
        return True

    def shutdown(self) -> None:
        """End, if nothing is asked; whoever asks is answered first."""
        self.dismiss()

    @property
    def _has_unread(self) -> bool:
        return is_waiting(self._outlet.transport.get_extra_info("socket"))

    def _refuse(self, fault: Fault) -> None:
        """Say what is wrong, and end. An answer that has begun is cut: this one would be taken for its end."""
        if self._refused or self.transport.is_closing():
            return
        if (unanswered := self._unanswered) is not None and unanswered.response_started:
            self.cut()
            return
        fields = self._tell(fault)
        self._forsake()
        if self._behind:
            # Bytes of a request that its sender ends elsewhere than we do: an answer would be one too many.
            self._refused = True
            self.transport.close()
            return
        self.transport.write(fault.answer(fields))
        self._linger()

    def _tell(self, fault: Fault) -> Headers:
        begun = self._unanswered is not None
        scope = cast("Scope", self.scope) if self._head_done else None
        if scope is not None and not begun:
            scope["extensions"] = {EXTENSION: {"raw_target": self.url}}
        return tell(self.app_state, fault, scope, begun=begun, answered=not self._behind)

    def _linger(self) -> None:
        """End our side, and read on for a while, into nothing.

        Closed at once, a socket with unread bytes in it resets, and the answer may be lost (RFC 9112 §9.6).
        """
        self._refused = True
        self.flow.release()
        with contextlib.suppress(OSError):  # its peer has reset it, and the loop's news of that is on its way
            self.transport.write_eof()
        self._deadlines.enter(Phase.LINGER)

    def cut(self) -> None:
        """Reset the connection, so that its caller takes no part for the whole."""
        self._refused = True
        if (cycle := self._unanswered) is not None:
            cycle.flush()
        self._outlet.reset()
        self._forsake()

    def _forsake(self) -> None:
        if (cycle := self._unanswered) is not None:
            cycle.disconnected = True
            cycle.message_event.set()

    @property
    def _unanswered(self) -> Cycle | None:
        cycle = cast("Cycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle
