"""No secret in a log: a filter for handlers, which masks every secret it knows in whatever a record would show.

It sits on handlers, because a filter of a logger is not asked about records of the loggers below it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

MASK = "••••••••"
MIN_CHARS = 8  # what is shorter is in every text by chance
_render = logging.Formatter()


class SecretMask(logging.Filter):
    """Mask message, arguments, traceback and stack of each record; `learn` may be called at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[object, tuple[str, ...]] = {}
        self._secrets: tuple[str, ...] = ()

    def learn(self, secrets: Iterable[str], of: object = None) -> None:
        """Mask these from now on, instead of what was learnt under the same `of` before."""
        self._of[of] = tuple(secret for secret in secrets if len(secret) >= MIN_CHARS)
        every = {secret for group in self._of.values() for secret in group}
        self._secrets = tuple(sorted(every, key=len, reverse=True))

    def masked(self, text: str) -> str:
        """Return the text without any secret."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record; it is always kept."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 -- arguments that do not fit: logging itself would print them as they are
            message = f"{record.msg} {record.args}"
            record.msg, record.args = self.masked(message), ()
        masked = self.masked(message)
        if masked != message:
            record.msg, record.args = masked, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _render.formatException(record.exc_info)
        if record.exc_text and (text := self.masked(record.exc_text)) != record.exc_text:
            # Without the exception itself nobody can render it anew.
            record.exc_text, record.exc_info = text, None
        if record.stack_info:
            record.stack_info = self.masked(record.stack_info)
        return True
