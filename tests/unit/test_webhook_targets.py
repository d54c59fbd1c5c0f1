"""Where a client may have a job's end sent: the form of the URL, its host, and what a submit's query becomes."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.callbacks import Callbacks
from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Kind, Target
from fal_proxy.identity.capability import Callback, Seals
from fal_proxy.policy.target import MAX_TARGET_BYTES, resolve
from fal_proxy.policy.webhooks import judge
from support.corpus import Case, cases
from support.target_rules import webhook_fits

HOSTS = ("app.example.com", "hooks.example.com")
SUBMIT = "https://queue.fal.run/fal-ai/flux/dev"
ADA = Caller("key::ada", "key", "default", ambient=False, owners=("key::ada",))
BASE = "https://proxy.example.com/api/fal/proxy/webhooks/"
SEALS = Seals(Callback, b"fal-proxy webhook", [Secret("a secret of thirty-two bytes, or more")])
HUB = Callbacks(frozenset(HOSTS), BASE, SEALS)


def submit(webhook: str, encode: bool = True) -> Target:
    """Return a submit with this webhook."""
    return resolve(f"{SUBMIT}?fal_webhook={quote(webhook, safe='') if encode else webhook}".encode(), "POST")


ACCEPTED = [
    ("https://app.example.com", "a bare host"),
    ("https://app.example.com/", "a root"),
    ("https://app.example.com:443/hook", "the scheme's own port"),
    ("https://hooks.example.com/a/b?job=1&x=%2F", "a path and a query"),
    ("https://hooks.example.com/a?next=https://elsewhere.example/", "whatever the query holds"),
    ("https://app.example.com/a+b", "a plus, written %2B"),
]
DENIED = [
    ("", "none at all"),
    ("http://app.example.com/", "not encrypted"),
    ("HTTPS://app.example.com/", "one spelling"),
    ("https://evil.example/", "not listed"),
    ("https://APP.example.com/", "exactly as listed"),
    ("https://app.example.com./", "a dot at the end"),
    ("https://sub.app.example.com/", "below a listed one"),
    ("https://app.example.com.evil.example/", "listed as a prefix"),
    ("https://evilapp.example.com/", "listed as a suffix"),
    ("https://app.example.com:8443/", "another port"),
    ("https://app.example.com:/", "an empty port"),
    ("https://app.example.com:0443/", "a port in another spelling"),
    ("https://app.example.com@evil.example/", "listed as a user"),
    ("https://u:p@app.example.com/", "userinfo"),
    ("https://app.example.com\\@evil.example/", "a backslash"),
    ("https://app.example.com%2F@evil.example/", "escaped twice"),
    ("https://app%2Eexample.com/", "an escape in the host"),
    ("https://app.example.com?x", "no path before the query"),
    ("https://app.example.com/#a", "a fragment"),
    ("https://app.example.com#.evil.example/", "a fragment for a path"),
    ("https://app.example.com/a b", "a space"),
    ("https://app.example.com/\r\nHost: evil.example", "line breaks"),
    ("https://app.example.com/\x00", "a NUL"),
    ("https://app.example.com/é", "no ASCII"),
    ("https://app.example.com/%", "half an escape"),
    ("https://app.example.com/%zz", "no escape"),
    ("//app.example.com/", "no scheme"),
    ("https:app.example.com/", "no slashes"),
    ("https:///app.example.com/", "too many"),
    (" https://app.example.com/", "a space before it"),
    ("https://app.example.com/\n", "a newline behind it"),
    ("https://127.0.0.1/", "an address"),
    ("https://[::1]/", "an address"),
    ("file:///etc/passwd", "another scheme"),
]


@pytest.mark.parametrize(("webhook", "reason"), ACCEPTED)
def test_a_webhook_on_a_listed_host_is_accepted_as_it_is(webhook: str, reason: str) -> None:
    target = submit(webhook)
    assert judge(target, HOSTS) == webhook, reason
    assert Callbacks(frozenset(HOSTS)).judge(target, ADA) == target, "without the hub it goes to fal untouched"


@pytest.mark.parametrize(("webhook", "reason"), DENIED)
def test_any_other_webhook_is_denied_with_the_hub_and_without(webhook: str, reason: str) -> None:
    for callbacks in (HUB, Callbacks(frozenset(HOSTS))):
        with pytest.raises(Refusal) as refused:
            callbacks.judge(submit(webhook), ADA)
        assert (refused.value.status, refused.value.error_type) == (403, "webhook_denied"), reason


def test_a_plus_in_the_query_is_a_space_to_some_and_denied() -> None:
    with pytest.raises(Refusal, match="webhook"):
        judge(submit("https://app.example.com/a+b", encode=False), HOSTS)


def test_escapes_are_undone_once() -> None:
    assert judge(submit("https://app.example.com/a%252Fb", encode=False), HOSTS) == "https://app.example.com/a%2Fb"
    with pytest.raises(Refusal, match="webhook"):
        judge(submit("https%253A%252F%252Fapp.example.com%252F", encode=False), HOSTS)


def test_nobody_may_choose_until_a_host_is_listed() -> None:
    with pytest.raises(Refusal, match="allowed_hosts"):
        judge(submit("https://app.example.com/"), ())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.why[:60])
def test_the_corpus_and_the_rules_agree_about_webhooks(case: Case) -> None:
    if len(case.lines) != 1 or b"fal_webhook" not in case.lines[0]:
        return
    try:
        target = resolve(case.lines[0], case.method)
        judge(target, HOSTS)
        accepted = True
    except Refusal:
        accepted = False
    assert accepted == case.allowed, case.why


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"https://", b"https://app.example.com", b"https://app.example.com/"])
)
def test_whatever_is_accepted_fits_the_rules_of_the_contract_too(tail: bytes, head: bytes) -> None:
    target = Target(
        b"queue.fal.run", b"/a/b", b"fal_webhook=" + quote(head + tail).encode(), Kind.SUBMIT, webhook=head + tail
    )
    try:
        accepted = judge(target, HOSTS).encode()
    except Refusal:
        return
    assert accepted == head + tail
    assert webhook_fits(accepted.replace(b":443", b"", 1), [host.encode() for host in HOSTS])


QUERIES = [
    ("", "fal_webhook=@", "no query"),
    ("?fal_max_queue_length=3", "fal_max_queue_length=3&fal_webhook=@", "a query of its own"),
    ("?logs", "logs&fal_webhook=@", "a parameter without a value"),
    ("?fal_max_queue_length=%33", "fal_max_queue_length=%33&fal_webhook=@", "an escape that need not be"),
    ("?fal_webhook=https%3a%2F%2Fapp.example.com/h", "fal_webhook=@", "its own webhook"),
    (
        "?fal_max_queue_length=3&fal_webhook=https://app.example.com/h&logs=1",
        "fal_max_queue_length=3&fal_webhook=@&logs=1",
        "in between",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("query", "sent", "reason"), QUERIES)
def test_the_hub_puts_its_own_address_in_and_leaves_the_other_bytes(query: str, sent: str, reason: str) -> None:
    target = HUB.judge(resolve(f"{SUBMIT}{query}".encode(), "POST"), ADA)
    assert target.query is not None
    ours = parse_qs(target.query.decode())["fal_webhook"][0]
    assert target.query.decode() == sent.replace("@", quote(ours, safe="")), reason
    found = SEALS.find(ours.removeprefix(BASE).encode())
    assert found is not None
    forward = "https://app.example.com/h" if "app.example.com" in query else ""
    assert (found.owners, found.endpoint_id, found.forward_url) == (("key::ada",), "fal-ai/flux/dev", forward), reason


def test_it_tells_nobody_what_it_holds() -> None:
    target = HUB.judge(submit("https://app.example.com/secret-path"), ADA)
    assert b"secret-path" not in (target.query or b"")
    assert b"ada" not in (target.query or b"")


def test_only_a_submit_is_changed() -> None:
    for method, url in (
        ("GET", SUBMIT + "/requests/a"),
        ("PUT", SUBMIT + "/requests/a/cancel"),
        ("POST", "https://fal.run/a/b"),
    ):
        target = resolve(url.encode(), method)
        assert HUB.judge(target, ADA) is target


def test_what_does_not_fit_into_a_target_is_refused_and_what_just_fits_is_sent() -> None:
    def longest(length: int) -> Target:
        return HUB.judge(submit("https://app.example.com/" + "a" * length), ADA)

    fits = max(length for length in range(5000, 6500, 1) if _fits(longest, length))
    sent = longest(fits)
    assert MAX_TARGET_BYTES - 4 <= len(sent.path_and_query) <= MAX_TARGET_BYTES
    ours = parse_qs((sent.query or b"").decode())["fal_webhook"][0]
    found = SEALS.find(ours.removeprefix(BASE).encode())
    assert found is not None
    assert found.forward_url == "https://app.example.com/" + "a" * fits, "and it can still be read"
    with pytest.raises(Refusal) as refused:
        longest(fits + 2)
    assert (refused.value.status, refused.value.error_type) == (400, "invalid_target")
    assert "shorten fal_webhook" in refused.value.detail


def _fits(make: object, length: int) -> bool:
    try:
        make(length)  # type: ignore[operator]
    except Refusal:
        return False
    return True
