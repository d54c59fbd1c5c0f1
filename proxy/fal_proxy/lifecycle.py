"""Where in its life this process is: the server moves it on, everybody else looks.

SIGTERM begins LEAVING: everything is served, and `/readyz` says that the end is near, so that a load balancer looks
elsewhere. DRAINING: nothing new is accepted, what runs may end. CUTTING: what still runs is broken off, visibly.
"""

from __future__ import annotations

import enum
from collections.abc import Callable


class Stage(enum.IntEnum):
    """The stages, in their order; none is ever left for an earlier one."""

    SERVING = 0
    LEAVING = 1
    DRAINING = 2
    CUTTING = 3


class Lifecycle:
    """The stage, and who wants to know when nothing new is accepted any more."""

    def __init__(self) -> None:
        self.stage = Stage.SERVING
        self._on_draining: dict[Callable[[], None], None] = {}

    @property
    def draining(self) -> bool:
        """Say whether nothing new is accepted."""
        return self.stage >= Stage.DRAINING

    def on_draining(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called when draining begins; returns what takes that back."""
        self._on_draining[call] = None
        return lambda: self._on_draining.pop(call, None)

    def reach(self, stage: Stage) -> None:
        """Move on, through every stage between."""
        if self.stage < Stage.DRAINING <= stage:
            self.stage = Stage.DRAINING
            for call in list(self._on_draining):
                call()
        self.stage = max(self.stage, stage)
