"""How much each relayed upload has sent: in memory, because it is worth nothing once the upload is over."""

from __future__ import annotations

from collections import OrderedDict

from fal_proxy.errors import Refusal

KEPT_UPLOADS = 10_000
KEPT_PARTS = 200_000  # of all uploads together


class Uploaded:
    """Bytes by upload and part."""

    def __init__(self) -> None:
        self._uploads: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._parts = 0

    def count(self, upload_id: str, part: str, size: int, max_bytes: int) -> None:
        """Count a part, in place of an earlier attempt at it. Raises Refusal body_too_large, with nothing counted."""
        parts = self._uploads.setdefault(upload_id, {})
        if sum(parts.values()) - parts.get(part, 0) + size > max_bytes:
            raise Refusal("body_too_large", f"the file exceeds {max_bytes} bytes (storage.max_upload_bytes)")
        self._parts += part not in parts
        parts[part] = size
        while len(self._uploads) > KEPT_UPLOADS or self._parts > KEPT_PARTS:
            _, oldest = self._uploads.popitem(last=False)
            self._parts -= len(oldest)
