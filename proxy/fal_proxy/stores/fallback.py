"""`on_failure = "local"`: while the shared store is away, rates and concurrency go on in this process alone.

Whatever needs a budget or a recorded ownership still raises StoreUnavailable: forgetting these costs money or privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fal_proxy.errors import StoreUnavailable
from fal_proxy.exchange import Payer
from fal_proxy.stores import JOB_LEASE_SECONDS, Ask, Change, Due, Outcome, Question, Record, Standing, Store, Verdict
from fal_proxy.stores.memory import MemoryStore


class FallbackStore:
    """A shared store with a local one behind it."""

    def __init__(self, shared: Store) -> None:
        self._shared = shared
        self._local = MemoryStore()
        self._local_entries: set[str] = set()

    @property
    def may_be_marked(self) -> bool:
        """Whatever the shared store says."""
        return self._shared.may_be_marked

    async def admit(self, ask: Ask) -> Verdict:
        """Admit in the shared store, or locally what needs neither money nor memory."""
        try:
            return await self._shared.admit(ask)
        except StoreUnavailable:
            if ask.owns is not None or ask.budgets or ask.records:
                raise
        verdict = await self._local.admit(ask)
        if verdict.denied is None and ask.entry_id:
            self._local_entries.add(ask.entry_id)
        return verdict

    async def submitted(self, record: Record, lease_seconds: float = JOB_LEASE_SECONDS) -> None:
        """Record in the shared store only."""
        await self._shared.submitted(record, lease_seconds)

    async def settle(
        self, entry_id: str, outcome: Outcome, amount_microusd: int = 0, *, by: Payer | None = None, onto: str = ""
    ) -> int:
        """Settle where the entry was admitted."""
        if entry_id in self._local_entries:
            self._local_entries.discard(entry_id)
            return await self._local.settle(entry_id, outcome, amount_microusd)
        return await self._shared.settle(entry_id, outcome, amount_microusd, by=by, onto=onto)

    async def untold(self, told: Sequence[int] = ()) -> Sequence[Change]:
        """Ask the shared store: what is admitted locally costs nothing."""
        return await self._shared.untold(told)

    async def completed(self, request_id: str) -> None:
        """Note it in the shared store."""
        await self._shared.completed(request_id)

    async def hasten(self, request_id: str) -> None:
        """Let the shared store do it."""
        await self._shared.hasten(request_id)

    async def find(self, request_id: str) -> Record | None:
        """Ask the shared store."""
        return await self._shared.find(request_id)

    async def due(self, limit: int) -> Sequence[Due]:
        """Ask the shared store, and take note of what is marked there: what was stopped stays so while it is away."""
        self._local.state.marks = dict(await self._shared.marks())
        return await self._shared.due(limit)

    async def standing(self, question: Question) -> Standing:
        """Ask the shared store."""
        return await self._shared.standing(question)

    async def renew(self, entry_ids: Sequence[str]) -> None:
        """Renew what the shared store admitted."""
        await self._shared.renew([entry_id for entry_id in entry_ids if entry_id not in self._local_entries])

    async def extend(self, name: str, seconds: float) -> float:
        """Extend in the shared store only: what is covered is paid for."""
        return await self._shared.extend(name, seconds)

    async def mark(self, name: str) -> None:
        """Mark in the shared store, and here at once."""
        await self._shared.mark(name)
        await self._local.mark(name)

    async def unmark(self, name: str) -> None:
        """Unmark in both."""
        await self._shared.unmark(name)
        await self._local.unmark(name)

    async def marks(self) -> Mapping[str, float]:
        """Ask the shared store."""
        return await self._shared.marks()

    async def forget(self, question: Question) -> None:
        """Forget in both."""
        await self._shared.forget(question)
        await self._local.forget(question)

    async def ping(self) -> None:
        """Ask the shared store."""
        await self._shared.ping()

    async def close(self) -> None:
        """Close both."""
        await self._shared.close()
        await self._local.close()
