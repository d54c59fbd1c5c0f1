"""The price feed: fal's own prices, fetched when they are first needed, kept while they are fresh. Decides no precedence.

What a caller can do with made-up ids is bounded on every side: an id that fal has no price for is remembered as such;
so many may wait, so many are asked about at once, and so many questions go out per second, however many callers ask.
What was priced before, or is named by a plan, is asked about first and apart, so that made-up ids cannot spoil its
answer: fal's documentation allows a 404 for a whole question, which is then asked again by halves.

A price counts until `max_age_seconds`, whatever becomes of the question for a newer one, and also if fal leaves it out: one
answer with holes must not make everything cheaper. Failures pause all questions.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection

from fal_proxy.errors import Refusal
from fal_proxy.identity.forward import Remembered
from fal_proxy.platform_api import PlatformApi, PlatformError
from fal_proxy.platform_api.price_file import MAX_PRICES, Fetched, PriceFile, PriceFileError
from fal_proxy.platform_api.prices import MOST_IDS, ask_prices, is_askable
from fal_proxy.policy.pricing import Price
from fal_proxy.settings import PriceFeed
from fal_proxy.upstream.keys import KeyPool

WAIT_SECONDS = 2.0  # of one request for a price
SPACING_SECONDS = 0.25  # between two questions
MAX_WAITING = 200
ABSENT_SECONDS = 600.0
MAX_ABSENT = 2000
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
_log = logging.getLogger("fal_proxy.prices")


class Feed:
    """The fetched prices of one process."""

    def __init__(
        self,
        settings: PriceFeed,
        api: PlatformApi,
        keys: KeyPool,
        named: Collection[str],
        file: PriceFile | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `named`: the ids, plainly spelled, that plans name; `now` is the wall clock, which files need."""
        self.lookups = 0  # questions that were asked
        self.failures = 0
        self._settings = settings
        self._api = api
        self._keys = keys
        self._named = frozenset(named)
        self._file = file
        self._now = now
        self._clock = clock
        self._known: dict[str, Fetched] = {}
        self._absent = Remembered[None](MAX_ABSENT, ABSENT_SECONDS, clock)
        self._waiting: dict[str, asyncio.Future[bool]] = {}  # whether fal answered
        self._halves: deque[list[str]] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self._pause = 0.0
        self._resume_at = 0.0
        self._file_fault = ""
        if file is not None:
            try:
                self._known = file.read()
            except PriceFileError as error:
                _log.warning("price_feed.file %s: it is ignored", error)

    def follow(self, settings: PriceFeed, named: Collection[str], file: PriceFile | None) -> None:
        """Go by other settings from now on; what is known stays known, and goes into the file with the next price."""
        self._settings, self._named, self._file = settings, frozenset(named), file

    @property
    def known(self) -> int:
        """Return how many prices are fetched, old ones included."""
        return len(self._known)

    def age_seconds(self) -> float:
        """Return how long ago fal last named a price; 0 before the first."""
        latest = max((fetched.at for fetched in self._known.values()), default=self._now())
        return max(self._now() - latest, 0.0)

    async def price_of(self, plain_id: str) -> Price | None:
        """Return what fal asks for a unit, None if it names no price. Raises Refusal store_unavailable."""
        fetched, key = self._counting(plain_id), plain_id.encode()
        if fetched is not None:
            if self._age(fetched) >= self._settings.refresh_seconds and key not in self._absent:
                self._want(plain_id)
            return fetched.offer.price
        if not is_askable(plain_id) or key in self._absent:
            return None
        answered = self._want(plain_id)
        if answered is None:
            raise self._unavailable(plain_id)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                if not await asyncio.shield(answered):
                    raise self._unavailable(plain_id)
        except TimeoutError:
            raise self._unavailable(plain_id) from None
        fetched = self._counting(plain_id)
        return None if fetched is None else fetched.offer.price

    async def close(self) -> None:
        """End what is under way and close connections."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        self._release(answered=False)
        await self._api.close()

    def _counting(self, plain_id: str) -> Fetched | None:
        fetched = self._known.get(plain_id)
        return fetched if fetched is not None and self._age(fetched) < self._settings.max_age_seconds else None

    def _age(self, fetched: Fetched) -> float:
        age = self._now() - fetched.at
        return age if age > -1 else math.inf  # the clock stepped back: nobody knows how old it is

    def _want(self, plain_id: str) -> asyncio.Future[bool] | None:
        """Return what tells when fal was asked about the id, None where nobody may ask at the moment."""
        waiting = self._waiting.get(plain_id)
        if waiting is not None:
            return waiting
        if self._clock() < self._resume_at or len(self._waiting) >= MAX_WAITING:
            return None
        loop = asyncio.get_running_loop()
        waiting = self._waiting[plain_id] = loop.create_future()
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask())
        return waiting

    async def _ask(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(self._next_at - self._clock())
                self._next_at = self._clock() + SPACING_SECONDS
                await self._ask_about(self._next_batch())
        except PlatformError as error:
            self._failed(error.detail)
        except Exception:  # noqa: BLE001 -- one fault must not end the fetching of prices for good
            _log.exception("fault of the price feed")
            self._failed("a fault of ours")
        finally:
            self._halves.clear()
            self._release(answered=False)

    def _next_batch(self) -> list[str]:
        trusted = [name for name in self._waiting if name in self._named or name in self._known]
        if trusted and not (self._halves and self._halves[0][0] in trusted):
            queued = {name for half in self._halves for name in half}
            if fresh := [name for name in trusted if name not in queued]:
                return fresh[:MOST_IDS]
        if self._halves:
            return self._halves.popleft()
        return list(self._waiting)[:MOST_IDS]

    async def _ask_about(self, batch: list[str]) -> None:
        self.lookups += 1
        keys = self._keys.accepted()
        if not keys:
            raise PlatformError("no fal key is usable")
        key = keys[self.failures % len(keys)]  # after a failure the next one: it may be the key
        try:
            found = await ask_prices(self._api, batch, key.secret)
        except PlatformError as error:
            if error.status not in (400, 404):
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                self._halves.extendleft([batch[middle:], batch[:middle]])
                return
            if error.status == 400 and batch[0] in self._known:
                raise  # it knew this id: it is the question that it does not like
            found = {}
        self._pause = 0.0
        now = self._now()
        for name in batch:
            if name in found:
                self._known.pop(name, None)
                self._known[name] = Fetched(found[name], now)  # last, so that the first is the oldest
            else:
                self._absent.put(name.encode(), None)
                if name in self._known:
                    _log.warning("fal names no price for %s any more; the last one counts until it is too old", name)
        while len(self._known) > MAX_PRICES:
            del self._known[next(iter(self._known))]
        self._release(batch, answered=True)
        if found:
            await self._save()

    def _failed(self, detail: str) -> None:
        self.failures += 1
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._resume_at = self._clock() + self._pause
        _log.warning("fal cannot be asked for prices: %s; the next question in %g s", detail, self._pause)

    def _release(self, names: Collection[str] | None = None, *, answered: bool) -> None:
        for name in list(self._waiting) if names is None else names:
            waiting = self._waiting.pop(name, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answered)

    async def _save(self) -> None:
        if self._file is None:
            return
        fault = ""
        try:
            await asyncio.to_thread(self._file.write, dict(self._known))
        except PriceFileError as error:
            fault = str(error)
        except OSError as error:
            fault = f"cannot be written: {error.strerror or error}"
        if fault and fault != self._file_fault:
            _log.warning("price_feed.file %s", fault)
        self._file_fault = fault

    def _unavailable(self, plain_id: str) -> Refusal:
        seconds = max(1, math.ceil(self._resume_at - self._clock()))
        detail = (
            f"what {plain_id} costs cannot be asked of fal right now, and budgets need to know; repeat it in a moment"
        )
        return Refusal("store_unavailable", detail, headers=((b"retry-after", b"%d" % seconds),))
