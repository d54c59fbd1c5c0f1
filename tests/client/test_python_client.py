"""Python's fal_client in the path form, led here by the README's own lines: two versions, sync and async."""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from client.stage import Once, judge
from fal_proxy.emulator import Entry
from fal_proxy.settings import Settings
from support.documents import README
from support.emulated import Emulated, emulated
from support.https import Front, https_front, write_authority
from support.limited import limits, wide
from support.proxied import MOUNT, Proxy, open_settings, proxied, with_server
from support.python import Python, Run, installed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = Path(__file__).with_name("scenarios.py")
LOCK = Path(__file__).with_name("fal-client-0.5.lock")
STATES = ["Queued", "InProgress", "Completed"]  # as a job passes through them
TOOLING = README.parent / ".tooling"


@dataclass(frozen=True)
class Client:
    """One version of fal_client in one of its modes, and what the README tells its users to write."""

    python: Python
    mode: str
    row: str

    @property
    def lines(self) -> list[str]:
        """The code of the README's row: the environment, then what goes into the app."""
        for row in README.read_text("utf-8").splitlines():
            if row.startswith(f"| {self.row}"):
                return re.findall(r"`([^`]*)`", row.split("|")[2])
        raise AssertionError(f"the README has no row {self.row}")


@dataclass(frozen=True)
class PythonStage:
    """A running emulator and a proxy behind https; the user is `ada`."""

    emulated: Emulated
    proxy: Proxy
    front: Front
    authority: Path

    def app(self, client: Client) -> contextlib.AbstractAsyncContextManager[Run]:
        """Start an app that uses the client as the README says."""
        lines = [
            line.replace("proxy.example.com", self.front.authority).replace("fpk_…", self.proxy.user_key)
            for line in client.lines
        ]
        environ = dict(pair.partition("=")[::2] for pair in shlex.split(lines[0]))
        environ |= {"SSL_CERT_FILE": str(self.authority), "HOME": str(self.authority.parent)}
        return client.python.started(SCRIPT, environ, client.mode, "\n".join(lines[1:]))

    def entries(self, host: str) -> list[Entry]:
        """Return what reached one of fal's hosts, in order."""
        return [entry for entry in self.emulated.app.journal if entry.host == host]


@contextlib.asynccontextmanager
async def staged(folder: Path, settings: Settings | None = None, **emulator: Any) -> AsyncIterator[PythonStage]:
    """Run all of it; in the end judge everything that reached fal."""
    async with emulated(**emulator) as upstream, https_front() as front:
        chosen = with_server(settings or open_settings(folder), public_url=front.url)
        # Ownership as an operator has it: what fal's URLs say must have been recorded before we change them.
        chosen = msgspec.structs.replace(chosen, state=msgspec.structs.replace(chosen.state, ownership="strict"))
        async with proxied(upstream.url, folder, chosen) as proxy:
            front.leads_to = proxy.port
            yield PythonStage(upstream, proxy, front, write_authority(folder))
            judge(upstream.app.journal, proxy.user_key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PythonStage]:
    """Run one stage where everything works for the whole module."""
    async with staged(tmp_path_factory.mktemp("proxy")) as ready:
        yield ready


@pytest.fixture
def stage(shared: PythonStage) -> Iterator[PythonStage]:
    """Return the module's stage with an empty journal, and judge the journal afterwards."""
    shared.emulated.app.journal.clear()
    yield shared
    judge(shared.emulated.app.journal, shared.proxy.user_key)


@pytest.fixture(scope="session")
def older() -> Python:
    """Return a Python with fal_client 0.5, which cannot be installed beside the present one."""
    return installed(LOCK, TOOLING / "fal-client-0.5")


CLIENTS = ["1.0-sync", "1.0-async", "0.5-sync", "0.5-async"]


def client_of(name: str, older: Python) -> Client:
    version, _, mode = name.partition("-")
    return Client(older if version == "0.5" else Python(), mode, f"Python, `fal-client` {version} |")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CLIENTS)
async def app(request: pytest.FixtureRequest, shared: PythonStage, older: Python) -> AsyncIterator[Run]:
    """Run an app with each version in each mode; it lives for the whole module, because it takes long to import."""
    async with shared.app(client_of(request.param, older)) as running:
        yield running


async def test_run_returns_the_models_answer(stage: PythonStage, app: Run) -> None:
    seen = await app.ask(scenario="run", endpoint="acme/app/deep", arguments={"prompt": "žluťoučký 🐎"})

    assert (seen["endpoint"], seen["input"]) == ("acme/app/deep", {"prompt": "žluťoučký 🐎"})
    assert [entry.host for entry in stage.emulated.app.journal] == ["fal.run"]


