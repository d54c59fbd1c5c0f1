"""`fal.realtime` of the official client through the proxy: what an app sees, and what reaches fal."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from client.stage import Once, SetStage, Stage
from fal_proxy.settings import Realtime, Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The client takes the code of its own close for an error: it closes without one, and hears 1005.
OWN_CLOSE = ("Error closing the connection: ", 1005)
REFUSED = [("Unknown error", 500), ("Error closing the connection: ", 1006)]


def told(errors: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return what the app's onError was told."""
    return [(error["message"], error["status"]) for error in errors]


def with_plan(settings: Settings, **changes: Any) -> Settings:
    """Return `settings` whose only plan differs, and is that of an anonymous network too."""
    plan = msgspec.structs.replace(settings.plans["default"], **changes)
    anonymous = msgspec.structs.replace(settings.identity.anonymous, network_factor=1)
    identity = msgspec.structs.replace(settings.identity, anonymous=anonymous)
    return msgspec.structs.replace(settings, plans={"default": plan}, identity=identity)


@pytest.fixture(params=["default", "tokenProvider"])
def provider(request: pytest.FixtureRequest) -> bool:
    """Say whether the app fetches tokens itself."""
    return bool(request.param == "tokenProvider")


async def test_a_conversation_needs_one_token_and_gets_every_result(stage: Stage, provider: bool) -> None:
    inputs = [{"prompt": "žluťoučký 🐎", "n": number} for number in range(3)]
    options = {"maxBuffering": 2}
    seen = await stage.play(
        "realtime.mjs", "converse", endpoint="a/b/c", inputs=inputs, options=options, provider=provider
    )

    assert [result["input"] for result in seen["results"]] == inputs
    assert seen["errors"] == []
    assert told(seen["onClose"]) == [OWN_CLOSE]
    [handshake] = stage.handshakes
    assert handshake.target == b"/a/b/c/realtime?max_buffering=2"
    assert handshake.session is not None
    assert (handshake.session.received, handshake.session.sent) == (3, 3)
    assert (handshake.session.close_code, handshake.session.closed_by_client) == (1005, True)
    if provider:
        assert seen["tokens"] == [{"app": "a/b/c/realtime", "status": 201, "error": None}]


async def test_an_app_with_a_path_of_its_own_is_reached(stage: Stage, provider: bool) -> None:
    seen = await stage.play(
        "realtime.mjs", "converse", endpoint="a/b", inputs=[{"n": 1}], options={"path": "/realtime"}, provider=provider
    )
    assert seen["errors"] == []
    assert stage.handshakes[0].target == b"/a/b/realtime"


async def test_bytes_survive(stage: Stage) -> None:
    seen = await stage.play("realtime.mjs", "bytes", endpoint="a/b")
    wanted = hashlib.sha256(bytes(index % 256 for index in range(100_000))).hexdigest()
    assert seen == {"errors": [], "sha256": wanted, "length": 100_000}


async def test_the_clients_own_throttle_leaves_the_last_of_a_burst(stage: Stage) -> None:
    options = {"throttleInterval": 128}
    seen = await stage.play("realtime.mjs", "burst", endpoint="a/b", options=options, count=10)
    assert seen == {"sent": ["first", 9], "errors": []}
    assert stage.handshakes[0].session is not None
    assert stage.handshakes[0].session.received == 2


async def test_timeout_is_no_error_and_the_next_input_reconnects_with_a_new_token(stage: Stage, provider: bool) -> None:
    given = {"endpoint": "emulator/idle", "input": {"n": 1}, "again": {"n": 2}, "provider": provider}
    seen = await stage.play("realtime.mjs", "untilClosed", **given)

    assert [result["input"] for result in seen["results"]] == [{"n": 1}, {"n": 2}]
    assert seen["errors"] == []
    assert seen["sockets"][0]["close"] == {"code": 1000, "reason": ""}
    first, second = (socket["url"] for socket in seen["sockets"][:2])
    assert first != second, "a ticket opens one socket"
    assert len(stage.handshakes) == 2


async def test_after_1013_the_next_input_reconnects(set_stage: SetStage, provider: bool) -> None:
    async with set_stage(faults=[Once("a/b", "close")]) as stage:
        given = {"endpoint": "a/b", "input": {"n": 1}, "again": {"n": 2}, "provider": provider}
        seen = await stage.play("realtime.mjs", "untilClosed", **given)

        assert told(seen["errors"]) == [("Error closing the connection: Concurrent session limit reached.", 1013)]
        assert [result["input"] for result in seen["results"]] == [{"n": 2}]
        assert len(stage.handshakes) == 2


@pytest.mark.parametrize(
    ("endpoint", "emulator", "errors", "code"),
    [
        ("emulator/fail", {}, [("INTERNAL_ERROR: Internal Server Error", 400)], 1000),
        ("a/b", {"faults": "a/b:drop"}, [("Error closing the connection: ", 1006)], 1006),
        ("a/b", {"faults": "a/b:close=4007"}, [("Error closing the connection: ", 4007)], 4007),
        ("a/b", {"faults": "fal.run/**:status=403"}, REFUSED, 1006),
        ("a/b", {"faults": "fal.run/**:reset"}, REFUSED, 1006),
    ],
    ids=["an app that fails", "fal drops the socket", "a code of fal's", "fal refuses", "fal resets the handshake"],
)
async def test_what_ends_badly_at_fal_is_the_same_error_as_without_a_proxy(
    set_stage: SetStage, endpoint: str, emulator: dict[str, Any], errors: list[tuple[str, int]], code: int
) -> None:
    async with set_stage(**emulator) as stage:
        seen = await stage.play("realtime.mjs", "untilClosed", endpoint=endpoint, input={"n": 1})
        assert seen["results"] == []
        assert told(seen["errors"]) == errors
        assert seen["sockets"][0]["close"]["code"] == code


