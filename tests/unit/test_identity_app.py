"""Users whom an app names: what its function may return, and what happens when it fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import pytest

from fal_proxy import Settings, User, create_app
from fal_proxy.errors import Misconfigured, Refusal
from fal_proxy.identity import Identities, Presented
from fal_proxy.identity.app import AppUsers, Identify
from fal_proxy.request import Request
from fal_proxy.settings import Plan, Server
from support.proxied import FAL_KEY


def ask(scope: Mapping[str, Any] | None = None, credential: str | None = None) -> Presented:
    headers = [] if credential is None else [(b"authorization", b"Bearer " + credential.encode())]
    return Presented(Request("GET", b"/", None, headers, "127.0.0.1", "http", scope or {}), credential)


async def test_function_sees_the_scope_and_may_be_asynchronous() -> None:
    async def identify(scope: Mapping[str, Any]) -> User | None:
        return User(scope["session"]["user"], plan="pro")

    caller = await AppUsers(identify).identify(ask({"session": {"user": "ada"}}))
    assert caller is not None
    assert (caller.id, caller.source, caller.plan, caller.ambient) == ("app::ada", "app", "pro", True)


async def test_nobody_whom_the_app_knows_is_left_to_the_next_source() -> None:
    assert await AppUsers(lambda scope: None).identify(ask()) is None


async def test_credential_that_the_app_does_not_accept_is_401() -> None:
    with pytest.raises(Refusal, match="not known here"):
        await Identities([AppUsers(lambda scope: None)]).identify(ask(credential="fpk_x").request)


WRONG: list[tuple[Any, str]] = [
    (lambda scope: "ada", "a name is no User"),
    (lambda scope: User(""), "nobody"),
    (lambda scope: User("a" * 256), "too long"),
    (lambda scope: User("ada\n"), "not printable"),
    (lambda scope: User(cast("Any", 7)), "no text"),
    (lambda scope: User("ada", plan=""), "no plan"),
    (lambda scope: scope["session"], "raises KeyError"),
    (lambda scope: True, "true is no User"),
]


@pytest.mark.parametrize(("identify", "reason"), WRONG, ids=[reason.replace(" ", "-") for _, reason in WRONG])
async def test_function_that_fails_names_nobody_and_says_so_in_the_log(
    identify: Identify, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(Refusal) as refused:
        await AppUsers(identify).identify(ask())
    assert refused.value.error_type == "identity_unavailable", reason
    assert "`identify`" in caplog.text


async def test_only_the_word_false_makes_a_user_one_whose_page_is_not_judged() -> None:
    for ambient in (None, 0, "", False):
        caller = await AppUsers(lambda scope, said=ambient: User("ada", ambient=said)).identify(ask())  # type: ignore[misc]
        assert caller is not None
        assert caller.ambient is (ambient is not False)


def test_app_that_names_its_users_needs_no_source_but_must_say_what_is_ours() -> None:
    plans = {"default": Plan(endpoints=("**",))}
    with pytest.raises(Misconfigured, match="your own app need public_url or hosts"):
        create_app(Settings(plans=plans), environ={}, key=FAL_KEY, identify=lambda scope: None)
    settings = Settings(plans=plans, server=Server(hosts=("127.0.0.1",)))
    create_app(settings, environ={}, key=FAL_KEY, identify=lambda scope: None)
    with pytest.raises(Misconfigured, match="nobody may call"):
        create_app(settings, environ={}, key=FAL_KEY)
