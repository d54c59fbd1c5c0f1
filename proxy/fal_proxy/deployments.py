"""Which deployment is in force, which before it still serve somebody, and how one follows the other.

Whatever begins takes the one in force and keeps it to its end. What a deployment asks with (identity sources, the price
feed) may have passed on to the next; it is closed when none that is in force or in use has it any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fal_proxy import check
from fal_proxy.assembly import Closable, Deployment, Lasting, deploy, put_in_force
from fal_proxy.environment import Secret
from fal_proxy.errors import Misconfigured
from fal_proxy.exchange import Reload
from fal_proxy.loading import Finding
from fal_proxy.reloading import Reloaded, Unsettled, Version, changes, held_back, version_of
from fal_proxy.settings import Settings, config_path

_log = logging.getLogger("fal_proxy.reload")


@dataclass(frozen=True, slots=True, repr=False)
class Origin:
    """Where settings come from, and what they are examined with."""

    config: str | Path | None
    environ: Mapping[str, str]
    key: Secret | None
    embedded: bool

    @property
    def path(self) -> Path:
        """The settings file, there or not."""
        return config_path(self.config, self.environ)

    def examine(self, settings: Settings | None = None, config: Path | None = None) -> check.Report:
        """Return what there is to say of `settings`, else of the file, which may not be missing if it is given here."""
        return check.examine(settings, config or self.config, self.environ, key=self.key, embedded=self.embedded)


class Deployments:
    """The deployment in force and those before it; close them all, once nothing is served any more."""

    def __init__(
        self, lasting: Lasting, current: Deployment, origin: Origin, version: Version, findings: Iterable[Finding]
    ) -> None:
        """Take the version of the file that the current settings are of, and the findings, which are said already."""
        self.current = current
        self.origin = origin
        self._lasting = lasting
        self._before: list[Deployment] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._renewing = asyncio.Lock()
        self._closed = False
        self._had_file = version is not None
        self._said = frozenset(findings)
        put_in_force(lasting, current)

    def enter(self) -> Deployment:
        """Return the deployment in force, which stays as it is until `leave`."""
        deployment = self.current
        deployment.users += 1
        return deployment

    def leave(self, deployment: Deployment) -> None:
        """Say that something is over which entered."""
        deployment.users -= 1
        if deployment is not self.current and not deployment.users:
            self._let_go()

    async def renew(self, read: Callable[[], check.Report]) -> Reloaded:
        """Put in force what `read` examines, in a thread. Raises Misconfigured, and then nothing has changed.

        What needs a restart stays as it is. Several at once come one after the other.
        """
        async with self._renewing:
            if self._closed:
                raise RuntimeError("the app is closed")
            metrics = self._lasting.telemetry.metrics
            try:
                reloaded = await self._renew(read)
            except Unsettled:
                raise
            except Exception:
                metrics.reread(Reload.REFUSED)
                raise
            metrics.reread(Reload.APPLIED if reloaded.changed else Reload.UNCHANGED, len(reloaded.waiting))
            return reloaded

    async def reread(self, version: Version) -> Reloaded:
        """Put the settings file in force. Raises Misconfigured; Unsettled when it is, or becomes, another version."""
        path = self.origin.path
        # Without a file one can begin, but a file that is gone is more often a mistake than a wish for no settings.
        config = path if version is not None or self._had_file else None

        def read() -> check.Report:
            if version_of(path) != version:
                raise Unsettled
            if version is None and path.exists():
                raise Misconfigured([f"{path}: is no file that can be read again"])
            report = self.origin.examine(config=config)
            if version_of(path) != version:
                raise Unsettled
            return report

        reloaded = await self.renew(read)
        self._had_file = self._had_file or version is not None
        return reloaded

    async def close(self) -> None:
        """Close what any of them asks with; nothing is read anew after this."""
        self._closed = True
        async with self._renewing:
            pass
        while self._closing:
            await asyncio.wait(self._closing)
        before, self._before = self._before, []
        for each in _distinct([self.current, *before]):
            await _close(each)

    async def _renew(self, read: Callable[[], check.Report]) -> Reloaded:
        report = await asyncio.to_thread(read)
        _judge(report)
        running, wanted = self.current.settings, report.settings
        settings = held_back(running, wanted)
        changed, waiting = changes(running, settings), changes(settings, wanted)
        if waiting:
            # Each half may be right by itself, and the two together open what neither of them would.
            mixed = await asyncio.to_thread(self.origin.examine, settings)
            _judge(mixed, f" (with {', '.join(waiting)} as before, until a restart)")
        if changed:
            self._replace(await asyncio.to_thread(self._deploy, settings))
        fresh = [each for each in report.findings if each not in self._said]
        self._said = frozenset(report.findings)
        return Reloaded(changed, waiting, tuple(fresh))

    def _deploy(self, settings: Settings) -> Deployment:
        try:
            return deploy(self._lasting, settings, self.current)
        except (OSError, ValueError) as error:
            raise Misconfigured([f"the settings cannot be put in force: {error}"]) from error

    def _replace(self, deployment: Deployment) -> None:
        self._before.append(self.current)
        self.current = deployment
        put_in_force(self._lasting, deployment)
        self._let_go()

    def _let_go(self) -> None:
        idle = [each for each in self._before if not each.users]
        self._before = [each for each in self._before if each.users]
        kept = {id(each) for each in _distinct([self.current, *self._before])}
        for each in _distinct(idle):
            if id(each) not in kept:
                task = asyncio.get_running_loop().create_task(_close(each))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)


def _judge(report: check.Report, note: str = "") -> None:
    """Raise Misconfigured for errors."""
    if report.errors:
        raise Misconfigured([f"{finding.path}: {finding.message}{note}" for finding in report.errors])


def _distinct(deployments: Iterable[Deployment]) -> list[Closable]:
    return list({id(each): each for deployment in deployments for each in deployment.asks_with}.values())


async def _close(closable: Closable) -> None:
    try:
        await closable.close()
    except Exception:  # noqa: BLE001 -- nobody waits for this, and the others are to be closed too
        _log.exception("fault while closing what an earlier version of the settings had")
