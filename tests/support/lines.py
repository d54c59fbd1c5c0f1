"""The access lines that the proxy under test writes, and what its metrics say."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from fal_proxy.app import App
from fal_proxy.telemetry.access import LOGGER
from support.peers import PATIENCE, turns

Sample = tuple[str, dict[str, str], float]


class Lines(logging.Handler):
    """Collect access lines; `text` is what was written, byte for byte."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._arrived = asyncio.Event()

    def __enter__(self) -> Self:
        logger = logging.getLogger(LOGGER)
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logger = logging.getLogger(LOGGER)
        logger.removeHandler(self)
        logger.setLevel(logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line."""
        self.text.append(record.getMessage())
        self._arrived.set()

    async def exactly(self, count: int) -> list[dict[str, Any]]:
        """Return all lines as soon as there are `count`, and see that no further one follows."""
        async with asyncio.timeout(PATIENCE):
            while len(self.text) < count:
                self._arrived.clear()
                await self._arrived.wait()
        await turns()
        assert len(self.text) == count, self.text
        return [json.loads(line) for line in self.text]


def samples(app: App) -> list[Sample]:
    """Return every sample of an app's metrics, read back by Prometheus' own parser."""
    return parsed(app.metrics.exposition().decode())


def parsed(text: str) -> list[Sample]:
    """Return every sample of an exposition."""
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def total(found: list[Sample], name: str, **labels: str) -> float:
    """Return the sum of the samples called `name` that carry `labels`."""
    return sum(value for key, have, value in found if key == name and labels.items() <= have.items())
