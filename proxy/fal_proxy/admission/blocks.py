"""What an operator has stopped: the names of the store's marks, and what callers are told about them."""

from __future__ import annotations

from collections.abc import Iterable

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, shown_of

PAID = "paid"  # marked: nothing that costs money begins, and nothing is renewed
_CALLER = "caller:"


def name_of(shown: str) -> str:
    """Return the mark that blocks whoever is shown so."""
    return _CALLER + shown


def callers_in(marks: Iterable[str]) -> list[str]:
    """Return who is blocked, as they are shown."""
    return [name.removeprefix(_CALLER) for name in marks if name.startswith(_CALLER)]


def marks_of(caller: Caller, *, paid: bool) -> tuple[str, ...]:
    """Return what must not be marked for a request of the caller's: themselves, the network behind them, all that is paid."""
    names: tuple[str, ...] = (_CALLER + shown_of(caller.id),)
    if caller.network and caller.network != caller.id:
        names += (_CALLER + shown_of(caller.network),)
    return (*names, PAID) if paid else names


def blocked(name: str) -> Refusal:
    """Return the refusal of what names a mark."""
    if name == PAID:
        detail = "the operator of this proxy has stopped everything that costs money; what is free still works"
    else:
        detail = "the operator of this proxy has blocked you, or the network that you call from"
    return Refusal("blocked", detail)
