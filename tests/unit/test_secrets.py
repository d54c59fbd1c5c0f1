"""Secrets: read oldest first, never printed, formatted or moved, and in no repr of what the proxy is made of."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import msgspec
import pytest

from fal_proxy.app import create_app
from fal_proxy.environment import Secret, signing_secrets
from fal_proxy.exchange import Kind, Target
from fal_proxy.loading import Finding
from fal_proxy.relay.http import Outgoing
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Dialer, Origin
from fal_proxy.upstream.engine import Engine
from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET, SIGNING_SECRET, open_settings


def paths(findings: list[Finding]) -> list[str]:
    """Return where the errors are."""
    assert all(finding.level == "error" for finding in findings)
    return [finding.path for finding in findings]


def test_signing_secrets_come_oldest_first_from_variable_or_file(tmp_path: Path) -> None:
    old, new = "o" * 16, "n" * 16
    file = tmp_path / "secrets"
    file.write_text(f"{old}\n{new}\n")
    file.chmod(0o600)
    for environ in ({"FAL_PROXY_SECRET": f" {old}, {new},"}, {"FAL_PROXY_SECRET_FILE": str(file)}):
        findings: list[Finding] = []
        assert [secret.reveal() for secret in signing_secrets(environ, findings)] == [old, new]
        assert findings == []


def test_short_secret_and_missing_file_are_findings_without_the_secret(tmp_path: Path) -> None:
    findings: list[Finding] = []
    signing_secrets({"FAL_PROXY_SECRET": "s" * 16 + ",shortcanary"}, findings)
    signing_secrets({"FAL_PROXY_SECRET_FILE": str(tmp_path / "none")}, findings)
    assert paths(findings) == ["FAL_PROXY_SECRET", "FAL_PROXY_SECRET_FILE"]
    assert "shortcanary" not in str(findings)


def test_secret_can_be_neither_printed_nor_formatted_nor_moved() -> None:
    secret = Secret("canary")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", f"{secret:>40}", str([secret])]
    assert all("canary" not in text for text in shown)
    assert not hasattr(secret, "__dict__")
    for move in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            move(secret)
    with pytest.raises(TypeError):
        msgspec.json.encode({"key": secret})
    assert Secret("canary") != Secret("canary"), "comparing is no way to learn it"


def test_a_request_that_goes_up_shows_no_bearer() -> None:
    target = Target(b"v3b.fal.media", b"/files/upload", None, Kind.UPLOAD_PART)
    fields = [(b"authorization", b"Bearer canary")]
    outgoing = Outgoing(b"PUT", Origin("https", "fal.run", 443), b"/files/upload", fields, target, 0)
    assert b"canary" in outgoing.text
    assert "canary" not in repr(outgoing)


async def test_no_repr_of_what_the_proxy_is_made_of_holds_the_key(tmp_path: Path) -> None:
    settings = open_settings(tmp_path)
    environ = {"FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_KEY": FAL_KEY.reveal()}
    app = create_app(settings, environ=environ, key=FAL_KEY)
    engine = Engine(Dialer(1))
    call = Call(Connection(), Origin("https", "fal.run", 443), lambda *_: None, reused=False)
    gateway, deployments = app._gateway, app._deployments
    sources = gateway.identities._sources
    parts = [
        settings,
        app,
        vars(app),
        gateway,
        engine,
        call,
        *sources,
        vars(deployments),
        deployments.origin,
        app._lasting,
    ]
    shown = " ".join(repr(part) for part in [*parts, deployments.current])
    shown += " ".join(str(vars(source)) for source in sources if hasattr(source, "__dict__"))
    assert f"Key({FAL_KEY_ID[:8]}…)" in shown, "the gateway holds the key, and shows that it does"
    assert FAL_KEY_ID not in shown
    assert FAL_KEY_SECRET not in shown
    await app.close()
