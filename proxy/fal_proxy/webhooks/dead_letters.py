"""What could not be delivered, for the operator: to be looked at, and tried once more."""

from __future__ import annotations

import msgspec

from fal_proxy.admission.refusals import unavailable
from fal_proxy.errors import Refusal, StoreUnavailable
from fal_proxy.stores.mailbox import Mailbox

SHOWN = 1000
_JSON = b"application/json"


class DeadLetters:
    """A view and an action of the admin listener."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    async def view(self) -> tuple[bytes, bytes]:
        """Return content type and body: the newest ones. Raises Refusal."""
        try:
            letters = await self._mailbox.dead_letters(SHOWN)
        except StoreUnavailable as error:
            raise unavailable() from error
        return _JSON, msgspec.json.encode({"dead_letters": letters})

    async def retry(self, number: int) -> tuple[bytes, bytes]:
        """Make one due now, from its first attempt on; return content type and body. Raises Refusal."""
        try:
            revived = await self._mailbox.revive(number)
        except StoreUnavailable as error:
            raise unavailable() from error
        if not revived:
            raise Refusal("not_found", "there is no dead letter of that number")
        return _JSON, msgspec.json.encode({"number": number, "due": "now"})
