"""Who may ask what: keys, short-lived tokens and signed upload URLs, all issued and checked here.

Tokens look like fal's (a JWT with `exp`), their signature is this emulator's own. Stores nothing.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Literal
from urllib.parse import urlencode

from . import answers
from .addresses import Address
from .answers import Answer
from .exchange import Exchange, Json

CDN_TOKEN_SECONDS = 3600
# The real lifetime of a presigned URL is said to be two minutes; an hour lets people look at what they debug.
PRESIGNED_SECONDS = 3600

Verdict = Literal["ok", "missing", "bad", "forbidden"]

_CREDENTIAL = re.compile(r"(?P<scheme>[A-Za-z]+) +(?P<value>[\x21-\x7e]+)")


class Access:
    """The gatekeeper of one emulator; `api_keys` None: any well-formed key is good, `admin_keys` None: and may do all."""

    def __init__(
        self,
        rng: Random,
        clock: Callable[[], float],
        api_keys: Collection[str] | None,
        admin_keys: Collection[str] | None = None,
    ) -> None:
        self._secret = rng.randbytes(32)
        self._clock = clock
        self._admins = None if admin_keys is None else frozenset(admin_keys)
        self._keys = None if api_keys is None else frozenset(api_keys) | (self._admins or frozenset())

    def key(self, exchange: Exchange) -> Verdict:
        """Judge the Authorization header as fal.run, queue.fal.run and rest.fal.ai do."""
        header = exchange.headers.get("authorization")
        if header is None:
            return "missing"
        scheme, value = credential(header)
        if scheme not in ("key", "bearer"):
            return "bad"
        return "ok" if self._keys is None or value in self._keys else "bad"

    def admin(self, exchange: Exchange) -> Verdict:
        """Judge the Authorization header where fal wants a key with admin scope."""
        verdict = self.key(exchange)
        _, value = credential(exchange.headers.get("authorization", ""))
        return "forbidden" if verdict == "ok" and self._admins is not None and value not in self._admins else verdict

    def token(self, exchange: Exchange, address: Address) -> Verdict:
        """Judge ?fal_jwt_token=, which browsers send instead of a header."""
        token = exchange.query.get("fal_jwt_token")
        if token is None:
            return "missing"
        claims = self._open(token, "app")
        if claims is None:
            return "bad"
        # Clients ask for the bare alias, fal's docs for the full endpoint path: both are accepted here.
        names = {address.app.rpartition("/")[2], address.app, address.endpoint, f"{address.endpoint}/{address.kind}"}
        return "ok" if names.intersection(claims["allowed_apps"]) else "forbidden"

    def mint_token(self, allowed_apps: Sequence[str], seconds: float) -> str:
        """Issue the token of /tokens/ and /tokens/realtime."""
        return self._seal({"use": "app", "allowed_apps": list(allowed_apps)}, seconds)

    def mint_cdn_token(self) -> str:
        """Issue the bearer of /storage/auth/token, good for uploads to the CDN only."""
        return self._seal({"use": "cdn"}, CDN_TOKEN_SECONDS)

    def cdn_bearer(self, exchange: Exchange) -> bool:
        """Tell whether the request carries a bearer of /storage/auth/token."""
        scheme, value = credential(exchange.headers.get("authorization", ""))
        return scheme == "bearer" and self._open(value, "cdn") is not None

    def leaked_key(self, exchange: Exchange) -> bool:
        """Tell whether a fal key arrived where no client ever sends one."""
        scheme, value = credential(exchange.headers.get("authorization", ""))
        return scheme == "key" or (self._keys is not None and value in self._keys)

    def sign(self, path: str) -> str:
        """Return the query that makes an upload URL with that path good for PRESIGNED_SECONDS."""
        expires = str(int(self._clock() + PRESIGNED_SECONDS))
        return urlencode({"X-Fal-Expires": expires, "X-Fal-Signature": self._mac(f"{path}\n{expires}")})

    def signed(self, exchange: Exchange, path: str) -> bool:
        """Tell whether the query of a request signs that path and has not expired."""
        expires = exchange.query.get("X-Fal-Expires", "")
        signature = exchange.query.get("X-Fal-Signature", "")
        if not hmac.compare_digest(self._mac(f"{path}\n{expires}").encode(), signature.encode()):
            return False
        return float(expires) > self._clock()

    def _mac(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def _seal(self, claims: dict[str, Json], seconds: float) -> str:
        now = int(self._clock())
        head = _base64url(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        claims = {**claims, "iat": now, "exp": now + int(seconds)}
        body = f"{head}.{_base64url(json.dumps(claims).encode())}"
        return f"{body}.{self._signature(body)}"

    def _open(self, token: str, use: str) -> dict[str, Json] | None:
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(body).encode(), signature.encode()):
            return None
        payload = body.partition(".")[2]
        claims: dict[str, Json] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims if claims["use"] == use and claims["exp"] > self._clock() else None

    def _signature(self, body: str) -> str:
        return _base64url(hmac.new(self._secret, body.encode(), hashlib.sha256).digest())


def refusal(verdict: Verdict, without_key: str) -> Answer | None:
    """Return the answer to a caller who may not, None to one who may; `without_key` is said when nothing was shown."""
    if verdict == "ok":
        return None
    if verdict == "forbidden":
        return answers.detail(403, "Forbidden")
    return answers.detail(401, without_key if verdict == "missing" else "invalid key credentials")


def credential(header: str) -> tuple[str, str]:
    """Split an Authorization value into its lower-case scheme and its credential, empty when malformed."""
    match = _CREDENTIAL.fullmatch(header.strip())
    return (match["scheme"].lower(), match["value"]) if match else ("", "")


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
