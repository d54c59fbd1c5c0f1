"""The key pairs that sign webhooks: what the JWKS shows of them, how they are rotated, what a signature covers.

Knows nothing of jobs or deliveries. A seed gives the same keys every time, so they guard nothing.
"""

import base64
import hashlib
import os
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .answers import Headers
from .chance import chance
from .exchange import Json

_KID_CHARACTERS = 16


class Signer:
    """One account's webhooks at one emulated fal."""

    def __init__(self, seed: int | None) -> None:
        # Not the generator of everything else: what that one draws for a seed must not shift with the keys.
        self._rng = chance("webhooks", os.urandom(32) if seed is None else seed)
        self.user_id: Final = f"github|{self._rng.randrange(10**7, 10**8)}"
        self._stranger = self._new_key()
        self._key = self._new_key()
        self._shown = [self._key]

    def jwks(self) -> dict[str, Json]:
        """Return the public keys as they are served."""
        return {"keys": [_public(key) for key in self._shown]}

    def rotate(self, *, keep_old: bool = False) -> None:
        """Sign with a new key from now on; the JWKS shows it, and beside it the older ones only with `keep_old`."""
        self._key = self._new_key()
        self._shown = [self._key, *self._shown] if keep_old else [self._key]

    def headers(self, request_id: str, body: bytes, timestamp: int, *, forged: bool = False) -> Headers:
        """Return the four headers that sign a body; a forged signature is by a key that the JWKS never shows."""
        digest = hashlib.sha256(body).hexdigest()
        message = f"{request_id}\n{self.user_id}\n{timestamp}\n{digest}".encode()
        key = self._stranger if forged else self._key
        return [
            ("X-Fal-Webhook-Request-Id", request_id),
            ("X-Fal-Webhook-User-Id", self.user_id),
            ("X-Fal-Webhook-Timestamp", str(timestamp)),
            ("X-Fal-Webhook-Signature", key.sign(message).hex()),
        ]

    def _new_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._rng.randbytes(32))


def _public(key: Ed25519PrivateKey) -> dict[str, Json]:
    raw = key.public_key().public_bytes_raw()
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": hashlib.sha256(raw).hexdigest()[:_KID_CHARACTERS]}
