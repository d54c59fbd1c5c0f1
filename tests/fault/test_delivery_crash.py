"""SIGKILL while events are filed and delivered: none is lost once it was filed, and each reaches the app at least once."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from fal_proxy.identity.key import add
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from support.delivering import Arrived, read_post
from support.hub import APP_HOST, Hub
from support.limited import Clock, Fal, Limited
from support.mortal_hub import TESTS, Mortal, mortal
from support.mortal_mailbox import AT_ONCE, body_of
from support.peers import Peer, Serve
from support.proxied import WEBHOOK_SECRET, Proxy

QUERY = f"?fal_webhook={quote(f'https://{APP_HOST}/hook', safe='')}"
SILENCE_SECONDS = 0.7  # more than three pauses, and than the journal lets pass before what nobody waits for is on disk


class Step(NamedTuple):
    """Where the process dies, what the app says before that and after it, and how often it is told."""

    step: str
    says: tuple[int, ...]
    told: tuple[int, ...]  # any of these
    reason: str


STEPS = [
    Step(
        "after file",
        (200,),
        (1, 2),
        "filed, and fal was not told: it comes again and is a duplicate; told already, perhaps",
    ),
    Step("after claim", (200,), (1,), "claimed, and nothing was sent"),
    Step("before delivered", (200, 200), (2,), "the app has it and nobody noted that"),
    Step("after delivered", (200, 200), (1, 2), "noted, perhaps not on disk"),
    Step("before failed", (503, 200), (2,), "refused, and nobody noted that"),
    Step("after failed", (503, 200), (2,), "refused; whether the pause is on disk or not, there is another attempt"),
    Step("", (0, 200), (2,), "killed from outside while the app thinks"),
]


class App:
    """The app's own server, behind the same override as fal; 0 is no answer."""

    def __init__(self, fal: Fal, says: tuple[int, ...]) -> None:
        self.arrived: list[Arrived] = []
        self.thinking = asyncio.Event()
        self._fal = fal
        self._says = list(says)

    async def script(self, peer: Peer) -> None:
        """Lead one connection: the app's, or fal's."""
        head = await peer.read_head()
        peer._read -= len(head)  # whoever it is for reads it again
        if not head.startswith(f"POST /{APP_HOST}/".encode()):
            await self._fal.script(peer)
            return
        self.arrived.append(await read_post(peer))
        status = self._says.pop(0) if len(self._says) > 1 else self._says[0]
        if status:
            await peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
        self.thinking.set()
        await peer.wait_gone()


def hub_at(process: Mortal, folder: Path, fal: Fal, user_key: str) -> Hub:
    """Return the process as tests of the hub see one."""
    hub = Hub(Limited(Proxy(f"http://127.0.0.1:{process.port}", user_key, None), Clock(), folder), fal)  # type: ignore[arg-type]
    hub.publish(hub.key)
    return hub


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case.step.replace(" ", "-") or "any-time")
async def test_a_kill_at_any_step_still_tells_the_app(case: Step, serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    app = App(fal, case.says)
    upstream = f"http://127.0.0.1:{serve(app.script).port}"
    user_key = add(tmp_path / "users.toml", "ada", "default")
    async with mortal(tmp_path, upstream, step=case.step) as process:
        hub = hub_at(process, tmp_path, fal, user_key)
        job = await hub.submit(hub.limited.ada, QUERY)
        webhook = hub.webhook(job, {"n": 1})
        post = asyncio.create_task(hub.post(webhook))
        if case.step:
            assert await process.died() == signal.SIGKILL
        else:
            await asyncio.wait_for(app.thinking.wait(), 20)
            assert (await post).status == 200
        await asyncio.wait([post])
        if not post.exception():
            assert post.result().status == 200
    for _ in range(2):
        async with mortal(tmp_path, upstream, port=process.port) as process:
            if post.exception():
                assert (await hub_at(process, tmp_path, fal, user_key).post(webhook)).status == 200, "fal comes again"
            async with asyncio.timeout(20):
                while len(app.arrived) < min(case.told):  # noqa: ASYNC110 -- what arrives tells nobody
                    await asyncio.sleep(0.01)
            await asyncio.sleep(SILENCE_SECONDS)
    assert len(app.arrived) in case.told, case.reason
    assert {(arrived.headers["webhook-id"], arrived.body) for arrived in app.arrived} == {(f"msg_{job}", webhook.body)}
    assert all(arrived.signed_with(WEBHOOK_SECRET) for arrived in app.arrived)


def filed_until_killed(folder: Path, first: int, count: int) -> list[str]:
    """Let a process file events from a number on, and kill it after so many; return what it said was filed."""
    command = [sys.executable, "-m", "support.mortal_mailbox", str(folder), str(first)]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        said = [child.stdout.readline().strip() for _ in range(count)]
        child.kill()
        return said + child.stdout.read().splitlines()


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_filed_survives_a_kill_at_any_moment(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    filed: set[str] = set()
    for turn in range(4):
        filed.update(filed_until_killed(tmp_path, turn * 9999, dice.randrange(1, 60)))
        mailbox = MemoryMailbox(Journal(tmp_path))
        kept = {each.event.request_id: each for each in mailbox.state.kept.values()}
        assert filed <= set(kept)
        assert len(set(kept) - filed) <= AT_ONCE * (turn + 1), "filed, and killed before it was said"
        for name, each in kept.items():
            assert each.event.body == body_of(name)
            assert each.stage == "waiting" or int(name[4:]) % 3 == 0
            assert each.attempt == 0 or int(name[4:]) % 5 == 0
        await mailbox.close()
