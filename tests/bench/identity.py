"""What naming a caller costs: processor microseconds for a head that was never seen, and for one that is known."""

from __future__ import annotations

import asyncio
import sys
import time

from msgspec.structs import replace

from fal_proxy.environment import Secret
from fal_proxy.headers import Headers
from fal_proxy.identity import Identities, Source
from fal_proxy.identity.anonymous import Anonymous
from fal_proxy.identity.jwks import IssuerKeys
from fal_proxy.identity.jwt import JwtBearers
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.request import Request
from fal_proxy.settings import JwtSource
from fal_proxy.upstream.own_calls import OwnCalls
from support.issuer import AUDIENCE, Signer, ec_signer, ed_signer, issuing, rsa_signer, token

CALLS, ROUNDS = 300, 9
SIGNERS = {"RS256": rsa_signer, "ES256": ec_signer, "EdDSA": ed_signer}
FRONT: Headers = [(b"x-forwarded-for", b"203.0.113.9, 10.1.2.3")]


async def cost(source: Source, headers: Headers) -> str:
    """Return the least of a few rounds, of both."""
    identities = Identities([source])
    first = Request("POST", b"/", None, headers, "127.0.0.1", "http")
    figures: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for known, spent in zip((False, True), figures, strict=True):
            requests = [first if known else replace(first, notes={}) for _ in range(CALLS)]
            await identities.identify(first)
            began = time.process_time()
            for request in requests:
                await identities.identify(request)
            spent.append((time.process_time() - began) / CALLS * 1e6)
    return f"{min(figures[0]):.1f} µs, known {min(figures[1]):.1f}"


async def main() -> None:
    """Measure and print."""
    anonymous = Anonymous([Secret("x" * 40)], "default", TrustedProxies(["127.0.0.1", "10.0.0.0/8"]), lambda _: True)
    page = Request("POST", b"/", None, [*FRONT, (b"origin", b"https://a.example")], "127.0.0.1", "http")
    cookie = ((await Identities([anonymous]).identify(page)).set_cookie or b"").partition(b";")[0]
    say = sys.stdout.write
    say(f"no cookie: {await cost(anonymous, [])}\n")
    say(f"a cookie behind a trusted proxy: {await cost(anonymous, [*page.headers, (b'cookie', cookie)])}\n")
    async with issuing() as issuer:
        signers: dict[str, Signer] = {name: made() for name, made in SIGNERS.items()}
        issuer.keys = [signer.public(name) for name, signer in signers.items()]
        settings = JwtSource(issuer=issuer.url, audience=AUDIENCE)
        calls = OwnCalls(seconds=5, max_bytes=64 * 1024, connections=2)
        source = JwtBearers(settings, IssuerKeys(calls, issuer.url, "", settings.algorithms))
        for name, signer in signers.items():
            text = token({"alg": signer.algorithm, "kid": name}, issuer.claims(time.time()), signer.sign)
            say(f"a JWT, {name}: {await cost(source, [(b'authorization', b'Bearer ' + text.encode())])}\n")
        await source.close()


if __name__ == "__main__":
    asyncio.run(main())
