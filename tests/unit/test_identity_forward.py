"""Forward auth against a real service: what it is shown, what its answers mean, how often it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.identity import Identities, Presented, credential_of
from fal_proxy.identity.forward import MAX_BYTES, ForwardAuth, Remembered
from fal_proxy.identity.header import TrustedHeader
from fal_proxy.request import Request
from fal_proxy.settings import ForwardSource, HeaderSource
from fal_proxy.upstream.own_calls import OwnCalls
from support.peers import PATIENCE
from support.services import Asked, Clock, Reply, Service, served

ADA = Reply(200, b'{"id": "ada", "plan": "pro"}')
SESSION = (b"cookie", b"session=1")


@pytest.fixture
async def service() -> Service:
    """A service that knows Ada, whatever it is shown."""
    return Service(lambda asked: ADA)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


Make = Callable[..., ForwardAuth]


@pytest.fixture
async def make(service: Service, clock: Clock) -> AsyncIterator[Make]:
    """Return a function that makes sources that ask the service."""
    made: list[ForwardAuth] = []
    async with served(service) as url:

        def start(*headers: str, seconds: float = PATIENCE, cache_seconds: float = 10) -> ForwardAuth:
            settings = ForwardSource(
                url=f"{url}/whoami?x=1", headers=headers or ("cookie",), cache_seconds=cache_seconds
            )
            calls = OwnCalls(seconds=seconds, max_bytes=MAX_BYTES, connections=10)
            made.append(ForwardAuth(settings, calls, clock=clock))
            return made[-1]

        yield start
        for source in made:
            await source.close()


def presented(*headers: tuple[bytes, bytes], any_scheme: bool = False) -> Presented:
    """Return what a request with these fields presents."""
    request = Request("POST", b"/", None, list(headers), "127.0.0.1", "http")
    return Presented(request, credential_of(request, any_scheme=any_scheme))


async def test_yes_names_an_ambient_caller_and_its_plan(make: Make) -> None:
    assert await make().identify(presented(SESSION)) == Caller("forward::ada", "forward", "pro", ambient=True)


async def test_same_name_from_two_sources_is_two_callers(make: Make) -> None:
    header = TrustedHeader(HeaderSource(from_=("127.0.0.1",)), None)
    asked = presented(SESSION, (b"x-forwarded-user", b"ada"))
    callers = [await source.identify(asked) for source in (make(), header)]
    assert [caller and caller.id for caller in callers] == ["forward::ada", "header::ada"]
    assert len({caller.shown for caller in callers if caller}) == 2


async def test_service_is_asked_its_own_url_with_the_listed_fields_only(make: Make, service: Service) -> None:
    source = make("Cookie", "X-Session")
    fields = [SESSION, (b"x-session", b"2"), (b"x-other", b"3"), (b"origin", b"https://a"), (b"user-agent", b"page")]
    await source.identify(presented(*fields, (b"x-session", b"4"), (b"host", b"proxy.example")))
    (asked,) = service.asked
    assert asked.path == "/whoami?x=1"
    assert asked.values(b"cookie") == [b"session=1"]
    assert asked.values(b"x-session") == [b"2", b"4"]
    own = {b"host", b"accept", b"accept-encoding", b"connection", b"user-agent"}
    assert {name for name, _ in asked.headers} == {b"cookie", b"x-session"} | own
    assert asked.values(b"accept-encoding") == [b"identity"]
    assert asked.values(b"user-agent")[0].startswith(b"fal-proxy/")
    assert b"proxy.example" not in asked.values(b"host")


COOKIES = [
    (b"session=1", [b"session=1"], "nothing of ours in it"),
    (b"a=1; fal_proxy_anon=x; b=2", [b"a=1; b=2"], "ours is our business"),
    (b"fal_proxy_anon=x; b=2", [b"b=2"], "at the beginning"),
    (b"a=1; __Host-fal_proxy_anon=x", [b"a=1"], "the form of https"),
    (b"fal_proxy_anon=x; fal_proxy_anon=y", None, "nothing is left to ask about"),
    (b"fal_proxy_anon=x", None, "an anonymous visitor costs no question"),
    (b" ", None, "an empty field is absent"),
    (b"xfal_proxy_anon=1; fal_proxy_anon2=2", [b"xfal_proxy_anon=1; fal_proxy_anon2=2"], "other names"),
    (b'a="x;y"; b', [b'a="x;y"; b'], "byte for byte"),
]


@pytest.mark.parametrize(("cookie", "shown", "reason"), COOKIES)
async def test_own_cookies_are_not_shown(
    cookie: bytes, shown: list[bytes] | None, reason: str, make: Make, service: Service
) -> None:
    caller = await make().identify(presented((b"cookie", cookie)))
    assert [asked.values(b"cookie") for asked in service.asked] == ([] if shown is None else [shown]), reason
    assert (caller is None) == (shown is None)


async def test_nobody_is_asked_without_a_listed_field(make: Make, service: Service) -> None:
    assert await make().identify(presented((b"x-other", b"1"))) is None
    assert service.asked == []


@pytest.mark.parametrize("status", [401, 403])
async def test_no_is_an_absence(status: int, make: Make, service: Service) -> None:
    service.answer = lambda asked: Reply(status, b"x" * (MAX_BYTES + 1))
    assert await make().identify(presented(SESSION)) is None


UNUSABLE = [
    (Reply(500), "the service is ill"),
    (Reply(503), "the service is ill"),
    (Reply(404), "a wrong url"),
    (Reply(204, b""), "neither yes nor no"),
    (Reply(201, ADA.body), "only 200 is a yes"),
    (Reply(302, b"", ((b"location", b"/login"),)), "a redirect is not followed"),
    (Reply(200, b"<html>"), "a login page"),
    (Reply(200, b""), "nothing"),
    (Reply(200, b'"ada"'), "no object"),
    (Reply(200, b'{"plan": "pro"}'), "no id"),
    (Reply(200, b'{"id": 7}'), "an id that is no text"),
    (Reply(200, b'{"id": ""}'), "an empty id would be everybody's"),
    (Reply(200, b'{"id": null}'), "an id that is no text"),
    (Reply(200, b'{"id": "a\\nb"}'), "an id that breaks lines"),
    (Reply(200, b'{"id": "\\ud800"}'), "half a character"),
    (Reply(200, b'{"id": "%b"}' % (b"a" * 256)), "too long"),
    (Reply(200, b'{"id": "ada", "plan": 1}'), "a plan that is no text"),
    (Reply(200, b'{"id": "ada", "plan": ""}'), "an empty plan"),
    (Reply(200, b'{"id":' + b"[" * 60_000), "nested without end"),
    (Reply(200, b" " * MAX_BYTES + b'{"id": "ada"}'), "too much"),
    (Reply(200, b"\x1f\x8b", ((b"content-encoding", b"gzip"),)), "nothing is unpacked"),
]


@pytest.mark.parametrize(("reply", "reason"), UNUSABLE)
async def test_anything_else_is_503_and_not_remembered(reply: Reply, reason: str, make: Make, service: Service) -> None:
    source = make()
    service.answer = lambda asked: reply
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            await source.identify(presented(SESSION))
        assert (refused.value.status, refused.value.error_type) == (503, "identity_unavailable"), reason
    assert len(service.asked) == 2
    service.answer = lambda asked: ADA
    assert await source.identify(presented(SESSION)) is not None


async def test_slow_service_is_503(make: Make, service: Service) -> None:
    service.gate.clear()
    with pytest.raises(Refusal, match="no usable answer"):
        await make(seconds=0.05).identify(presented(SESSION))


async def test_absent_service_is_503(make: Make) -> None:
    settings = ForwardSource(url="http://127.0.0.1:1/")
    source = ForwardAuth(settings, OwnCalls(seconds=PATIENCE, max_bytes=MAX_BYTES, connections=1))
    with pytest.raises(Refusal, match="no usable answer"):
        await source.identify(presented(SESSION))
    await source.close()


async def test_yes_is_believed_for_cache_seconds_and_no_for_one(make: Make, service: Service, clock: Clock) -> None:
    source = make()
    for moment, count in ((0, 1), (9.9, 1), (10, 2)):
        clock.now = moment
        assert await source.identify(presented(SESSION)) is not None
        assert len(service.asked) == count
    service.answer = lambda asked: Reply(401)
    for moment, count in ((20, 3), (20.9, 3), (21, 4)):
        clock.now = moment
        assert await source.identify(presented(SESSION)) is None
        assert len(service.asked) == count


async def test_zero_cache_seconds_ask_every_time(make: Make, service: Service) -> None:
    source = make(cache_seconds=0)
    for _ in range(3):
        await source.identify(presented(SESSION))
    assert len(service.asked) == 3


async def test_one_callers_answer_is_never_anothers(make: Make, service: Service) -> None:
    service.answer = lambda asked: Reply(200, b'{"id": "%b"}' % asked.values(b"cookie")[0])
    source = make("cookie", "x-a", "x-b")
    shown = [[(b"cookie", b"s")], [(b"cookie", b"s"), (b"x-a", b"1")], [(b"cookie", b"s"), (b"x-b", b"1")]]
    shown += [[(b"cookie", b"s"), (b"x-a", b"1"), (b"x-a", b"")], [(b"cookie", b"t")]]
    callers = [await source.identify(presented(*fields)) for fields in shown]
    assert [caller and caller.id for caller in callers] == ["forward::s"] * 4 + ["forward::t"]
    assert len(service.asked) == 4, "an empty field is absent; all others are told apart"


async def test_cookie_that_the_service_sets_is_not_kept(make: Make, service: Service) -> None:
    service.answer = lambda asked: Reply(200, ADA.body, ((b"set-cookie", b"session=admin; Path=/"),))
    source = make("cookie", "x-session")
    await source.identify(presented((b"x-session", b"1")))
    await source.identify(presented((b"x-session", b"2")))
    assert [asked.values(b"cookie") for asked in service.asked] == [[], []]


async def test_fifty_concurrent_callers_of_one_session_are_one_question(make: Make, service: Service) -> None:
    source = make()
    service.gate.clear()
    tasks = [asyncio.create_task(source.identify(presented(SESSION))) for _ in range(50)]
    await service.arrived(1)
    tasks[0].cancel()
    service.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(caller, Caller) and caller.id == "forward::ada" for caller in results[1:])
    assert len(service.asked) == 1


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    clock = Clock(0)
    remembered = Remembered[int](3, 10, clock)
    for number in range(5):
        remembered.put(bytes([number]), number)
        clock.now += 1
    assert [remembered.get(bytes([number])) for number in range(5)] == [None, None, 2, 3, 4]
    clock.now = 12
    assert remembered.get(b"\x02") is None
    assert len(remembered) == 2


BASIC = (b"authorization", b"Basic YTpi")
BEARER = (b"authorization", b"Bearer opaque")
CREDENTIALS = [
    (("cookie",), [BEARER, SESSION], True, None, "401", "it was not shown the credential, so it cannot have accepted it"),
    (("cookie",), [BASIC, SESSION], True, [], "ada", "other schemes are no credentials here: the session counts"),
    (("cookie", "authorization"), [BASIC], True, [BASIC[1]], "ada", "shown whole, accepted"),
    (("cookie", "authorization"), [BEARER], True, [BEARER[1]], "ada", "shown whole, accepted"),
    (("authorization",), [BASIC], False, [BASIC[1]], "401", "it counts as presented: no way to fall through"),
    (("authorization",), [BEARER], False, [BEARER[1]], "401", "as above"),
    (("authorization",), [SESSION], True, None, "none", "nothing listed is present"),
    (("authorization",), [BASIC, BEARER], True, None, "401", "two credentials contradict each other"),
    (("authorization",), [(b"authorization", b"fpk_x")], False, [b"fpk_x"], "401", "a key without a scheme is no key"),
]  # fmt: skip


class _Anybody:
    async def identify(self, presented: Presented) -> Caller | None:
        return None if presented.credential is not None else Caller("anonymous::", "anonymous", "default", ambient=True)

    def carried(self, request: Request) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(("listed", "fields", "knows", "shown", "outcome", "reason"), CREDENTIALS)
async def test_credential_never_falls_through(
    listed: tuple[str, ...],
    fields: list[tuple[bytes, bytes]],
    knows: bool,
    shown: list[bytes] | None,
    outcome: str,
    reason: str,
    make: Make,
    service: Service,
) -> None:
    service.answer = lambda asked: ADA if knows else Reply(401)
    identities = Identities([make(*listed), _Anybody()], any_scheme="authorization" in listed)
    request = Request("POST", b"/", None, fields, "", "http")
    try:
        caller = await identities.identify(request)
        got = {"forward::ada": "ada", "anonymous::": "none"}[caller.id]
    except Refusal as refusal:
        got = str(refusal.status)
    assert got == outcome, reason
    asked: list[Asked] = service.asked
    assert [question.values(b"authorization") for question in asked] == ([] if shown is None else [shown])