async def test_a_file_goes_up_as_a_data_url(stage: PythonStage, app: Run, tmp_path: Path) -> None:
    content = bytes(range(256)) * 200
    (tmp_path / "a.png").write_bytes(content)
    seen = await app.ask(scenario="run_file", endpoint="acme/app", file=str(tmp_path / "a.png"))

    head, _, data = seen["input"]["image_url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == content


async def test_stream_yields_each_event(stage: PythonStage, app: Run) -> None:
    events = await app.ask(scenario="stream", endpoint="fal-ai/any-llm", arguments={"prompt": "a pier"})

    assert len(events) > 2
    assert events[-1]["output"].startswith(events[0]["output"])
    assert [entry.target for entry in stage.entries("fal.run")] == [b"/fal-ai/any-llm/stream"]


async def test_subscribe_tells_of_the_queue_and_the_logs(stage: PythonStage, app: Run) -> None:
    seen = await app.ask(scenario="subscribe", endpoint="acme/app/deep", arguments={"prompt": "p"})

    assert seen["result"]["input"] == {"prompt": "p"}
    assert len(seen["ids"]) == 1
    states = [STATES.index(update["is"]) for update in seen["updates"]]
    assert states == sorted(states)
    assert seen["updates"][-1]["is"] == "Completed"
    assert seen["updates"][-1]["logs"][-1]["message"] == "echo: done"
    assert {entry.host for entry in stage.emulated.app.journal} == {"queue.fal.run"}


async def test_the_urls_of_a_job_lead_back_here_and_so_does_its_id(stage: PythonStage, app: Run) -> None:
    seen = await app.ask(scenario="queue", endpoint="acme/app/deep", arguments={"prompt": "p"})

    job = f"{stage.front.url}{MOUNT}/queue.fal.run/acme/app/requests/{seen['id']}"
    assert seen["urls"] == [f"{job}/status", job, f"{job}/cancel"]
    assert seen["first"]["is"] in STATES
    assert seen["events"][-1]["is"] == "Completed"
    assert seen["result"]["input"] == {"prompt": "p"}
    assert seen["by_id"]["status"]["is"] == "Completed"
    assert seen["by_id"]["result"] == seen["result"]


async def test_a_job_is_cancelled_by_its_handle_and_by_its_id(stage: PythonStage, app: Run) -> None:
    ends = await app.ask(scenario="cancel", endpoint="emulator/slow", arguments={"seconds": 1000})

    cancels = [entry for entry in stage.entries("queue.fal.run") if entry.method == "PUT"]
    assert [entry.target.endswith(b"/cancel") for entry in cancels] == [True, True]
    assert all(entry.status in (200, 202) for entry in cancels), "in the queue, or already begun"
    assert ["cancelled" in end["message"] for end in ends] == [True, True]


@pytest.mark.parametrize("way", ["run", "subscribe"])
async def test_fals_own_words_about_wrong_input_arrive(stage: PythonStage, app: Run, way: str) -> None:
    seen = await app.ask(scenario="fails", way=way, endpoint="fal-ai/flux/dev", arguments={"num_images": 40})

    assert "Field required" in seen["message"]
    assert len([entry for entry in stage.emulated.app.journal if entry.status == 422]) == 1, "nothing is repeated"


@pytest.mark.parametrize("way", ["run", "submit"])
async def test_a_wrong_user_key_is_told_so_before_fal_is_asked(stage: PythonStage, app: Run, way: str) -> None:
    wrong = "fpk_" + "a" * 43
    seen = await app.ask(scenario="fails", key=wrong, way=way, endpoint="acme/app", arguments={})

    assert seen["message"] == "this credential is not known here, or no longer"
    assert seen["status"] in (401, None), "0.5 tells the words only"
    assert not stage.emulated.app.journal


async def test_uploads_and_tokens_cannot_be_led_here_by_variables(stage: PythonStage, app: Run) -> None:
    hosts = await app.ask(scenario="constants")

    assert hosts[0] in ("https://rest.fal.ai", "https://rest.alpha.fal.ai"), "see the README"
    assert hosts[1:] == ["https://v3.fal.media"]


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_limit_of_ours_is_told_in_our_words_and_fal_hears_nothing_of_the_repeats(
    name: str, older: Python, tmp_path: Path
) -> None:
    settings = limits(tmp_path, wide(submit="1/hour"))
    async with staged(tmp_path, settings) as stage, stage.app(client_of(name, older)) as app:
        arguments = {"prompt": "p"}
        await app.ask(scenario="run", endpoint="acme/app", arguments=arguments)
        seen = await app.ask(scenario="fails", way="submit", endpoint="acme/app", arguments=arguments)

        assert seen["message"].startswith("the limit is 1/hour runs, streams and submits")
        assert len(stage.emulated.app.journal) == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_gateways_failure_is_repeated_by_the_client_until_it_works(mode: str, tmp_path: Path) -> None:
    client = Client(Python(), mode, "Python, `fal-client` 1.0 |")
    once = Once("queue.fal.run/**/status", "nginx502")
    async with staged(tmp_path, faults=[once]) as stage, stage.app(client) as app:
        seen = await app.ask(scenario="subscribe", endpoint="acme/app", arguments={"prompt": "p"})

        assert seen["result"]["input"] == {"prompt": "p"}
        assert [entry.status for entry in stage.entries("queue.fal.run")].count(502) == 1


@pytest.mark.parametrize("use_jwt", [True, False])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_realtime_comes_here_with_a_ticket_of_ours_or_with_the_user_key(
    stage: PythonStage, mode: str, use_jwt: bool
) -> None:
    client = Client(Python(), mode, "Python, `fal-client` 1.0, with realtime")
    async with stage.app(client) as app:
        seen = await app.ask(scenario="realtime", endpoint="acme/app", arguments={"n": 1}, use_jwt=use_jwt)

    assert seen["input"] == {"n": 1}
    assert [entry.host for entry in stage.emulated.app.journal] == ["fal.run"], "fal is asked for no token"
