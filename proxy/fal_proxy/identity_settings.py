"""`[identity]`: who may call, as frozen structs; the part of `settings` that the identity sources are built from."""

from __future__ import annotations

from typing import Annotated, Literal

from fal_proxy.loading import Section, says


class KeySource(Section, frozen=True):
    """`[identity.key]`: user keys, hashed, in a file of their own."""

    file: Annotated[str, says("user keys, hashed; relative to the settings file")] = "users.toml"


class JwtSource(Section, frozen=True):
    """`[identity.jwt]`: tokens of an issuer that we trust, OpenID Connect or any other JWT."""

    issuer: Annotated[str, says("`iss` of the tokens, exactly; https, or http on loopback")] = ""
    audience: Annotated[str, says("what `aud` must be or contain, exactly")] = ""
    jwks_url: Annotated[str, says("where the issuer's keys are; empty: discovered (OpenID Connect)")] = ""
    algorithms: Annotated[tuple[str, ...], says("accepted signatures; RSA, ECDSA and EdDSA only")] = (
        "RS256",
        "ES256",
        "EdDSA",
    )
    plan_claim: Annotated[str, says("the claim that names the caller's plan; without it: `default`")] = "plan"


class ForwardSource(Section, frozen=True):
    """`[identity.forward]`: a service of yours that knows your sessions."""

    url: Annotated[str, says('asked with GET: 200 and `{"id", "plan"?}` is a yes, 401 and 403 are a no')] = ""
    headers: Annotated[tuple[str, ...], says("request fields it is shown; asked only if one is present")] = ("cookie",)
    cache_seconds: Annotated[float, says("how long a yes is believed; a no: 1 s")] = 10


class HeaderSource(Section, frozen=True):
    """`[identity.header]`: the name that your own reverse proxy found out."""

    name: Annotated[str, says("the field that names the caller")] = "x-forwarded-user"
    from_: Annotated[
        tuple[str, ...], says("addresses or networks it is believed from: those of your reverse proxy")
    ] = ()
    secret_header: Annotated[str, says("a field that must equal `FAL_PROXY_HEADER_SECRET`; empty: none")] = ""


class AnonymousSource(Section, frozen=True):
    """`[identity.anonymous]`: whoever shows no credential."""

    plan: Annotated[str, says("the plan of anonymous callers")] = "default"
    network_factor: Annotated[int, says("a network's own limits are this many times the plan's")] = 20


class Identity(Section, frozen=True):
    """`[identity]`: who may call; nobody, until sources are listed."""

    sources: Annotated[
        tuple[Literal["key", "jwt", "forward", "header", "anonymous"], ...],
        says("who may call, in order: `key`, `jwt`, `forward`, `header`, `anonymous`"),
    ] = ()
    key: KeySource = KeySource()
    jwt: JwtSource = JwtSource()
    forward: ForwardSource = ForwardSource()
    header: HeaderSource = HeaderSource()
    anonymous: AnonymousSource = AnonymousSource()
