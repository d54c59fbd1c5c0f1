"""Renders pictures in threads, each once, and keeps the latest. Knows neither files nor URLs."""

import asyncio
from collections import OrderedDict

from .picture import Picture, encode, render

KEPT_BYTES = 64 * 1024 * 1024


class Gallery:
    """A cache of encoded pictures, bounded in bytes, least recently used out first."""

    def __init__(self) -> None:
        self._encoded: OrderedDict[Picture, bytes] = OrderedDict()
        self._bytes = 0
        self._turn = asyncio.Lock()  # one at a time: nothing is drawn twice, and other threads stay free

    async def show(self, picture: Picture) -> bytes:
        """Return the encoded picture, the same bytes every time."""
        content = self._encoded.get(picture)
        if content is None:
            basis = picture.source
            source = await self.show(basis) if isinstance(basis, Picture) else basis
            async with self._turn:
                content = self._encoded.get(picture)
                if content is None:
                    content = await asyncio.to_thread(_make, picture, source)
                    self._keep(picture, content)
        if picture in self._encoded:
            self._encoded.move_to_end(picture)
        return content

    def _keep(self, picture: Picture, content: bytes) -> None:
        self._encoded[picture] = content
        self._bytes += len(content)
        while self._bytes > KEPT_BYTES and len(self._encoded) > 1:
            _, dropped = self._encoded.popitem(last=False)
            self._bytes -= len(dropped)


def _make(picture: Picture, source: bytes | None) -> bytes:
    return encode(render(picture, source), picture.format)
