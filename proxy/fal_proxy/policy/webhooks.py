"""Where a caller may have fal send a job's end: one strict form of URL, on hosts that the operator lists.

Judged is what fal will read: the value with its escapes undone once. Whatever two readers could take for two addresses
is refused. Also what is wrong or open in `[webhooks]`, as Findings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from urllib.parse import quote, urlsplit

from fal_proxy.environment import webhook_secrets
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Target
from fal_proxy.loading import Finding
from fal_proxy.policy.target import MAX_TARGET_BYTES
from fal_proxy.settings import ENV_WEBHOOK_SECRET, Settings

NAME = b"fal_webhook"
_HOST = r"(?:[a-z0-9](?:[a-z0-9\-]*[a-z0-9])?\.)+[a-z](?:[a-z0-9\-]*[a-z0-9])?"
_REST = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*"
_URL = re.compile(rf"https://(?P<host>{_HOST})(?::443)?(?P<rest>/{_REST})?".encode())


def judge(target: Target, hosts: Collection[str]) -> str:
    """Return where the client of a submit wants its job's end sent, "" for nowhere. Raises Refusal `webhook_denied`."""
    if target.webhook is None:
        return ""
    # In a query `+` is a space to some readers and a plus to others.
    value = next(value for name, value in _parameters(target.query) if name == NAME)
    match = _URL.fullmatch(target.webhook) if b"+" not in value else None
    if match is None or match["host"].decode() not in hosts:
        detail = "fal_webhook must be https://, on a host that webhooks.allowed_hosts lists, with every + as %2B"
        raise Refusal("webhook_denied", detail)
    return target.webhook.decode()


def aim(url: str, hosts: Collection[str]) -> tuple[bytes, bytes] | None:
    """Return host, path and query of what `judge` returned once; None if its host is not one of `hosts` any more."""
    match = _URL.fullmatch(url.encode())
    return (match["host"], match["rest"] or b"/") if match is not None and match["host"].decode() in hosts else None


def with_webhook(target: Target, url: str) -> bytes:
    """Return the target's query with this fal_webhook in the place of the client's, or behind everything else.

    Raises Refusal `invalid_target` when the target would become longer than any may be.
    """
    ours = NAME + b"=" + quote(url, safe="").encode()
    parts = [] if target.query is None else target.query.split(b"&")
    replaced = [ours if part.partition(b"=")[0] == NAME else part for part in parts]
    query = b"&".join(replaced if target.webhook is not None else [*parts, ours])
    if len(target.path) + 1 + len(query) > MAX_TARGET_BYTES:
        detail = f"with the proxy's own webhook the target exceeds {MAX_TARGET_BYTES} bytes; shorten fal_webhook"
        raise Refusal("invalid_target", detail)
    return query


def findings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong or open."""
    faults: list[Finding] = []
    secrets = webhook_secrets(environ, faults)
    yield from faults
    webhooks, public_url = settings.webhooks, settings.server.public_url
    for host in webhooks.allowed_hosts:
        if not re.fullmatch(_HOST, host):
            message = f"{host!r} is no host name: lower case, with a dot, without scheme, port and path"
            yield Finding("error", "webhooks.allowed_hosts", message)
    if webhooks.mode == "off":
        return
    if webhooks.allowed_hosts and not secrets and not faults:
        message = (
            "what is forwarded to webhooks.allowed_hosts is signed: set it to whsec_ and 32 random bytes in base64"
        )
        yield Finding("error", ENV_WEBHOOK_SECRET, message)
    if not public_url:
        yield Finding("error", "server.public_url", "webhooks.mode = hub needs it: it is what fal is told to call")
    elif not public_url.startswith("https://"):
        yield Finding("warning", "server.public_url", "fal will send what jobs have made over plain http")
    hosts, called = {host.lower() for host in settings.server.hosts}, urlsplit(public_url).hostname
    if public_url and hosts and not hosts & {"*", called}:
        yield Finding("error", "server.hosts", f"does not list {called}, which fal is told to call (server.public_url)")
    if settings.state.url == "memory://":
        message = "with memory:// the events of webhooks do not survive a restart: memory:///folder keeps them"
        yield Finding("warning", "webhooks.mode", message)


def _parameters(query: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    for part in (query or b"").split(b"&"):
        name, _, value = part.partition(b"=")
        yield name, value
