"""What holds for header fields whatever a caller or an upstream makes up."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from fal_proxy.headers import (
    DOWN,
    NEVER_DOWN,
    OPTIONAL_UP,
    UP,
    Headers,
    billable_units,
    is_active,
    nominated,
    preflight,
    to_downstream,
    to_upstream,
)

KNOWN = sorted(UP | DOWN | OPTIONAL_UP | NEVER_DOWN)
RISKY = [
    b"connection",
    b"proxy-connection",
    b"authorization",
    b"cookie",
    b"set-cookie",
    b"host",
    b"transfer-encoding",
    b"te",
]
NAME = st.sampled_from([*KNOWN, *RISKY, b"x-fal-request-id", b"x-fal-anything", b"x-forwarded-for"]) | st.binary(
    min_size=1, max_size=12
).map(bytes.lower)
# Lists of names, so that Connection fields nominate what is there.
VALUE = (
    st.binary(max_size=20)
    | st.lists(st.sampled_from(KNOWN), max_size=4).map(b" , ".join)
    | st.sampled_from([b"low", b"text/html"])
)
FIELDS = st.lists(st.tuples(NAME, VALUE), max_size=12)
OPENED = st.sets(st.sampled_from(sorted(OPTIONAL_UP)))


def is_part(part: Headers, whole: Headers) -> bool:
    """Say whether every pair of `part` stands in `whole`, in the same order."""
    rest = iter(whole)
    return all(pair in rest for pair in part)


@given(fields=FIELDS, opened=OPENED)
def test_only_listed_unnominated_fields_travel_up_untouched_and_in_order(fields: Headers, opened: set[bytes]) -> None:
    passed = to_upstream(fields, optional=opened)
    assert is_part(passed, fields)
    assert all(name in UP or name in opened for name, _ in passed)
    assert not {name for name, _ in passed} & nominated(fields)
    assert to_upstream(passed, optional=opened) == passed, "once is enough"


@given(fields=FIELDS)
def test_only_listed_unnominated_fields_travel_down_and_nothing_that_a_browser_would_run(fields: Headers) -> None:
    passed = to_downstream(fields)
    assert all(name in DOWN or name.startswith(b"x-fal-") for name, _ in passed)
    assert not {name for name, _ in passed} & (nominated(fields) | NEVER_DOWN)
    assert not any(is_active(value) for name, value in passed if name == b"content-type")
    others = [pair for pair in passed if pair[0] != b"content-type"]
    assert is_part(others, fields)
    assert to_downstream(passed) == passed, "once is enough"


@given(fields=FIELDS, more=FIELDS)
def test_a_field_more_never_opens_the_way_for_another(fields: Headers, more: Headers) -> None:
    assert {name for name, _ in to_upstream(fields + more, optional=())} <= {
        name for part in (fields, more) for name, _ in to_upstream(part, optional=())
    }


@given(requested=st.binary(max_size=60) | st.lists(st.sampled_from(KNOWN)).map(b",".join))
@example(requested=b"a\r\nset-cookie: x")
def test_a_preflight_never_echoes_anything_but_tokens(requested: bytes) -> None:
    granted = preflight(requested)
    for name, value in granted or []:
        if name == b"access-control-allow-headers":
            assert re.fullmatch(rb"[!#-'*+.^_`|~0-9A-Za-z-]+(, [!#-'*+.^_`|~0-9A-Za-z-]+)*", value)


@given(
    lines=st.lists(st.binary(max_size=24) | st.from_regex(rb"[0-9]{1,14}(\.[0-9]{1,9})?", fullmatch=True), max_size=3)
)
def test_units_are_one_plain_number_or_nothing(lines: list[bytes]) -> None:
    found = billable_units(lines)
    if found is not None:
        assert lines == [found.encode()]
        assert 0 <= float(found) < 1e12
        assert found.isascii()


@given(
    content_type=st.binary(max_size=40),
    wrapped=st.sampled_from([b"text/html", b"image/svg+xml", b"application/xhtml+xml", b"text/xml"]),
)
def test_an_active_type_is_active_whatever_stands_around_it(content_type: bytes, wrapped: bytes) -> None:
    assert is_active(wrapped + b";" + content_type)
    assert is_active(content_type + b"," + wrapped)
