"""What the app's own server is told: fal's webhook as it came, signed by us as well, until it says 2xx or time is up.

The mailbox decides what is due and who tries; here an attempt is made and judged. It goes through the engine, so that no
redirect is followed and the address is judged where the socket opens, on a connection of its own and never with a fal
key. Where it may go is asked again each time: settings may have changed since the event was filed. Whatever is not
told to the mailbox (a kill, a mailbox that is away) is tried again when its claim ends: at least once, never for certain
only once, which is what `webhook-id` is for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

from fal_proxy._version import __version__
from fal_proxy.errors import StoreUnavailable, UpstreamError
from fal_proxy.exchange import Attempt
from fal_proxy.policy.webhooks import aim
from fal_proxy.stores.mailbox import Delivery, Mailbox, Notice, host_of
from fal_proxy.telemetry.metrics import Metrics
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.dial import Dialer, Route
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.pool import Pool
from fal_proxy.webhooks.signing import Signer

AT_ONCE = 16
PER_HOST = 4
ATTEMPT_SECONDS = 15.0
ANSWER_BYTES = 64 * 1024  # that are read, so that the receiver's connection ends well; nobody looks at them
# After the first attempt, the second, …; then it is a dead letter. Up to a tenth is added.
PAUSES: tuple[float, ...] = (5.0, 30.0, 300.0, 1800.0, 2 * 3600.0, 5 * 3600.0, 10 * 3600.0)
JITTER = 0.1
TICK_SECONDS = 1.0
LOOK_SECONDS = 10.0  # at how much is kept, for metrics
REASON_CHARS = 200
_GONE = 410
_log = logging.getLogger("fal_proxy.webhooks")


class Result(NamedTuple):
    """How an attempt went; `reason` is for the operator, and holds nothing of what was sent or received."""

    delivered: bool
    reason: str = ""
    final: bool = False  # trying again would change nothing


class Deliveries:
    """One per process; `run` until cancelled."""

    def __init__(
        self,
        mailbox: Mailbox,
        dialer: Dialer,
        route: Route,
        signer: Signer,
        hosts: Collection[str],
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take `hosts`, which alone are delivered to; the mailbox is somebody else's to close."""
        self._mailbox = mailbox
        self._engine = Engine(dialer, Pool(max_idle=0))  # not fal's: a slow app must not show in fal's figures
        self._route = route
        self._signer = signer
        self.allow(hosts)
        self._metrics = metrics
        self._clock = clock
        self._chance = chance
        self._attempts: dict[asyncio.Task[None], str] = {}  # and the host of each
        self._wake = asyncio.Event()
        self._looked = float("-inf")

    @property
    def under_way(self) -> int:
        """Return how many attempts are being made."""
        return len(self._attempts)

    async def run(self) -> None:
        """Deliver what is due until cancelled; attempts under way are given up then, and due again later."""
        stop_listening = self._mailbox.listen(self._heard)
        try:
            while True:
                await self.turn()
                try:
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
        finally:
            stop_listening()
            await self.close()

    def allow(self, hosts: Collection[str]) -> None:
        """Take `hosts`, which alone are delivered to from now on."""
        self._hosts = frozenset(hosts)

    async def close(self) -> None:
        """End the attempts under way."""
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)
        self._engine.close()

    def _heard(self, _: Notice) -> None:
        self._wake.set()

    async def turn(self) -> None:
        """Begin what is due and has room, and look at how much is kept."""
        try:
            await self._begin_due()
            await self._look()
        except StoreUnavailable:
            pass  # the mailbox says so itself, and the next turn asks again
        except Exception:  # noqa: BLE001 -- one fault must not end the delivering of everything else
            _log.exception("fault of the deliveries")

    async def _begin_due(self) -> None:
        while (room := AT_ONCE - len(self._attempts)) > 0:
            due = await self._mailbox.claim(room, PER_HOST, Counter(self._attempts.values()))
            for delivery in due:
                attempt = asyncio.create_task(self._attempt(delivery))
                self._attempts[attempt] = host_of(delivery.event)
                attempt.add_done_callback(self._ended)
            if not due:
                return

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        del self._attempts[attempt]
        self._wake.set()
        if not attempt.cancelled() and (fault := attempt.exception()) is not None:
            _log.error("fault of a delivery", exc_info=fault)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            standing = await self._mailbox.standing()
            self._metrics.kept(standing.events, standing.waiting, standing.dead)

    async def _attempt(self, delivery: Delivery) -> None:
        result = await self._post(delivery)
        number, repeats = delivery.event.number, delivery.attempt < len(PAUSES) and not result.final
        try:
            if result.delivered:
                await self._mailbox.delivered(number)
            elif repeats:
                pause = PAUSES[delivery.attempt] * (1 + JITTER * self._chance())
                await self._mailbox.failed(number, result.reason, pause)
            else:
                await self._mailbox.failed(number, result.reason, None)
                _log.warning("gave up delivering event %d: %s", number, result.reason)
        except StoreUnavailable:
            pass  # due again when its claim ends
        self._metrics.attempted(
            Attempt.DELIVERED if result.delivered else Attempt.FAILED if repeats else Attempt.GIVEN_UP
        )

    async def _post(self, delivery: Delivery) -> Result:
        event = delivery.event
        aimed = aim(event.forward_url, self._hosts)
        if aimed is None:
            return Result(False, "its host is not in webhooks.allowed_hosts", final=True)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in event.headers]
        headers += self._signer.fields(f"msg_{event.request_id}", int(self._clock()), event.body)
        headers.append((b"user-agent", f"fal-proxy/{__version__}".encode()))
        origin, target = self._route.to(*aimed)
        call: Call | None = None
        status = 0
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                call = await self._engine.open(origin, fresh=True)
                call.start(b"POST", target, headers, length=len(event.body), body=event.body)
                status = (await call.head(ATTEMPT_SECONDS)).status
                await _read_past(call)
        except UpstreamError as error:
            if not status:  # once it has said how it went, how its answer ends is all the same
                return Result(False, error.detail[:REASON_CHARS])
        except TimeoutError:
            if not status:
                return Result(False, f"no answer within {ATTEMPT_SECONDS:g} s")
        except ValueError:
            return Result(False, "it cannot be sent as it is", final=True)
        finally:
            if call is not None:
                call.release()
        return _judged(status)


async def _read_past(call: Call) -> None:
    left = ANSWER_BYTES
    while left > 0 and (data := await call.read(ATTEMPT_SECONDS)):
        left -= len(data)


def _judged(status: int) -> Result:
    if 200 <= status < 300:
        return Result(True)
    note = " (redirects are not followed)" if 300 <= status < 400 else ""
    return Result(False, f"status {status}{note}", final=status == _GONE)
