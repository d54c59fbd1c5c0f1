"""rest.fal.ai: tokens for browsers, upload URLs, the CDN's bearer, the keys of webhooks.

Hands out; the uploads themselves arrive at cdn.py.
"""

import json
from datetime import UTC, datetime

from . import answers
from .access import CDN_TOKEN_SECONDS
from .answers import Answer
from .exchange import Exchange, Json
from .files import HOST, File
from .models.schema import Check, Field, InvalidInputError, Location, Problem, integer, problem, string, validate
from .world import World

KEYS_PATH = "/.well-known/jwks.json"
TOKEN_SECONDS = 300
_LONGEST_TOKEN_SECONDS = 24 * 3600
_GCS_HOST = "storage.googleapis.com"


def keys(world: World, exchange: Exchange) -> Answer:
    """Serve the public keys of webhooks to anybody."""
    if exchange.method not in ("GET", "HEAD"):
        return answers.detail(405, "Method Not Allowed", [("allow", "GET, HEAD")])
    return answers.json_answer(200, world.signer.jwks())


async def serve(world: World, exchange: Exchange) -> Answer:
    """Serve one request that has been let in."""
    path = exchange.path.rstrip("/")
    handler = _ROUTES.get(path)
    if handler is None:
        return answers.detail(404, "Not Found")
    if exchange.method != "POST":
        return answers.detail(405, "Method Not Allowed", [("allow", "POST")])
    try:
        body = await exchange.json()
    except json.JSONDecodeError as error:
        item = problem(("body", error.pos), "JSON decode error", "json_invalid", {}, {"error": error.msg})
        return answers.invalid([item])
    except UnicodeDecodeError:
        return answers.detail(400, "There was an error parsing the body")
    try:
        return handler(world, exchange, body)
    except InvalidInputError as refused:
        return answers.invalid(refused.problems)


def read_lifecycle(world: World, exchange: Exchange, file: File) -> None:
    """Apply the X-Fal-Object-Lifecycle header to a new file: when it expires and whether others may read it."""
    text = exchange.headers.get("x-fal-object-lifecycle") or exchange.headers.get("x-fal-object-lifecycle-preference")
    try:
        lifecycle = json.loads(text) if text else {}
    except ValueError:
        return
    if not isinstance(lifecycle, dict):
        return
    seconds = lifecycle.get("expiration_duration_seconds")
    if isinstance(seconds, int | float):
        file.expires_at = world.clock() + seconds
    acl = lifecycle.get("initial_acl")
    if isinstance(acl, dict) and acl.get("default") in ("forbid", "hide"):
        file.access = acl["default"]


def _token(world: World, _: Exchange, body: Json) -> Answer:
    fields = (
        Field("allowed_apps", _list_of(string(1)), required=True),
        Field("token_expiration", integer(1, _LONGEST_TOKEN_SECONDS), default=TOKEN_SECONDS),
    )
    given = validate(fields, body)
    # A bare JSON string, which clients take as the token itself.
    return answers.json_answer(201, world.access.mint_token(given["allowed_apps"], given["token_expiration"]))


def _realtime_token(world: World, _: Exchange, body: Json) -> Answer:
    if isinstance(body, dict) and "allowed_apps" not in body and "app" in body:
        body = {**body, "allowed_apps": [body["app"]]}
    fields = (
        Field("allowed_apps", _list_of(string(1)), required=True),
        Field("duration", integer(1, _LONGEST_TOKEN_SECONDS), default=TOKEN_SECONDS),
    )
    given = validate(fields, body)
    return answers.json_answer(201, {"token": world.access.mint_token(given["allowed_apps"], given["duration"])})


def _initiate(world: World, exchange: Exchange, body: Json) -> Answer:
    given = validate((Field("content_type", string(), required=True), Field("file_name", string())), body)
    name = given["file_name"] or f"{int(world.clock() * 1000)}.{given['content_type'].rpartition('/')[2]}"
    # Old clients name no storage type; fal gave them Google's storage, as it gives to storage_type=gcs.
    host = HOST if exchange.query.get("storage_type") == "fal-cdn-v3" else _GCS_HOST
    folder = "/files/b" if host == HOST else "/isolate-dev-hot-rooster_toolkit_bucket"
    path, file = world.files.reserve(name, given["content_type"], folder)
    read_lifecycle(world, exchange, file)
    url = world.files.url(path, host)
    return answers.json_answer(200, {"upload_url": f"{url}?{world.access.sign(path)}", "file_url": url})


def _cdn_token(world: World, exchange: Exchange, _: Json) -> Answer:
    expires = datetime.fromtimestamp(int(world.clock() + CDN_TOKEN_SECONDS), UTC)
    answer = {
        "token": world.access.mint_cdn_token(),
        "token_type": "Bearer",
        "base_url": world.files.url(""),
        # With an offset, not Z: fromisoformat of Python before 3.11 refuses the letter.
        "expires_at": expires.isoformat(),
    }
    return answers.json_answer(200, answer)


def _list_of(check: Check) -> Check:
    def check_list(value: Json, at: Location) -> tuple[Json, list[Problem]]:
        if not isinstance(value, list):
            return value, [problem(at, "Input should be a valid list", "list_type", value)]
        found: list[Problem] = []
        for index, item in enumerate(value):
            found += check(item, (*at, index))[1]
        return value, found

    return check_list


_ROUTES = {
    "/tokens": _token,
    "/tokens/realtime": _realtime_token,
    "/storage/upload/initiate": _initiate,
    "/storage/upload/initiate-multipart": _initiate,
    "/storage/auth/token": _cdn_token,
}
