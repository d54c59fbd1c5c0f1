"""What the official client does with fal itself: with tickets fal refuses it, with fal's tokens it works."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from client.stage import SetStage, judge
from fal_proxy.emulator import Entry
from fal_proxy.settings import Realtime, Settings

TOKENS = "rest.fal.ai"
DIRECT = {"endpoint": "fal-ai/any-llm", "input": {"prompt": "p"}}


def handing(settings: Settings) -> Settings:
    """Return settings in token mode whose plan opted in."""
    plan = msgspec.structs.replace(settings.plans["default"], realtime_token=True)
    return msgspec.structs.replace(settings, plans={"default": plan}, realtime=Realtime(mode="token"))


def split(journal: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Return what came through the proxy, and what came straight from the client."""
    through = [entry for entry in journal if entry.header("x-fal-client-proxy")]
    return through, [entry for entry in journal if entry not in through]


@pytest.mark.parametrize(
    ("given", "went"),
    [
        (DIRECT, "fal.run/fal-ai/any-llm/stream"),
        (
            {"endpoint": "fal-ai/any-llm", "requestId": "764cabcf-b745-4b3e-ae38-1200304cf45b"},
            "queue.fal.run/fal-ai/any-llm/requests/764cabcf-b745-4b3e-ae38-1200304cf45b/status/stream",
        ),
    ],
    ids=["fal.stream", "queue.streamStatus"],
)
async def test_ticket_is_nothing_to_fal_so_client_mode_ends_with_fals_own_401(
    set_stage: SetStage, given: dict[str, Any], went: str
) -> None:
    async with set_stage() as stage:
        seen = await stage.play("stream.mjs", "direct", straight=stage.emulated.url, **given)
        journal = list(stage.emulated.app.journal)
        stage.emulated.app.journal.clear()  # no key of ours is in what came straight from the client
    assert seen["went"] == [went]
    assert (seen["error"]["name"], seen["error"]["status"]) == ("ApiError", 401)
    [entry] = journal
    assert entry.header("x-fal-client-proxy") is None


async def test_with_fals_tokens_client_mode_streams_from_fal_itself(
    set_stage: SetStage, open_settings: Settings
) -> None:
    async with set_stage(settings=handing(open_settings)) as stage:
        seen = await stage.play("stream.mjs", "direct", straight=stage.emulated.url, **DIRECT)
        through, straight = split(list(stage.emulated.app.journal))
        judge(through, stage.proxy.user_key)
        stage.emulated.app.journal.clear()
    assert seen["went"] == ["fal.run/fal-ai/any-llm/stream"]
    assert seen["last"]["partial"] is False
    [token] = through
    assert (token.host, token.target) == (TOKENS, b"/tokens/")
    assert msgspec.json.decode(token.body) == {"allowed_apps": ["any-llm"], "token_expiration": 120}
    assert [entry.header("authorization") for entry in straight] == [None]


@pytest.mark.parametrize("provider", [False, True], ids=["default", "tokenProvider"])
async def test_with_fals_tokens_realtime_talks_to_fal_itself(
    set_stage: SetStage, open_settings: Settings, provider: bool
) -> None:
    inputs = [{"n": number} for number in range(3)]
    async with set_stage(settings=handing(open_settings)) as stage:
        sockets = f"ws://127.0.0.1:{stage.emulated.port}"
        given: dict[str, Any] = {"endpoint": "a/b/c", "inputs": inputs, "provider": provider, "sockets": sockets}
        seen = await stage.play("realtime.mjs", "converse", **given)
        through, straight = split(list(stage.emulated.app.journal))
        judge(through, stage.proxy.user_key)
        stage.emulated.app.journal.clear()
    assert [result["input"] for result in seen["results"]] == inputs
    assert seen["errors"] == []
    [token], [handshake] = through, straight
    assert token.target == (b"/tokens/realtime" if provider else b"/tokens/")
    assert handshake.header("authorization") is None
    assert handshake.session is not None
    assert handshake.session.received == 3
