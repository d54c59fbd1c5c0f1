"""What an app that uses the official client sees when something is refused: fal's own errors untouched, ours helpful."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
import pytest

from client.stage import SetStage, Stage
from fal_proxy.settings import Plan, Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODIES: dict[int, Any] = {
    400: {"detail": "bad", "error_type": "bad_request"},
    403: {"detail": "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing"},
    404: {"detail": 'Application "žluťoučký" not found'},
    409: [1, {"any": "json"}],
    500: {"detail": [{"loc": ["body"], "msg": "Internal server error", "type": "internal_server_error"}]},
}
WAYS = [("run", "fal.run"), ("subscribe", "queue.fal.run"), ("stream", "fal.run")]


@pytest.mark.parametrize(("way", "host"), WAYS, ids=[way for way, _ in WAYS])
async def test_wrong_input_is_a_validation_error_with_its_fields(stage: Stage, way: str, host: str) -> None:
    wrong = {"num_images": 40}
    [seen] = await stage.play("errors.mjs", "each", way=way, endpoint="fal-ai/flux/dev", inputs=[wrong])

    assert (seen["name"], seen["status"]) == ("ValidationError", 422)
    assert seen["isApiError"]
    assert seen["isValidationError"]
    assert [each["loc"] for each in seen["fieldErrors"]] == [["body", "prompt"], ["body", "num_images"]]
    assert seen["promptErrors"] == [seen["body"]["detail"][0]]
    assert seen["promptErrors"][0]["msg"] == "Field required"
    assert len(seen["requestId"]) == 36
    assert stage.entries(host)[-1].status == 422


@pytest.mark.parametrize(("way", "host"), WAYS, ids=[way for way, _ in WAYS])
async def test_fals_errors_arrive_untouched_and_once(stage: Stage, way: str, host: str) -> None:
    inputs = [{"status": status, "body": body} for status, body in BODIES.items()]
    seen = await stage.play("errors.mjs", "each", way=way, endpoint="emulator/fail", inputs=inputs)

    for error, (status, body) in zip(seen, BODIES.items(), strict=True):
        assert (error["name"], error["status"], error["body"]) == ("ApiError", status, body)
        assert error["message"] == HTTPStatus(status).phrase
        assert len(error["requestId"]) == 36
    failed = [entry.status for entry in stage.entries(host) if entry.status and entry.status >= 400]
    assert sorted(failed) == sorted(BODIES)


async def test_a_start_timeout_of_the_caller_is_told_as_such_and_not_repeated(stage: Stage) -> None:
    options = {"input": {"seconds": 1, "queue_seconds": 1000}, "startTimeout": 1.5}
    seen = await stage.play("subscribe.mjs", "fails", endpoint="emulator/slow", options=options)

    assert (seen["status"], seen["timeoutType"], seen["isUserTimeout"]) == (504, "user", True)
    assert len([entry for entry in stage.entries("queue.fal.run") if entry.status == 504]) == 1


async def test_an_endpoint_outside_the_plan_is_refused_with_its_name(
    set_stage: SetStage, open_settings: Settings
) -> None:
    settings = msgspec.structs.replace(open_settings, plans={"default": Plan(endpoints=("fal-ai/**",))})
    async with set_stage(settings=settings) as stage:
        refused = await stage.play("errors.mjs", "everywhere", endpoint="acme/app", input={"prompt": "p"})

        for seen in refused.values():
            assert_ours(seen, 403, "endpoint_denied")
            assert "acme/app" in seen["message"]
            assert "plan" in seen["message"]
        assert not stage.emulated.app.journal
        seen = await stage.play("run.mjs", "run", endpoint="fal-ai/some/app", options={"input": {}})
        assert seen["data"]["endpoint"] == "fal-ai/some/app"


async def test_a_webhook_of_the_callers_choice_is_refused(stage: Stage) -> None:
    options = {"input": {}, "webhookUrl": "https://hooks.example.com/a?b=c"}
    seen = await stage.play("queue.mjs", "submitFails", endpoint="emulator/echo", options=options)

    assert_ours(seen, 403, "webhook_denied")
    assert not stage.emulated.app.journal


@pytest.mark.parametrize(
    ("credentials", "told"),
    [
        ("fpk_nobody-has-this-key", "not known here"),
        ("0b5a1c7e-1111-4222-8333-0123456789ab:0123456789abcdef0123456789abcdef", "fal keys do not belong"),
    ],
    ids=["unknown user key", "fal key"],
)
async def test_a_credential_that_is_not_known_is_refused(stage: Stage, credentials: str, told: str) -> None:
    given = {"endpoint": "emulator/echo", "input": {}, "credentials": credentials}
    refused = await stage.play("errors.mjs", "everywhere", **given)

    for seen in refused.values():
        assert_ours(seen, 401, "unidentified")
        assert told in seen["message"]
        assert credentials not in str(seen)
    assert not stage.emulated.app.journal


def assert_ours(seen: Any, status: int, error_type: str) -> None:
    """Assert that an error is one of the proxy's, in the form that the client shows to people."""
    assert (seen["name"], seen["status"]) == ("ApiError", status)
    assert seen["body"] == {"detail": seen["message"], "message": seen["message"], "error_type": error_type}
    assert seen["requestId"] == ""
