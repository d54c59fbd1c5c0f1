"""Everything one emulator remembers and how it makes identifiers; the handlers of the hosts share it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from random import Random
from uuid import UUID

from .access import Access
from .bills import Bills
from .files import Files
from .jobs import Jobs
from .pictures import Gallery
from .signing import Signer

_MICROSECOND = Decimal("0.000001")


@dataclass
class World:
    """The state of one emulator; `rng` is the source of chance, `clock` the only source of time."""

    rng: Random
    clock: Callable[[], float]
    speed: float
    access: Access
    files: Files
    jobs: Jobs
    bills: Bills
    signer: Signer

    def seconds_since(self, moment: float) -> Decimal:
        """Return the seconds that have passed on the clock, exact to the microsecond and never less than passed."""
        passed = max(0.0, self.clock() - moment)
        return Decimal(passed).quantize(_MICROSECOND, ROUND_CEILING)

    def new_id(self) -> str:
        """Make a request id, a version 4 UUID."""
        return str(UUID(int=self.rng.getrandbits(128), version=4))


def new_world(
    public_url: str,
    speed: float,
    seed: int | None,
    api_keys: Collection[str] | None,
    clock: Callable[[], float],
    admin_keys: Collection[str] | None = None,
) -> World:
    """Make the state of a new emulator; without a seed every one differs."""
    rng = Random(seed)  # noqa: S311 (an emulator's secrets guard nothing, and a seed must reproduce them)
    access = Access(rng, clock, api_keys, admin_keys)
    files, jobs = Files(public_url, rng, clock, Gallery()), Jobs(clock)
    return World(rng, clock, speed, access, files, jobs, Bills(clock), Signer(seed))
