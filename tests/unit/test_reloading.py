"""Settings read anew: what changed, what waits for a restart, and when a file is worth reading."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from fal_proxy.errors import Misconfigured
from fal_proxy.loading import Finding, build
from fal_proxy.reloading import (
    LOOK_SECONDS,
    NEEDS_RESTART,
    FileWatch,
    Follower,
    Reloaded,
    Unsettled,
    Version,
    changes,
    held_back,
    version_of,
)
from fal_proxy.settings import Settings
from support.documents import RESTART, setting_rows


def settings(**raw: Any) -> Settings:
    """Return what a file with these tables says."""
    findings: list[Finding] = []
    built = build(Settings, raw, "", findings)
    assert not findings
    assert isinstance(built, Settings)
    return built


PLAN = {"endpoints": ["fal-ai/**"], "submit": "3/hour"}
CHANGED = [
    ({}, {}, (), "nothing"),
    ({"total_budget": ""}, {}, (), "a default that is written out"),
    ({}, {"total_budget": "1.00/day"}, ("total_budget",), "a setting of the top level"),
    ({}, {"server": {"port": 1}}, ("server.port",), "a setting of a table"),
    ({"plans": {"a": PLAN}}, {"plans": {"a": PLAN | {"submit": ""}}}, ("plans.a.submit",), "of a named table"),
    ({"plans": {"a": PLAN}}, {"plans": {"b": PLAN}}, ("plans.a", "plans.b"), "a plan that went, and one that came"),
    ({"prices": {"x/y": 1}}, {"prices": {"x/y": 1, "default": 2}}, ("prices.default",), "a price that came"),
    ({"prices": {"x/y": {"usd": 1}}}, {"prices": {"x/y": {"usd": 2}}}, ("prices.x/y.usd",), "a price's part"),
    ({}, {"identity": {"header": {"from": ["::1"]}}}, ("identity.header.from",), "a name that Python keeps to itself"),
    ({}, {"inputs": [{"endpoint": "x/y"}]}, ("inputs",), "of a list of tables, the list"),
    (
        {"inputs": [{"endpoint": "x/y", "force": {"safe": True}}]},
        {"inputs": [{"endpoint": "x/y", "force": {"safe": 1}}]},
        ("inputs",),
        "what Python calls equal, and JSON does not",
    ),
    ({"cors": {"origins": ["a", "b"]}}, {"cors": {"origins": ["b", "a"]}}, ("cors.origins",), "an order"),
]


@pytest.mark.parametrize(("before", "after", "names", "reason"), CHANGED, ids=[row[-1] for row in CHANGED])
def test_what_changed_is_named_by_its_path(
    before: dict[str, Any], after: dict[str, Any], names: tuple[str, ...], reason: str
) -> None:
    assert changes(settings(**before), settings(**after)) == names, reason
    assert set(changes(settings(**after), settings(**before))) == set(names), reason


def test_what_changed_shows_no_value() -> None:
    found = changes(settings(), settings(state={"url": "redis://:hunter2hunter2@redis"}))
    assert found == ("state.url",)


def paths(kind: Any = Settings, prefix: str = "") -> set[str]:
    found = set()
    for name, hint in get_type_hints(kind).items():
        inner = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        found |= paths(hint, f"{prefix}{name}.") if inner else {prefix + name}
    return found


def test_every_setting_that_needs_a_restart_exists_and_the_readme_says_so() -> None:
    assert set(NEEDS_RESTART) <= paths()
    assert {row.split("`")[1] for row in setting_rows() if row.endswith(f"{RESTART} |")} == set(NEEDS_RESTART)


OTHERWISE: dict[str, dict[str, Any]] = {
    "mount": {"mount": "/other"},
    "server.host": {"server": {"host": "::1"}},
    "server.port": {"server": {"port": 7}},
    "realtime.max_message_bytes": {"realtime": {"max_message_bytes": 7}},
    "webhooks.mode": {"webhooks": {"mode": "hub"}},
    "state.url": {"state": {"url": "memory://x"}},
    "state.on_failure": {"state": {"on_failure": "local"}},
    "admin.host": {"admin": {"host": "::1"}},
    "admin.port": {"admin": {"port": 7}},
    "telemetry.tracing": {"telemetry": {"tracing": True}},
}


@pytest.mark.parametrize("path", NEEDS_RESTART)
def test_what_needs_a_restart_stays_as_it_runs_and_what_came_with_it_does_not(path: str) -> None:
    running, wanted = settings(), settings(**OTHERWISE[path], total_budget="1.00/day")
    assert set(changes(running, wanted)) == {path, "total_budget"}
    assert changes(running, held_back(running, wanted)) == ("total_budget",)


# Versions of files


def write(path: Path, text: str = "a") -> None:
    path.write_text(text)


def renamed_over(path: Path) -> None:
    write(path.with_name("new"))
    path.with_name("new").rename(path)


def swapped_as_kubernetes_does(path: Path) -> None:
    """A ConfigMap's file is a link to `..data/file`, and `..data` a link that is replaced."""
    folder = path.parent / "..2"
    folder.mkdir()
    write(folder / path.name)
    (path.parent / "tmp").symlink_to(folder.name)
    (path.parent / "tmp").rename(path.parent / "..data")


