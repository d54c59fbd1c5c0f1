"""Which sources a deployment has: what is not listed opens nothing and asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fal_proxy.environment import Secret
from fal_proxy.identity import Identities, Source
from fal_proxy.identity.anonymous import Anonymous
from fal_proxy.identity.app import AppUsers, Identify
from fal_proxy.identity.forward import ForwardAuth
from fal_proxy.identity.header import TrustedHeader
from fal_proxy.identity.jwt import JwtBearers
from fal_proxy.identity.key import UserKeys
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.request import Request
from fal_proxy.settings import Settings


class Opened(NamedTuple):
    """A source, and what it was made of: while that is the same, it goes on with all that it has learnt."""

    source: Source
    made_of: object


def open_sources(
    settings: Settings,
    folder: Path,
    signing: Sequence[Secret],
    header_secret: Secret | None,
    *,
    is_https: Callable[[Request], bool],
    kept: Mapping[str, Opened],
) -> dict[str, Opened]:
    """Build the listed sources in their order, but for those of `kept` that would be the same; close each.

    `folder` is the settings', `signing` are the secrets that sign, `is_https` says how a browser reaches us.
    """
    identity = settings.identity
    trusted = TrustedProxies(settings.server.trusted_proxies)
    build: dict[str, tuple[object, Callable[[], Source]]] = {
        "key": (folder / identity.key.file, lambda: UserKeys(folder / identity.key.file)),
        "jwt": (identity.jwt, lambda: JwtBearers.of(identity.jwt)),
        "forward": (identity.forward, lambda: ForwardAuth.of(identity.forward)),
        "header": (identity.header, lambda: TrustedHeader(identity.header, header_secret)),
        # Knows nothing that is worth keeping.
        "anonymous": (object(), lambda: Anonymous(signing, identity.anonymous.plan, trusted, is_https)),
    }
    opened: dict[str, Opened] = {}
    for name in identity.sources:
        made_of, make = build[name]
        before = kept.get(name)
        opened[name] = before if before is not None and before.made_of == made_of else Opened(make(), made_of)
    return opened


def identities_of(settings: Settings, opened: Mapping[str, Opened], identify: Identify | None) -> Identities:
    """Return these sources as one, after `identify`, which names the users of an app that we are mounted in."""
    identity = settings.identity
    whole = "forward" in identity.sources and "authorization" in map(str.lower, identity.forward.headers)
    app: list[Source] = [] if identify is None else [AppUsers(identify)]
    return Identities([*app, *(each.source for each in opened.values())], any_scheme=whole)
