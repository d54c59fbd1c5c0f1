"""Tickets by themselves: what they say comes back, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.identity.ticket import Tickets
from fal_proxy.policy.target import resolve_socket

OLD, NEW = Secret("an old signing secret, long enough"), Secret("a new signing secret, long enough")
ADA = Caller(
    "anonymous::ada", "anonymous", "default", ambient=True, network="net", proves=frozenset(["x"]), owners=("a", "b")
)
NOW = 1000.0


def tickets(*secrets: Secret, now: float = NOW, seconds: int = 120) -> Tickets:
    return Tickets(secrets or (OLD,), seconds, lambda: now)


ISSUED = tickets().issue(ADA, "fast-lcm", "https://app.example").encode()


def test_a_ticket_knows_its_caller_app_and_page_and_is_attached_by_nobody() -> None:
    ticket = tickets().read(tickets().issue(ADA, "fast-lcm", "https://app.example").encode())
    known = ticket.known()
    assert (known.id, known.source, known.plan, known.network) == (ADA.id, ADA.source, ADA.plan, ADA.network)
    assert (known.owners, known.proves, known.ambient) == (("a", "b"), frozenset([ADA.id, "a", "b"]), False)
    assert (ticket.app, ticket.origin, ticket.ends) == ("fast-lcm", "https://app.example", NOW + 120)


def test_no_two_tickets_are_the_same() -> None:
    made = {tickets().read(tickets().issue(ADA, "a", None).encode()).id for _ in range(100)}
    assert len(made) == 100


def test_an_older_secret_still_opens_and_a_forgotten_one_does_not() -> None:
    value = tickets(OLD).issue(ADA, "a", None).encode()
    assert tickets(OLD, NEW).read(value).app == "a"
    with pytest.raises(Refusal, match="no ticket"):
        tickets(NEW).read(value)


@pytest.mark.parametrize(("later", "open_"), [(119.9, True), (120.0, False), (1e9, False), (-1e6, True)])
def test_a_ticket_is_over_at_its_end(later: float, open_: bool) -> None:
    value = tickets().issue(ADA, "a", None).encode()
    reader = tickets(now=NOW + later)
    if open_:
        assert reader.read(value).app == "a"
    else:
        with pytest.raises(Refusal, match="over") as refused:
            reader.read(value)
        assert refused.value.error_type == "unidentified"


def test_what_the_same_secret_signed_for_something_else_is_no_ticket() -> None:
    value = tickets().issue(ADA, "a", None)
    payload = URLSafeSerializer(OLD.reveal(), salt=b"fal-proxy realtime ticket").loads_unsafe(value)[1]
    other = URLSafeSerializer(OLD.reveal(), salt=b"anonymous").dumps(payload)
    with pytest.raises(Refusal, match="no ticket"):
        tickets().read(str(other).encode())


@given(st.binary(max_size=300))
def test_bytes_are_no_ticket(value: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        tickets().read(value)
    assert refused.value.error_type == "unidentified"


@given(st.data())
def test_a_ticket_with_one_byte_changed_is_none(data: st.DataObject) -> None:
    value = bytearray(ISSUED)
    at = data.draw(st.integers(0, len(value) - 2))  # the last character has bits that mean nothing
    value[at] ^= data.draw(st.integers(1, 127))
    with pytest.raises(Refusal):
        tickets().read(bytes(value))


OPENS = [
    ("fast-lcm", "/fal-ai/fast-lcm/realtime", True, "the alias, as the JavaScript client says it"),
    ("fast-lcm", "/other/fast-lcm/realtime", True, "of any owner, as with fal"),
    ("fast-lcm", "/fal-ai/fast-lcm/image/realtime", True, "any path of the app"),
    ("fast-lcm", "/fal-ai/flux/fast-lcm/realtime", False, "the alias elsewhere"),
    ("fast-lcm", "/fast-lcm/flux/realtime", False, "as an owner"),
    ("fal-ai/fast-lcm", "/fal-ai/fast-lcm/realtime", True, "owner and alias"),
    ("fal-ai/fast-lcm", "/fal-ai/fast-lcm/image/realtime", True, "any path of it"),
    ("fal-ai/fast-lcm", "/fal-ai/fast-lcm-2/realtime", False, "only a prefix"),
    ("fal-ai/fast-lcm", "/other/fast-lcm/realtime", False, "another owner"),
    ("fal-ai/fast-lcm/realtime", "/fal-ai/fast-lcm/realtime", True, "the documentation's form"),
    ("fal-ai/flux/dev", "/fal-ai/flux/dev/realtime", True, "a whole path"),
    ("fal-ai/flux/dev", "/fal-ai/flux/schnell/realtime", False, "another path of the app"),
    ("fal-ai/flux/dev", "/fal-ai/flux/realtime", False, "the app of a path"),
    ("flow", "/workflows/ada/flow", True, "an alias in a namespace"),
    ("ada", "/workflows/ada/flow", False, "the owner in a namespace"),
    ("workflows/ada/flow", "/workflows/ada/flow/realtime", True, "namespace, owner and alias"),
    ("comfy/ada", "/comfy/ada/flow", False, "not the whole name"),
]


@pytest.mark.parametrize(("app", "path", "opens", "reason"), OPENS, ids=[row[3] for row in OPENS])
def test_a_ticket_opens_what_it_was_asked_for(app: str, path: str, opens: bool, reason: str) -> None:
    ticket = tickets().read(tickets().issue(ADA, app, None).encode())
    endpoint_id = resolve_socket(b"https://fal.run" + path.encode()).endpoint_id
    assert ticket.opens(endpoint_id) is opens, reason