def made_again(path: Path) -> None:
    path.unlink()
    write(path)


def as_old_as_before(path: Path) -> None:
    """What `rsync --times` and `cp --preserve` do, with as many bytes."""
    state = path.stat()
    write(path, "b")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


DONE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: write(path, "other"), "written in place"),
    (renamed_over, "replaced by a rename"),
    (swapped_as_kubernetes_does, "its folder's link replaced"),
    (made_again, "deleted and made again"),
    (as_old_as_before, "the same size and time"),
    (lambda path: path.resolve().chmod(0o600), "other rights: it may be readable now"),
    (lambda path: path.unlink(), "deleted"),
]


@pytest.mark.parametrize(("done", "reason"), DONE, ids=[row[1] for row in DONE])
def test_whatever_is_done_to_a_file_is_another_version(
    done: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "..1").mkdir()
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "fal-proxy.toml"
    path.symlink_to("..data/fal-proxy.toml")
    write(path)
    before = version_of(path)
    assert before is not None
    assert version_of(path) == before
    done(path)
    assert version_of(path) != before, reason


def test_what_is_no_file_has_no_version(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert [version_of(tmp_path / name) for name in ("pipe", "nothing", ".")] == [None, None, None]


# When a file is read

ONE: Version = (1, 1, 1, 1)
TWO: Version = (2, 2, 2, 2)
THREE: Version = (3, 3, 3, 3)
# What each look sees, a second apart, and at which of them the file is read.
LOOKS: list[tuple[list[Version], list[int], str]] = [
    ([ONE, ONE, ONE], [], "as it was at the start"),
    ([TWO, TWO, TWO, TWO], [1], "another one, once it was the same at two looks"),
    ([TWO, THREE, TWO, THREE, THREE], [4], "one that flaps is not read until it rests"),
    ([ONE, TWO, ONE, ONE], [], "back to what it was before anybody read it"),
    ([TWO, TWO, ONE, ONE], [1, 3], "and back"),
    ([None, None, TWO, TWO], [1, 3], "deleted for a while, which is a version like any other"),
    ([None, ONE, ONE], [], "deleted and back between two looks"),
]


class Stage:
    """A file, a clock, somebody who asks, and what is read."""

    def __init__(self) -> None:
        self.now, self.version, self.asked, self.ending = 0.0, ONE, False, False
        self.read: list[Version] = []
        self.fails: list[BaseException] = []
        self.reloaded = Reloaded((), (), ())
        watch = FileWatch(Path("x"), ONE, look=lambda _: self.version, clock=lambda: self.now)
        self.follower = Follower(watch, self.reread, self, lambda: self.ending, "x.toml")

    async def reread(self, version: Version) -> Reloaded:
        """Read a version, or fail as the test says."""
        self.read.append(version)
        if self.fails:
            raise self.fails.pop(0)
        return self.reloaded

    @property
    def pending(self) -> bool:
        """Whether somebody asked."""
        return self.asked

    def ask(self) -> None:
        """Ask."""
        self.asked = True

    def take(self) -> bool:
        """Answer."""
        asked, self.asked = self.asked, False
        return asked

    async def wait(self, seconds: float) -> None:
        """Never wait: the test turns."""
        raise NotImplementedError

    async def look(self, version: Version) -> bool:
        """Let a second pass and the file be of a version; say whether it was read."""
        self.now += LOOK_SECONDS
        self.version = version
        before = len(self.read)
        await self.follower.turn()
        return len(self.read) > before


@pytest.mark.parametrize(("versions", "read_at", "reason"), LOOKS, ids=[row[-1] for row in LOOKS])
async def test_a_file_is_read_when_it_is_another_one_and_has_settled(
    versions: list[Version], read_at: list[int], reason: str
) -> None:
    stage = Stage()
    assert [at for at, version in enumerate(versions) if await stage.look(version)] == read_at, reason


async def test_what_is_wrong_with_a_version_is_said_once_and_again_when_somebody_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    stage.fails = [Misconfigured(["mount: is\nno path", "x: y"])] * 2
    seen = [await stage.look(TWO) for _ in range(6)]
    assert seen == [False, True, False, False, False, False]
    first = ["x.toml is not put in force: mount: is no path", "x.toml is not put in force: x: y"]
    assert caplog.messages == first
    stage.ask()
    assert await stage.look(TWO)
    assert caplog.messages == first * 2
    assert not stage.pending


async def test_whoever_asks_is_answered_at_once_and_waits_only_for_a_file_that_is_written_to() -> None:
    stage = Stage()
    await stage.look(ONE)
    stage.ask()
    await stage.follower.turn()
    assert stage.read == [ONE], "although nothing changed"
    stage.ask()
    assert not await stage.look(TWO)
    assert stage.pending, "it may be half of what is to come"
    assert await stage.look(TWO)
    assert not stage.pending


async def test_a_file_that_changes_while_it_is_read_is_read_again() -> None:
    stage = Stage()
    stage.fails = [Unsettled()]
    stage.ask()
    assert await stage.look(ONE)
    assert stage.pending, "nobody has an answer yet"
    assert await stage.look(ONE)
    assert not stage.pending


async def test_a_fault_of_ours_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.fails = [RuntimeError("a bug")]
    assert [await stage.look(TWO) for _ in range(3)] == [False, True, False], "nor is it repeated every second"
    assert "a bug" in caplog.text
    assert [await stage.look(THREE) for _ in range(2)] == [False, True]


async def test_at_the_end_of_the_process_nothing_is_read_any_more() -> None:
    stage = Stage()
    stage.ending = True
    stage.ask()
    assert not any([await stage.look(TWO) for _ in range(3)])
    assert not stage.pending


TOLD = [
    (Reloaded(("mount", "prices.x"), (), ()), ["x.toml was read anew; changed: mount, prices.x"]),
    (
        Reloaded((), ("state.url",), ()),
        ["x.toml was read anew; changed: nothing; until a restart as before: state.url"],
    ),
    (
        Reloaded(("cors.origins",), (), (Finding("warning", "plans.a", "is open"),)),
        ["plans.a: is open", "x.toml was read anew; changed: cors.origins"],
    ),
]


@pytest.mark.parametrize(("reloaded", "lines"), TOLD)
async def test_a_good_file_is_told_by_the_names_of_its_changes(
    reloaded: Reloaded, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fal_proxy.reload")
    stage = Stage()
    stage.reloaded = reloaded
    await stage.look(TWO)
    await stage.look(TWO)
    assert caplog.messages == lines
