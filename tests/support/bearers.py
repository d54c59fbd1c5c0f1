"""An issuer of tokens and the source that believes it, with the clock of both in a test's hands."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from fal_proxy.identity.jwks import IssuerKeys
from fal_proxy.identity.jwt import JwtBearers
from fal_proxy.settings import JwtSource
from fal_proxy.upstream.own_calls import OwnCalls
from support.issuer import AUDIENCE, Issuer, ec_signer, ed_signer, issuing, rsa_signer, token
from support.peers import PATIENCE
from support.services import Clock


class Stage(NamedTuple):
    """An issuer, the source that believes it, and their clock."""

    issuer: Issuer
    source: JwtBearers
    clock: Clock

    def mint(self, header: dict[str, Any] | None = None, *, by: str = "rsa", **claims: Any) -> str:
        """Return a token that is good but for what is changed; None removes."""
        signer = {"rsa": rsa_signer(), "ec": ec_signer(), "ed": ed_signer()}[by]
        fields = {"alg": signer.algorithm, "kid": by, **(header or {})}
        fields = {name: value for name, value in fields.items() if value is not None}
        return token(fields, self.issuer.claims(self.clock.now, **claims), signer.sign)


@contextlib.asynccontextmanager
async def fresh(issuer: Issuer) -> AsyncIterator[Stage]:
    """Yield a source that has not fetched anything, of an issuer that nobody has asked."""
    issuer.keys = [rsa_signer().public("rsa"), ec_signer().public("ec"), ed_signer().public("ed")]
    issuer.service.asked.clear()
    clock = Clock()
    settings = JwtSource(issuer=issuer.url, audience=AUDIENCE)
    calls = OwnCalls(seconds=PATIENCE, max_bytes=64 * 1024, connections=2)
    source = JwtBearers(settings, IssuerKeys(calls, issuer.url, "", settings.algorithms, clock=clock), clock=clock)
    yield Stage(issuer, source, clock)
    await source.close()


@pytest.fixture
async def staging() -> AsyncIterator[Stage]:
    """A fresh source of an issuer of its own."""
    async with issuing() as issuer, fresh(issuer) as staged:
        yield staged
