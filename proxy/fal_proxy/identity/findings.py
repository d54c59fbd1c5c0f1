"""What is wrong or open in `[identity]`, as Findings: the sources that rely on someone else's word about who calls.

The key file and the signing secret are judged by `check`, which reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fal_proxy.environment import MIN_SECRET_BYTES, Secret
from fal_proxy.identity import DEFAULT_PLAN
from fal_proxy.identity.app import APP
from fal_proxy.identity.jwks import ALGORITHMS
from fal_proxy.identity.network import Networks
from fal_proxy.loading import Finding
from fal_proxy.settings import ENV_HEADER_SECRET, ForwardSource, HeaderSource, Identity, JwtSource, Settings
from fal_proxy.upstream.own_calls import is_askable

_AMBIENT = {
    "anonymous": "anonymous callers need",
    "forward": "forward auth needs",
    "header": "a trusted header needs",
    APP: "the users of your own app need",
}
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §5.6.2
# Fields that frame a message, or that decide something else here: neither may be passed on or name anybody.
_FRAMING = frozenset(
    ["connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"]
) | frozenset(["proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"])
_TAKEN = _FRAMING | frozenset(["authorization", "cookie", "origin", "sec-fetch-site", "x-fal-target-url"])


def judge_sources(settings: Settings, secret: Secret | None, *, embedded: bool = False) -> Iterator[Finding]:
    """Yield every finding about the listed sources; `secret` is the environment's for the trusted header.

    `embedded`: an app names its users too.
    """
    identity = settings.identity
    sources = [*([APP] if embedded else []), *identity.sources]
    if not sources:
        message = 'nobody may call: list "key", "jwt", "forward", "header" or "anonymous"'
        yield Finding("error", "identity.sources", message)
    if len(set(sources)) != len(sources):
        yield Finding("error", "identity.sources", "lists a source twice")
    if "jwt" in sources:
        yield from _judge_jwt(identity.jwt)
    if "forward" in sources:
        yield from _judge_forward(identity.forward)
    if "header" in sources:
        yield from _judge_header(identity.header, secret)
    if not settings.server.public_url and not settings.server.hosts:
        for source in dict.fromkeys(source for source in sources if source in _AMBIENT):
            message = f"{_AMBIENT[source]} public_url or hosts: the browser must know what is ours"
            yield Finding("error", "server.public_url", message)
    if DEFAULT_PLAN not in settings.plans:
        if "header" in sources:
            yield Finding("error", "identity.header", "its callers are on plan `default`, and there is none")
        for source in ("jwt", "forward", APP):
            if source in sources:
                message = "callers without a plan of their own are on plan `default`, and there is none"
                yield Finding("warning", "identity" if source == APP else f"identity.{source}", message)


def named_elsewhere(identity: Identity) -> list[str]:
    """Return who calls by someone else's word, one line per listed source."""
    words = {
        "jwt": f"tokens of {identity.jwt.issuer} (plan: claim {identity.jwt.plan_claim}, else {DEFAULT_PLAN})",
        "forward": f"whoever {identity.forward.url} names (plan: its answer's, else {DEFAULT_PLAN})",
        "header": f"whoever {', '.join(identity.header.from_)} names in {identity.header.name} (plan {DEFAULT_PLAN})",
    }
    return [words[source] for source in identity.sources if source in words]


def _judge_jwt(jwt: JwtSource) -> Iterator[Finding]:
    if not is_askable(jwt.issuer):
        yield Finding("error", "identity.jwt.issuer", "must be a https URL, or http on loopback: iss of the tokens")
    if not jwt.audience:
        message = "must be what the tokens for this proxy have as aud: else tokens for any app of the issuer count"
        yield Finding("error", "identity.jwt.audience", message)
    if jwt.jwks_url and not is_askable(jwt.jwks_url):
        yield Finding("error", "identity.jwt.jwks_url", "must be a https URL, or http on loopback")
    if not jwt.algorithms:
        yield Finding("error", "identity.jwt.algorithms", "no token can be accepted without one")
    for name in jwt.algorithms:
        if name not in ALGORITHMS:
            message = f"{name!r} is not one of {', '.join(ALGORITHMS)}: anything else proves nothing or shares a secret"
            yield Finding("error", "identity.jwt.algorithms", message)
    if not jwt.plan_claim:
        yield Finding("error", "identity.jwt.plan_claim", "must be the name of a claim")


def _judge_forward(forward: ForwardSource) -> Iterator[Finding]:
    if not is_askable(forward.url.replace("http://", "https://", 1)):
        yield Finding("error", "identity.forward.url", "must be a URL such as https://app.example.com/whoami")
    elif not is_askable(forward.url):
        yield Finding("warning", "identity.forward.url", "plain http: your callers' sessions travel there in the clear")
    if not forward.headers:
        yield Finding("error", "identity.forward.headers", "it is never asked without a field to show")
    for name in forward.headers:
        if not _TOKEN.fullmatch(name) or name.lower() in _FRAMING:
            yield Finding("error", "identity.forward.headers", f"{name!r} is no field that can be passed on")
    if not 0 <= forward.cache_seconds <= 3600:
        message = "must be 0 to 3600 seconds: so long does a session go on here after its end"
        yield Finding("error", "identity.forward.cache_seconds", message)


def _judge_header(header: HeaderSource, secret: Secret | None) -> Iterator[Finding]:
    for path, name in (("name", header.name), ("secret_header", header.secret_header or "x-unused")):
        if not _TOKEN.fullmatch(name) or name.lower() in _TAKEN:
            yield Finding("error", f"identity.header.{path}", f"{name!r} is no field that can be used for this")
    if header.secret_header and header.name.lower().replace("_", "-") == header.secret_header.lower().replace("_", "-"):
        yield Finding("error", "identity.header.secret_header", "must be another field than the name's")
    if not header.from_:
        yield Finding("error", "identity.header.from", "must list your reverse proxy: else anybody could be anybody")
    for network in header.from_:
        try:
            Networks([network])
        except ValueError as error:
            yield Finding("error", "identity.header.from", str(error))
            continue
        if network.endswith("/0"):
            yield Finding("error", "identity.header.from", f"{network} is everybody: else anybody could be anybody")
    if header.secret_header and secret is None:
        yield Finding("error", ENV_HEADER_SECRET, "identity.header.secret_header needs it: set it to 32 random bytes")
    if secret is not None and len(secret.reveal().encode()) < MIN_SECRET_BYTES:
        yield Finding("error", ENV_HEADER_SECRET, f"needs at least {MIN_SECRET_BYTES} bytes")
