"""How the app's own server knows that a webhook came from this proxy: Standard Webhooks, with the operator's secrets.

The signature is `v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`; during a rotation there is one for
each secret, with spaces between them. See https://www.standardwebhooks.com.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from fal_proxy.environment import Secret, webhook_key
from fal_proxy.headers import Headers


class Signer:
    """Sign what is delivered."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        """Take secrets that `environment.webhook_secrets` has judged, oldest first."""
        self._secrets = tuple(reversed(secrets))

    def fields(self, message_id: str, timestamp: int, body: bytes) -> Headers:
        """Return the three fields; `timestamp` is of this attempt, in unix seconds."""
        signed = f"{message_id}.{timestamp}.".encode() + body
        made = (hmac.digest(webhook_key(secret), signed, hashlib.sha256) for secret in self._secrets)
        return [
            (b"webhook-id", message_id.encode()),
            (b"webhook-timestamp", b"%d" % timestamp),
            (b"webhook-signature", b" ".join(b"v1," + base64.b64encode(digest) for digest in made)),
        ]
