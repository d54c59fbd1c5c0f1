"""The realtime shim as it is served, in Node: which addresses it leads where, and what it leaves as it was."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from support.documents import README
from support.emulated import Emulated, emulated
from support.node import Node
from support.proxied import FAL_KEY, MOUNT, OPEN_PLAN, Proxy, open_settings, proxied

# Node's own WebSocket, which is there without asking from Node 22 on; and no eval, as under a strict CSP.
NODE_OPTIONS = "--experimental-websocket --disallow-code-generation-from-strings --no-warnings"
# A red dot of 1 x 1.
DOT = "data:image/gif;base64,R0lGODlhAQABAPAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Page:
    """What imports the shim from a running proxy; the emulator behind it is its fal."""

    def __init__(self, node: Node, proxy: Proxy, fal: Emulated) -> None:
        self.proxy = proxy
        self.fal = fal
        self._node = node

    @property
    def relay(self) -> str:
        """Where sockets for fal.run must go."""
        return self.proxy.url.replace("http", "ws") + "/fal.run"

    async def play(self, scenario: str, **params: Any) -> Any:
        """Run a scenario of shim.mjs."""
        environ = {"SCENARIO": json.dumps({"url": self.proxy.url, **params}), "NODE_OPTIONS": NODE_OPTIONS}
        async with self._node.started("harness.mjs", "shim.mjs", scenario, environ=environ) as run:
            return await run.result()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    """One proxy for the module: no test changes it."""
    folder = tmp_path_factory.mktemp("proxy")
    many = msgspec.structs.replace(OPEN_PLAN, realtime_sessions=100)  # a session may end a moment after its page
    settings = msgspec.structs.replace(open_settings(folder), plans={"default": many})
    async with emulated() as fal, proxied(fal.url, folder, settings) as proxy:
        yield Page(node, proxy, fal)


LED = [
    ("string", "wss://fal.run/a/b/realtime?fal_jwt_token=t", "/a/b/realtime?fal_jwt_token=t", "what the client writes"),
    ("object", "wss://fal.run/a/b?x=1", "/a/b?x=1", "a URL object"),
    ("stringable", "wss://fal.run/a/b", "/a/b", "whatever has a text, as WebSocket itself takes it"),
    ("string", "wss://fal.run/%41/%2e%2E%2f/é?q=%7e+'", "/%41/%2e%2E%2f/%C3%A9?q=%7e+%27", "escapes stay as WebSocket sends them"),
    ("string", "wss://fal.run//a///b//", "//a///b//", "empty segments stay"),
    ("string", "wss://fal.run/a?b?c=/wss://fal.run/", "/a?b?c=/wss://fal.run/", "only the first host is meant"),
    ("string", "wss://fal.run", "/", "no path"),
    ("string", "wss://fal.run?x=1", "/?x=1", "a query only"),
    ("string", "wss://fal.run/a?", "/a?", "an empty query"),
    ("string", "WSS://FAL.run/A", "/A", "scheme and host have no case"),
    ("string", "wss://fal.run:443/a", "/a", "the scheme's own port"),
    ("string", "  wss://fal.run/a\n", "/a", "white space around it, which WebSocket strips"),
    ("string", "wss:\\\\fal.run\\a", "/a", "backslashes, which WebSocket turns"),
    ("string", "wss://fal%2Erun/a", "/a", "an escaped host is the host"),
    ("string", "wss://fal.run/../../me", "/me", "dots end at the root of the host and never climb out of the relay"),
    ("string", "wss://fal.run/a/%2e%2e/%2E./me", "/me", "so do escaped dots"),
]  # fmt: skip

UNTOUCHED = [
    ("string", "wss://fal.run.evil.example/a", "a host that begins like fal's"),
    ("string", "wss://evil.example/wss://fal.run/a", "fal's as a path"),
    ("string", "wss://notfal.run/a", "a host that ends like fal's"),
    ("string", "wss://fal.run@evil.example/a", "a user called fal.run"),
    ("string", "wss://user:secret@fal.run/a", "a user: no client writes one, and a relay must not be told"),
    ("string", "wss://fal.run./a", "the root's dot makes it another name"),
    ("string", "wss://ws.fal.run/a", "a host below"),
    ("string", "wss://queue.fal.run/a", "another host of fal's"),
    ("string", "wss://fal.run:8443/a", "another port"),
    ("string", "ws://fal.run/a", "without TLS: it is nobody's that we know"),
    ("string", "https://fal.run/a", "no client writes it so"),
    ("string", "ws://127.0.0.1:8080/api/fal/proxy/fal.run/a", "the relay itself"),
    ("object", "wss://example.com/a", "a URL object stays the same object"),
    ("stringable", "wss://example.com/a", "so does anything else"),
    ("string", "/a/b", "relative to the page"),
    ("string", "//fal.run/a", "relative to the page's scheme"),
    ("string", "", "no address"),
    ("symbol", "wss://fal.run/a", "no text at all"),
]


async def test_only_addresses_of_fal_run_are_led_to_the_proxy(page: Page) -> None:
    cases = [(form, text) for form, text, _, _ in LED] + [(form, text) for form, text, _ in UNTOUCHED]
    wanted = [(page.relay + path, reason) for _, _, path, reason in LED] + [
        (None, reason) for _, _, reason in UNTOUCHED
    ]
    seen = await page.play("addresses", addresses=cases)
    for case, got, (want, reason) in zip(cases, seen, wanted, strict=True):
        assert got == want, (case, reason)


async def test_the_wrapped_websocket_is_like_the_native_one(page: Page) -> None:
    seen = await page.play("likeness")
    assert len(seen) == 15
    assert [name for name, holds in seen.items() if not holds] == []


async def test_native_sockets_reach_the_relay_with_their_path_and_their_subprotocols(page: Page) -> None:
    paths = ["/a/b/realtime?fal_jwt_token=e.y.J&max_buffering=2", "/a//%7e?q=%2F"]
    seen = await page.play("wire", addresses=["wss://fal.run" + path for path in paths], protocols=["one", "two"])
    fal = [{"target": f"/some/mount/fal.run{path}", "protocols": "one, two"} for path in paths]
    assert [
        {**one, "protocols": one["protocols"].replace(",", ", ").replace(",  ", ", ")} for one in seen["handshakes"][:2]
    ] == fal
    assert seen["handshakes"][2] == {"target": "/another/host", "protocols": None}
    assert [echo["protocol"] for echo in seen["echoes"]] == ["two", "two", ""]
    assert {echo["data"] for echo in seen["echoes"]} == {"žluťoučký"}


async def test_whoever_imports_or_configures_last_says_where_sockets_go(page: Page) -> None:
    other = page.proxy.url.replace("127.0.0.1", "localhost")
    steps: list[tuple[Any, str]] = [
        ("imported again", page.relay + "/a/b"),
        ("imported elsewhere", other.replace("http", "ws") + "/fal.run/a/b"),
        ({"relay": "ws://127.0.0.1:8090"}, "ws://127.0.0.1:8090/fal.run/a/b"),
        ({"relay": "https://relay.example/x/"}, "wss://relay.example/x/fal.run/a/b"),
        ({"relay": None}, "wss://fal.run/a/b"),
        ({"proxyUrl": "https://proxy.example/p"}, "wss://proxy.example/p/fal.run/a/b"),
        ("imported again", "wss://proxy.example/p/fal.run/a/b"),
    ]
    seen = await page.play("configured", other=other, steps=[step for step, _ in steps])
    assert seen["seen"] == [page.relay + "/a/b", *(where for _, where in steps)]
    assert seen["once"], "WebSocket is wrapped once"


async def test_import_after_somebody_put_the_native_one_back_wraps_it_again(page: Page) -> None:
    other = page.proxy.url.replace("127.0.0.1", "localhost")
    seen = await page.play("configured", other=other, steps=["native put back", "imported elsewhere"])
    elsewhere = other.replace("http", "ws") + "/fal.run/a/b"
    assert seen["seen"] == [page.relay + "/a/b", "wss://fal.run/a/b", elsewhere]


async def test_import_without_a_websocket_brings_none(page: Page) -> None:
    assert await page.play("without") == {"exported": ["configure", "onResult", "tokenProvider"], "global": False}


async def test_every_worker_imports_for_itself(page: Page) -> None:
    assert await page.play("worker") == {"here": True, "there": {"before": "false", "wrapped": True}}


ANSWERS = [
    ((200, '"eyJ.a.b"'), {"token": "eyJ.a.b"}, "the proxy's ticket, and fal's /tokens/"),
    ((201, '{"token":"eyJ"}'), {"token": "eyJ"}, "fal's /tokens/realtime"),
    ((403, '{"detail":"no","message":"not on your plan"}'), "not on your plan", "a refusal of the proxy's"),
    ((502, "<html>bad gateway</html>"), "no token from MOUNT: HTTP 502", "something in between that speaks no JSON"),
    ((401, '{"detail":[{"msg":"a"}]}'), "no token from MOUNT: HTTP 401", "an error without words for people"),
    ((500, "null"), "no token from MOUNT: HTTP 500", "nothing"),
    ((500, '"eyJ"'), "no token from MOUNT: HTTP 500", "an error that looks like a token"),
    ((200, "eyJ"), "no token from MOUNT: HTTP 200", "no JSON"),
    ((200, '{"tokens":[]}'), "no token from MOUNT: HTTP 200", "another shape"),
]


async def test_token_provider_returns_the_token_or_throws_what_the_proxy_says(page: Page) -> None:
    answers = [{"status": status, "body": body} for (status, body), _, _ in ANSWERS]
    seen = await page.play("tokens", app="fal-ai/lcm/realtime", answers=answers)
    for got, (_, want, reason) in zip(seen["outcomes"], ANSWERS, strict=True):
        assert got == (want if isinstance(want, dict) else {"name": "Error", "message": want}), reason
    for asked in seen["asked"]:
        assert (asked["method"], asked["url"]) == ("POST", "/api/fal/proxy")
        assert asked["headers"]["x-fal-target-url"] == "https://rest.fal.ai/tokens/realtime"
        assert asked["headers"]["content-type"] == "application/json"
        assert asked["body"] == {"allowed_apps": ["fal-ai/lcm/realtime"], "duration": 120}


async def test_token_provider_sends_the_callers_own_fields_and_nothing_in_place_of_its_own(page: Page) -> None:
    headers = {"Authorization": "Bearer ada", "X-Fal-Target-Url": "https://fal.run/", "Content-Type": "text/plain"}
    init = {"method": "DELETE", "body": "x", "headers": headers}
    seen = await page.play("tokens", app="a/b", init=init, answers=[{"status": 200, "body": '"t"'}])
    [asked] = seen["asked"]
    assert asked["headers"]["authorization"] == "Bearer ada"
    assert asked["headers"]["x-fal-target-url"] == "https://rest.fal.ai/tokens/realtime"
    assert asked["headers"]["content-type"] == "application/json"
    assert (asked["method"], asked["body"]["allowed_apps"]) == ("POST", ["a/b"])


async def test_token_provider_asks_where_the_module_came_from(page: Page) -> None:
    nobody = {"headers": {"authorization": "Bearer fpk_nobody"}}
    seen = await page.play("tokenOfTheProxy", app="a/b/realtime", init=nobody)
    assert seen["name"] == "Error"
    assert "credential" in seen["message"]


DEPRECATED = "[fal.realtime] Using the default token provider is deprecated."
TALKS = [
    (False, {}, "/realtime", "the import alone: the client's own token request and its warning"),
    (True, {}, "/realtime", "with the module's token provider"),
    (True, {"path": "/other"}, "/other", "a path of the app's own"),
    (True, {"maxBuffering": 2}, "/realtime", "an option that is part of the address"),
]


@pytest.mark.parametrize("anonymous", [True, False], ids=["anonymous", "key"])
@pytest.mark.parametrize(("provider", "options", "path", "reason"), TALKS)
async def test_official_client_talks_through_proxy_and_shim(
    provider: bool, options: dict[str, Any], path: str, reason: str, anonymous: bool, page: Page
) -> None:
    page.fal.app.journal.clear()
    inputs = [{"prompt": "žluťoučký", "n": number} for number in range(2)]
    app = "emulator/text" if path == "/other" else "a/b/c"
    caller = {} if anonymous else {"credentials": page.proxy.user_key, "init": {"headers": page.proxy.bearer}}
    seen = await page.play("client", endpoint=app, inputs=inputs, options=options, provider=provider, **caller)
    assert seen["errors"] == [], reason
    assert len(seen["results"]) == 2
    assert [warning.startswith(DEPRECATED) for warning in seen["warnings"]] == ([] if provider else [True])
    [handshake] = page.fal.app.journal
    query = "?max_buffering=2" if options.get("maxBuffering") else ""
    assert handshake.target.decode() == f"/{app}{path}{query}", "the ticket has stayed with the proxy"
    assert handshake.header("authorization") == f"Key {FAL_KEY.reveal()}"


async def test_what_the_readme_tells_pages_to_write_works(page: Page) -> None:
    section = README.read_text("utf-8").partition("### Realtime\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    [source] = re.findall(r"```js\n(.*?)```", section, re.DOTALL)
    here = source.replace("https://proxy.example.com" + MOUNT, page.proxy.url)
    assert page.proxy.url in here
    seen = await page.play("readme", source=here, input={"prompt": "a lake", "image_url": DOT, "sync_mode": True})
    assert (seen["errors"], seen["warnings"]) == ([], [])
    assert seen["results"][0]["images"]
