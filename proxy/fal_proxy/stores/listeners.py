"""Who is called for every event that is filed; one that fails is no reason to leave out the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fal_proxy.stores.mailbox import Listener, Notice

_log = logging.getLogger(__name__)


class Listeners:
    """Call them with `tell`."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def add(self, listener: Listener) -> Callable[[], None]:
        """Begin to call a listener; return what ends that."""
        name = object()
        self._listeners[name] = listener

        def end() -> None:
            self._listeners.pop(name, None)

        return end

    def tell(self, notice: Notice) -> None:
        """Call all of them."""
        for listener in list(self._listeners.values()):
            try:
                listener(notice)
            except Exception:  # noqa: BLE001 -- whoever files an event must not pay for one who listens
                _log.exception("fault of a listener to events")