async def test_a_socket_outlives_its_ticket_while_tokens_are_fetched_again(
    set_stage: SetStage, open_settings: Settings, provider: bool
) -> None:
    # A ticket is good for a second, an app's own provider is told so; the default one believes in 120 s.
    settings = msgspec.structs.replace(open_settings, realtime=Realtime(token_seconds=1))
    async with set_stage(settings=settings) as stage:
        options = {"tokenExpirationSeconds": 1} if provider else {}
        given = {"endpoint": "a/b", "options": options, "turns": 3, "again": {"turn": "again"}}
        seen = await stage.play("realtime.mjs", "outlive", **given, provider=provider, hasten=100)

        assert [result["input"]["turn"] for result in seen["results"]] == [1, 2, 3, "again"]
        assert seen["errors"] == []
        assert seen["open"] == 1, "tokens came and went on the same socket"
        assert seen["fetched"] >= 5, "three while it was open, one before, one for the next socket"
        assert len(stage.handshakes) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoints": ("acme/**",)},
        {"realtime_sessions": 0},
        {"budget": "1.00/day"},
    ],
    ids=["the plan opens something else", "the plan has no sockets", "there is a budget and realtime has no price"],
)
async def test_a_socket_that_the_plan_refuses_is_an_error_of_the_app_and_never_reaches_fal(
    set_stage: SetStage, open_settings: Settings, changes: dict[str, Any]
) -> None:
    settings = msgspec.structs.replace(with_plan(open_settings, **changes), prices={"default": 0.01})
    async with set_stage(settings=settings) as stage:
        seen = await stage.play("realtime.mjs", "untilClosed", endpoint="a/b", input={"n": 1})
        assert told(seen["errors"]) == REFUSED
        assert stage.handshakes == []


async def test_the_second_connection_at_a_time_is_refused_where_the_plan_has_one(
    set_stage: SetStage, open_settings: Settings
) -> None:
    async with set_stage(settings=with_plan(open_settings, realtime_sessions=1)) as stage:
        seen = await stage.play("realtime.mjs", "several", endpoint="a/b", keys=["one", "two"])
        assert seen["results"] == [[{"index": 0}], []]
        assert told(seen["errors"][1]) == REFUSED
        assert len(stage.handshakes) == 1


@pytest.mark.parametrize(
    ("keys", "sockets"), [(["one", "two"], 2), ([None, None], 2), (["one", "one"], 1)], ids=["two", "random", "shared"]
)
async def test_a_connection_key_is_a_socket(
    set_stage: SetStage, open_settings: Settings, keys: list[str | None], sockets: int
) -> None:
    async with set_stage(settings=with_plan(open_settings, realtime_sessions=2)) as stage:
        seen = await stage.play("realtime.mjs", "several", endpoint="a/b", keys=keys)
        assert sorted(result["index"] for results in seen["results"] for result in results) == [0, 1]
        assert seen["errors"] == [[], []]
        assert len(stage.handshakes) == len(seen["sockets"]) == sockets


async def test_the_rate_of_opening_sockets_is_a_refused_handshake(set_stage: SetStage, open_settings: Settings) -> None:
    async with set_stage(settings=with_plan(open_settings, submit="1/hour")) as stage:
        seen = await stage.play("realtime.mjs", "several", endpoint="a/b", keys=["one", "two"])
        assert seen["results"] == [[{"index": 0}], []]
        assert told(seen["errors"][1]) == REFUSED
        assert len(stage.handshakes) == 1


async def test_too_many_messages_close_the_socket_with_a_reason(set_stage: SetStage, open_settings: Settings) -> None:
    settings = msgspec.structs.replace(open_settings, realtime=Realtime(messages="5/hour"))
    async with set_stage(settings=settings) as stage:
        seen = await stage.play("realtime.mjs", "converse", endpoint="a/b", inputs=[{"n": n} for n in range(6)])
        assert [result["input"]["n"] for result in seen["results"]] == [0, 1, 2, 3, 4]
        reason = "Error closing the connection: more than 5 messages in 3600 s"
        assert told(seen["errors"]) == [(reason, 4429)]
        [handshake] = stage.handshakes
        assert handshake.session is not None
        assert handshake.session.received == 5


async def test_realtime_that_is_off_is_silence_unless_the_app_asks_for_tokens_itself(
    set_stage: SetStage, open_settings: Settings, provider: bool
) -> None:
    settings = msgspec.structs.replace(open_settings, realtime=Realtime(mode="off"))
    async with set_stage(settings=settings) as stage:
        seen = await stage.play("realtime.mjs", "untold", endpoint="a/b", provider=provider)
        # The client drops the error of a token that it did not get.
        assert (seen["results"], seen["errors"], seen["sockets"]) == ([], [], [])
        assert stage.handshakes == []
        if provider:
            assert seen["tokens"] == [{"app": "a/b/realtime", "status": 403, "error": "mode_off"}]


async def test_after_a_refusal_the_client_keeps_its_token_for_as_long_as_it_is_good_and_longer(
    set_stage: SetStage, open_settings: Settings, provider: bool
) -> None:
    """The client's own state machine, with fal too: only another connection key asks for another token."""
    settings = with_plan(open_settings, realtime_sessions=1)
    settings = msgspec.structs.replace(settings, realtime=Realtime(token_seconds=1))
    async with set_stage(settings=settings) as stage:
        seen = await stage.play("realtime.mjs", "refusedOnce", endpoint="a/b", seconds=1.1, provider=provider)
        assert seen == {"refused": 0, "other": 1, "fetched": 3}
        assert len(stage.handshakes) == 2
