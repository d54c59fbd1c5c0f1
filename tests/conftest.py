"""What holds for the whole test run: nothing may be skipped in CI, and the fal key may appear in no log record."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from run import LONGEST, TOGETHER
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


class _Scheduling(LoadFileScheduling):  # type: ignore[misc] # without types
    """A worker takes a file, or a whole folder of those that stay together."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.removeprefix("tests/").partition("/")[0]
        return folder if folder in TOGETHER else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Let folders stay together that share what is costly to start."""
    return _Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the workers of the gate begin with what takes longest."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    here = Path(__file__).parent

    def order(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.relative_to(here).as_posix()
        folder = name.partition("/")[0]
        if folder in TOGETHER:  # in the order that pytest wants for the fixtures that its files share
            return LONGEST.index(folder), 0, ""
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), -tests[item.path], name

    items.sort(key=order)


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
