"""Our own errors: the types are rows of the contract's table, and their rendering is the same everywhere."""

from __future__ import annotations

import msgspec
import pytest

from fal_proxy import errors
from fal_proxy.errors import ERROR_TYPES, FalProxyError, Misconfigured, Refusal, UpstreamError, render

# The contract's whole table; a version may know a part of it, and nothing else.
CONTRACT = {
    400: ["invalid_target", "bad_request"],
    401: ["unidentified"],
    402: ["budget_exhausted"],
    403: ["origin_denied", "endpoint_denied", "webhook_denied", "mode_off", "blocked"],
    404: ["unknown_request", "not_found"],
    405: ["method_not_allowed"],
    408: ["request_timeout"],
    410: ["capability_expired"],
    411: ["length_required"],
    413: ["body_too_large"],
    421: ["misdirected_host"],
    422: ["input_denied"],
    429: ["rate_limited", "concurrency_limited"],
    431: ["header_too_large"],
    500: ["upstream_outcome_unknown", "internal_error"],
    502: ["upstream_unreachable", "upstream_invalid"],
    503: ["store_unavailable", "identity_unavailable", "no_usable_key", "draining"],
    504: ["upstream_timeout"],
}
STATUSES = {name: status for status, names in CONTRACT.items() for name in names}
# What this version can answer; the rest of the table comes with the features that need it.
REACHABLE = [
    "invalid_target",
    "bad_request",
    "unidentified",
    "origin_denied",
    "endpoint_denied",
    "webhook_denied",
    "mode_off",
    "not_found",
    "method_not_allowed",
    "body_too_large",
    "misdirected_host",
    "upstream_outcome_unknown",
    "internal_error",
    "upstream_unreachable",
    "upstream_invalid",
    "upstream_timeout",
]


def test_every_type_is_a_row_of_the_contract_with_its_status() -> None:
    assert {name: kind.status for name, kind in ERROR_TYPES.items()}.items() <= STATUSES.items()
    assert set(REACHABLE) <= set(ERROR_TYPES)
    assert all(kind.meaning for kind in ERROR_TYPES.values())


@pytest.mark.parametrize("name", REACHABLE)
def test_refusal_takes_its_status_from_the_table(name: str) -> None:
    refusal = Refusal(name, "why", headers=((b"allow", b"GET"),))
    assert (refusal.error_type, refusal.status, refusal.detail) == (name, STATUSES[name], "why")
    assert refusal.headers == ((b"allow", b"GET"),)
    assert str(refusal) == "why"


def test_refusal_of_an_unknown_type_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        Refusal("teapot", "why")


def test_rendering_shows_the_detail_to_both_clients_and_marks_it_as_ours() -> None:
    headers, body = render("bad_request", 'a "quoted" ☃ reason')
    assert headers == [(b"x-fal-error-type", b"bad_request")]
    assert msgspec.json.decode(body) == {
        "detail": 'a "quoted" ☃ reason',
        "message": 'a "quoted" ☃ reason',
        "error_type": "bad_request",
    }


def test_every_error_of_ours_has_one_root() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 9
    assert all(issubclass(kind, FalProxyError) for kind in kinds)


def test_upstream_errors_name_a_type_that_exists_and_say_what_was_written() -> None:
    kinds: list[type[UpstreamError]] = [UpstreamError, *UpstreamError.__subclasses__()]
    expected = {
        "UpstreamError": "upstream_unreachable",
        "ConnectError": "upstream_unreachable",
        "ConnectTimeout": "upstream_timeout",
        "UpstreamTimeout": "upstream_timeout",
        "UpstreamCut": "upstream_unreachable",
        "UpstreamInvalid": "upstream_invalid",
    }
    assert {kind.__name__: kind.error_type for kind in kinds} == expected
    assert not UpstreamError("why").written
    assert UpstreamError("why", written=True).written


def test_misconfigured_carries_every_finding() -> None:
    error = Misconfigured(["a: b", "c: d"])
    assert error.findings == ["a: b", "c: d"]
    assert str(error) == "a: b; c: d"
