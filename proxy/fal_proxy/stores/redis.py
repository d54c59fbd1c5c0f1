"""The shared store: many processes, one Redis (6 or later, or Valkey; one primary, no Cluster), the contract of `stores`.

Keys, all under `fal-proxy:`, and when they end:

    epoch                          which data this is; never
    now                            the latest moment seen, in seconds; never
    rate:<window seconds>:<key>    hits in slots; a window and two slots after the last hit
    slots:<key>                    set of entry ids that hold a slot; 26 h after the last one was taken
    purse:<period>:<label>:<key>   hash spent, reserved; 27 h after the period, never for total
    entry:<entry id>               one reservation; 26 h. The word `void` when it was given up, 3 min; and, with what its
                                   end has changed, in place of one that has ended, 10 min
    record:<request id>            one ownership; 24 h
    owner:<identity>, records      request ids by age, to evict a flood's oldest; 24 h after the last
    leases                         entry ids by the end of their lease; 26 h after the last
    cover:<name>                   until when something is covered; then
    marks                          hash of what is marked, and since when; never
    asks                           request ids by the settler's next question; 24 h after the last
    changes, untold, tellable      how many changes of charges nobody was there to tell of, these by number, and the
                                   numbers by the moment from which a process may tell of them; until told

Every operation is one script and one round trip; its time is Redis' own. Redis must not evict (`maxmemory-policy
noeviction`); what it loses in a crash or a failover is as much as its persistence allows.

**A flushed Redis denies.** The first process to find no epoch writes one; every script compares. A Redis without the
epoch that this process has seen has forgotten every budget, so everything raises StoreUnavailable until the process is
restarted by someone who accepts that.

**Unknown outcomes.** An admission whose answer did not come, or whose caller left, may have happened. Its entry is
voided as soon as Redis answers: released if it is there, refused if it arrives later. At most LATER_MOST such notes wait
in memory; what is lost of them (a crash, an overflow) ends with its lease, 90 s. Settlements wait in the same queue
instead of raising, and an ownership that could not be recorded is both raised and repeated. All of them may be repeated:
a settlement under its mark, so that what it has changed is told once, by whichever process asks for what is untold.

A process that dies stops renewing: its entries without a request id are charged as reserved 90 s later.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from redis.exceptions import ResponseError

from fal_proxy.errors import StoreUnavailable
from fal_proxy.exchange import Payer
from fal_proxy.stores import (
    JOB_LEASE_SECONDS,
    RECORD_SECONDS,
    SLOTS,
    Ask,
    Change,
    Due,
    Outcome,
    Question,
    RateState,
    Record,
    Standing,
    Usage,
    Verdict,
    asks,
    holdings,
    state,
)
from fal_proxy.stores.link import PROBE_SECONDS, Link, NotSent
from fal_proxy.stores.memory import CONCURRENCY_RETRY_SECONDS

MOST_MICROUSD = 2**52  # Lua counts in doubles: of a sum of two that are larger, a micro-dollar could vanish
LATER_MOST = 10_000
# Without a request id: how long an entry outlives its process. `renew` all of them at least three times as often.
REQUEST_LEASE_SECONDS = 90.0
TOMBSTONE_SECONDS = 600.0  # how long Redis knows what the settlement of an ended entry has changed, if nobody heard it
_HERE = Path(__file__).parent
_CONSTANTS = {
    "SLOTS": SLOTS,
    "RECORD": RECORD_SECONDS,
    "REQUEST_LEASE": REQUEST_LEASE_SECONDS,
    "TOMBSTONE": TOMBSTONE_SECONDS,
    "FIRST_ASK": asks.FIRST_ASK_SECONDS,
    "LONGEST_ASK": asks.LONGEST_ASK_SECONDS,
    "LATE_ASKS": asks.LATE_ASKS,
    "CONCURRENCY_RETRY": CONCURRENCY_RETRY_SECONDS,
}
SOURCE = "".join(
    [f"local {name} = {value:.0f}\n" for name, value in _CONSTANTS.items()]
    + [(_HERE / name).read_text("utf-8") for name in ("store.lua", "settling.lua", "operations.lua")]
)
_SHA = hashlib.sha1(SOURCE.encode(), usedforsecurity=False).hexdigest()

T = TypeVar("T")


class RedisStore:
    """`Store` in one Redis, for any number of processes."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        """Connect with the first call; `clock` replaces Redis' time in tests. Raises ValueError for a bad URL."""
        self._link = Link(url)
        self._clock = clock
        self._epoch: str | None = None
        self._proposal = uuid.uuid4().hex
        self._lost = False
        self._later: deque[tuple[str, object]] = deque(maxlen=LATER_MOST)
        self._sender: asyncio.Task[None] | None = None
        self._marks = itertools.count()

    @property
    def may_be_marked(self) -> bool:
        """Anything, by any process and at any time."""
        return True

    @property
    def available(self) -> bool:
        """Whether the last thing heard of Redis was good."""
        return not self._lost and not self._link.broken

    async def ping(self) -> None:
        """Return if Redis answers with our data. Raises StoreUnavailable."""
        await self._run("renew", ())

    async def admit(self, ask: Ask) -> Verdict:
        """Judge and reserve in one step. Raises ValueError for amounts that Redis cannot count exactly."""
        if max([ask.amount_microusd, *(budget.limit_microusd for budget in ask.budgets)]) > MOST_MICROUSD:
            raise ValueError(f"amounts above {MOST_MICROUSD} micro-dollars cannot be counted exactly in Redis")
        try:
            return await self._ask("admit", ask, Verdict)
        except NotSent:
            raise
        except (StoreUnavailable, asyncio.CancelledError):
            if ask.entry_id:
                self._send_later("void", ask.entry_id)
            raise

    async def submitted(self, record: Record, lease_seconds: float = JOB_LEASE_SECONDS) -> None:
        """Record the ownership of a request id."""
        submission = {
            "record": record,
            "lease_seconds": lease_seconds,
            "flooder": holdings.flooder(record.owners),
            "most_per_owner": state.MAX_RECORDS_PER_OWNER,
            "most": state.MAX_RECORDS,
        }
        try:
            await self._run("submitted", submission)
        except (StoreUnavailable, asyncio.CancelledError):
            self._send_later("submitted", submission)
            raise

    async def settle(
        self, entry_id: str, outcome: Outcome, amount_microusd: int = 0, *, by: Payer | None = None, onto: str = ""
    ) -> int:
        """Replace an entry's reservation and free its slot; later, if Redis is away now, and 0 is returned."""
        if amount_microusd > MOST_MICROUSD:
            raise ValueError(f"amounts above {MOST_MICROUSD} micro-dollars cannot be counted exactly in Redis")
        asked = (entry_id, outcome, amount_microusd, by, onto, f"{self._proposal[:12]}-{next(self._marks):x}")
        reply = await self._now_or_later("settle", (*asked, False), (*asked, True))
        return 0 if reply is None else int(msgspec.msgpack.decode(reply, type=float))

    async def untold(self, told: Sequence[int] = ()) -> Sequence[Change]:
        """Return charges that changed with nobody there to tell of it; those of a process that died come again."""
        return await self._ask("untold", told, list[Change])

    async def completed(self, request_id: str) -> None:
        """Note that fal called the job COMPLETED; later, if Redis is away now."""
        await self._now_or_later("completed", request_id)

    async def hasten(self, request_id: str) -> None:
        """Let the settler of any process ask about a job now; later, if Redis is away now."""
        await self._now_or_later("hasten", request_id)

    async def find(self, request_id: str) -> Record | None:
        """Return the record of a request id."""
        return await self._ask("find", request_id, Record | None)

    async def due(self, limit: int) -> Sequence[Due]:
        """Claim jobs that nobody has asked about for long enough, in this or any other process."""
        return await self._ask("due", limit, list[Due])

    async def standing(self, question: Question) -> Standing:
        """Return where a caller stands."""
        found: dict[str, list[Any]] = await self._ask("standing", question, dict)
        return Standing(
            tuple(RateState(*rate) for rate in found["rates"]),
            tuple(found["in_use"]),
            tuple(Usage(spent, reserved, ends or None) for spent, reserved, ends in found["budgets"]),
            tuple(found["marked"]),
        )

    async def renew(self, entry_ids: Sequence[str]) -> None:
        """Extend the leases of entries that this process still answers; call it at least every 30 s."""
        if entry_ids:
            await self._run("renew", entry_ids)

    async def extend(self, name: str, seconds: float) -> float:
        """Cover a name for a while; return what was covered already."""
        return float(await self._ask("extend", (name, seconds), float))

    async def mark(self, name: str) -> None:
        """Let no admission of any process pass that names it."""
        await self._run("mark", name)

    async def unmark(self, name: str) -> None:
        """Take a mark away."""
        await self._run("unmark", name)

    async def marks(self) -> Mapping[str, float]:
        """Return what is marked, and since when."""
        found: dict[str, float] | None = await self._ask("marks", None, dict[str, float])
        return found or {}

    async def forget(self, question: Question) -> None:
        """Let rates and what budgets have spent begin at zero."""
        await self._run("forget", question)

    async def running(self, periods: Sequence[str]) -> list[tuple[str, float | None]]:
        """Return the scripts' idea of each period's label and end: `periods` in Lua, to be compared."""
        found: list[tuple[str, Any]] = await self._ask("running", periods, list)
        return [(label, ends or None) for label, ends in found]

    async def close(self) -> None:
        """Send what waits if Redis answers, and let go."""
        if (sender := self._sender) is not None:
            if self.available:
                await asyncio.wait([sender], timeout=PROBE_SECONDS)
            sender.cancel()
            await asyncio.wait([sender])
        await self._link.close()

    async def _ask(self, operation: str, argument: object, expected: type[T] | Any) -> T:
        reply = await self._run(operation, argument)
        return msgspec.msgpack.decode(reply, type=expected) if reply is not None else None  # type: ignore[return-value]

    async def _run(self, operation: str, argument: object) -> Any:
        """One round trip, but for the first after a restart of Redis."""
        if self._lost:
            raise NotSent("Redis has lost its data: restart to begin anew")
        seen = self._epoch
        moment = "" if self._clock is None else repr(self._clock())
        try:
            arguments = (0, seen or "", self._proposal, moment, operation, msgspec.msgpack.encode(argument))
            reply = await self._link.call(("EVALSHA", _SHA, *arguments), ("EVAL", SOURCE, *arguments))
        except ResponseError as error:
            if str(error).startswith("EPOCH"):
                self._lost = True
            raise NotSent(f"Redis: {error}") from error
        if seen is None:
            epoch, reply = reply
            self._epoch = self._epoch or epoch.decode()
        return reply

    async def _now_or_later(self, operation: str, argument: object, repeated: object = None) -> Any:
        try:
            return await self._run(operation, argument)
        except StoreUnavailable:
            self._send_later(operation, repeated or argument)
            return None
        except asyncio.CancelledError:
            self._send_later(operation, repeated or argument)
            raise

    def _send_later(self, operation: str, argument: object) -> None:
        self._later.append((operation, argument))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._later and not self._lost:
            await self._link.answering()
            note = self._later[0]
            try:
                await self._run(*note)
            except StoreUnavailable:
                self._later.rotate(-1)  # one that Redis keeps refusing must not hold up the others
                await asyncio.sleep(PROBE_SECONDS)
                continue
            if self._later and self._later[0] is note:  # newer ones may have pushed it out meanwhile
                self._later.popleft()
        self._later.clear()
        self._sender = None
