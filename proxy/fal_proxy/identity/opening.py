"""Which sources a deployment has: what is not listed opens nothing and asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fal_proxy.environment import Secret
from fal_proxy.exchange import Request
from fal_proxy.identity import Identities, Source
from fal_proxy.identity.anonymous import Anonymous
from fal_proxy.identity.app import AppUsers, Identify
from fal_proxy.identity.forward import ForwardAuth
from fal_proxy.identity.header import TrustedHeader
from fal_proxy.identity.jwt import JwtBearers
from fal_proxy.identity.key import UserKeys
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.settings import Settings


def open_identities(
    settings: Settings,
    folder: Path,
    signing: Sequence[Secret],
    header_secret: Secret | None,
    identify: Identify | None,
    *,
    is_https: Callable[[Request], bool],
) -> Identities:
    """Build the listed sources in their order, after `identify`; the result closes them. `folder` is the settings',
    `signing` are the secrets that sign, `is_https` says how a browser reaches us."""
    identity = settings.identity

    def anonymous() -> Source:
        trusted = TrustedProxies(settings.server.trusted_proxies)
        return Anonymous(signing, identity.anonymous.plan, trusted, is_https)

    build: dict[str, Callable[[], Source]] = {
        "key": lambda: UserKeys(folder / identity.key.file),
        "jwt": lambda: JwtBearers.of(identity.jwt),
        "forward": lambda: ForwardAuth.of(identity.forward),
        "header": lambda: TrustedHeader(identity.header, header_secret),
        "anonymous": anonymous,
    }
    whole = "forward" in identity.sources and "authorization" in map(str.lower, identity.forward.headers)
    sources: list[Source] = [] if identify is None else [AppUsers(identify)]
    return Identities(sources + [build[name]() for name in identity.sources], any_scheme=whole)
