"""What holds for the whole test run: nothing may be skipped in CI, and the fal key may appear in no log record."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from run import LONGEST
from support.proxied import FAL_KEY_SECRET

pytest_plugins = ["support.peers"]


class _CanaryWatch(logging.Handler):
    """Collect log records that hold the fal key."""

    def __init__(self) -> None:
        super().__init__(level=logging.NOTSET)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if FAL_KEY_SECRET in self.format(record):
            self.leaks.append(record.name)


_watch = _CanaryWatch()


def pytest_configure(config: pytest.Config) -> None:
    """Watch every log record of the run."""
    logging.getLogger().addHandler(_watch)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the workers of the gate begin with its longest files."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), -tests[item.path], item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take from a worker of pytest-xdist what it has seen; its process is not this one."""
    _watch.leaks += getattr(node, "workeroutput", {}).get("leaks", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what broke the rules of the whole run."""
    for name in _watch.leaks:
        terminalreporter.write_line(f"FAILED: the fal key was logged by {name}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for a leaked key, and in CI for a skipped test."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["leaks"] = _watch.leaks
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter is not None and reporter.stats.get("skipped")
    if _watch.leaks or (skipped and os.environ.get("REFUSE_SKIPS") == "1"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
