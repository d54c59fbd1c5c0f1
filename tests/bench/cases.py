"""The cases, one function each: which subjects, what is asked of them, and which figures of a round go into the table.

Subjects take turns within every round, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop

from bench import load
from bench.figures import ADDED, COST, DELAY, GROWTH, IDLE, MESSAGES, RATE, SHARE, SPEED, Figures, Goal
from bench.load import Measured
from bench.machine import LOAD_CORE, peak_bytes, pinned, resident_bytes
from bench.spine import REPORT, STAGES
from bench.subjects import BARE, CALLERS, EXPRESS, HONO, NGINX, Stage, Subject, prove
from support.memory import INITIATE
from support.proxied import MOUNT

POST, MIX, LATENCY, EVENTS = "JSON POST, 32 connections", "app mix, 200 callers", "added latency, one at a time", "SSE"
DOWN, UP, UPLOAD, SOCKETS = "1 GiB down", "1 GiB up", "upload relay", "WebSocket echo"
WITH_TLS = ", TLS upstream"
RUN = "fal.run/bench/run"
GOALS = [
    *(
        Goal(POST + tls, RATE, name, least=least)
        for tls in ("", WITH_TLS)
        for name, least in ((EXPRESS, 6), (HONO, 4), (NGINX, 0.17))
    ),
    Goal(MIX, RATE, EXPRESS, least=6),
    *(
        Goal(LATENCY + tls, ADDED, name, most=most)
        for tls in ("", WITH_TLS)
        for name, most in ((EXPRESS, 0.5), (NGINX, 2))
    ),
    Goal(EVENTS, DELAY, NGINX, most=2),
    Goal(EVENTS, COST, EXPRESS, most=0.4),
    Goal(DOWN, SPEED, NGINX, least=1),
    Goal(UP, SPEED, NGINX, least=0.7),
    Goal(DOWN, GROWTH, None, most=16),
    Goal(UP, GROWTH, None, most=16),
    Goal(SOCKETS, MESSAGES, NGINX, least=0.6),
    Goal(SOCKETS, IDLE, None, most=20_000),
    Goal(POST, RATE, BARE, least=0.6),
]


class Length(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    mebibytes: int
    idle_sockets: int


FULL = Length(rounds=5, seconds=3, mebibytes=1024, idle_sockets=1000)
QUICK = Length(rounds=1, seconds=1, mebibytes=128, idle_sockets=200)


class Bench(NamedTuple):
    """What every case needs."""

    stage: Stage
    length: Length
    figures: Figures

    def rounds(self, what: str) -> Iterator[int]:
        """Count the rounds, saying so."""
        for number in range(self.length.rounds):
            print(f"bench: {what}, round {number + 1} of {self.length.rounds}", file=sys.stderr, flush=True)
            yield number


def post(bench: Bench) -> None:
    """One small JSON POST over and over, and the same one at a time for what a proxy adds to it."""
    for upstream, label in (("plain", ""), ("tls", WITH_TLS)):
        stage, figures = bench.stage, bench.figures
        subjects = [stage.nginx(upstream), *_official(stage, upstream), stage.bare(upstream), stage.ours(upstream)]
        for subject in subjects:
            prove(subject, RUN)
            _posts(bench, subject, 32)  # Node compiles what it does often
        direct = stage.direct("plain")
        for _ in bench.rounds(POST + label):
            for subject in subjects:
                figures.requests(POST + label, subject, _posts(bench, subject, 32))
            alone = _posts(bench, direct, 1).p50_seconds
            for subject in subjects:
                added = _posts(bench, subject, 1).p50_seconds - alone
                figures.add(LATENCY + label, ADDED, subject.name, added * 1e6)


def mix(bench: Bench) -> None:
    """What apps do: 1 submit, 20 polls, 1 result, for 200 callers."""
    stage = bench.stage
    subjects = [stage.nginx("plain"), *_official(stage, "plain"), stage.ours("plain")]
    for subject in subjects:
        prove(subject, RUN)
        load.mix(subject, CALLERS, bench.length.seconds, stage.folder)
    for _ in bench.rounds(MIX):
        for subject in subjects:
            measured = load.mix(subject, CALLERS, bench.length.seconds, stage.folder)
            bench.figures.requests(MIX, subject, measured)


def sse(bench: Bench) -> None:
    """200 streams of five events a second each."""
    stage, streams = bench.stage, 200
    subjects = [stage.nginx("talk"), *_official(stage, "talk"), stage.bare("talk"), stage.ours("talk")]
    subjects.insert(0, stage.direct("talk"))
    for _ in bench.rounds(EVENTS):
        for subject in subjects:
            seconds = bench.length.seconds
            measured = uvloop.run(load.events(subject, "fal.run/bench/run/stream", streams, seconds))
            bench.figures.add(EVENTS, DELAY, subject.name, measured.p50_seconds * 1e3)
            if subject.pid:
                bench.figures.add(EVENTS, COST, subject.name, measured.cost_seconds * 1e6)


def bulk(bench: Bench) -> None:
    """One large answer, one large request."""
    stage, figures = bench.stage, bench.figures
    film = load.make_film(stage.folder, bench.length.mebibytes)
    size = film.stat().st_size
    down = [stage.nginx("plain"), *_official(stage, "plain"), stage.bare("plain"), stage.ours("plain")]
    up = [stage.nginx("talk"), stage.ours("talk")]
    for _ in bench.rounds(DOWN):
        for subject in down:
            with _growth(figures, DOWN, subject):
                figures.speed(DOWN, subject, load.download(subject, "fal.run/bench/film", size))
        for subject in up:
            path, fields = subject.address(RUN)
            with _growth(figures, UP, subject):
                figures.speed(UP, subject, load.upload(subject, path, fields, film, "POST"))


def upload(bench: Bench) -> None:
    """One large file to the file host, in relay mode."""
    stage = bench.stage
    film = load.make_film(stage.folder, bench.length.mebibytes)
    subjects = [stage.nginx("talk"), stage.ours("talk")]
    for _ in bench.rounds(UPLOAD):
        for subject in subjects:
            path = f"{MOUNT}/file" if subject.name == NGINX else _capability(subject)
            fields = {"Content-Type": "video/mp4"}
            measured = load.upload(subject, path, fields, film, "PUT")
            bench.figures.speed(UPLOAD, subject, measured)


def websocket(bench: Bench) -> None:
    """Messages of 1 KiB on 32 sockets, one at a time on each; then many sockets that say nothing."""
    stage, target, length = bench.stage, "fal.run/bench/run/realtime", bench.length
    subjects = [stage.nginx("talk"), stage.ours("talk", header_form=False)]

    async def talk(subject: Subject) -> Measured:
        callers = await load.sockets(subject, target, 32)
        measured = await load.echoes(subject, callers, length.seconds)
        for caller in callers:
            caller.transport.abort()
        return measured

    async def idle(subject: Subject) -> float:
        before = resident_bytes(subject.pid)
        callers = await load.sockets(subject, target, length.idle_sockets)
        each = (resident_bytes(subject.pid) - before) / length.idle_sockets
        for caller in callers:
            caller.transport.abort()
        return each

    for subject in subjects:  # before anything else has made memory that could be used again
        bench.figures.add(SOCKETS, IDLE, subject.name, uvloop.run(idle(subject)))
    for _ in bench.rounds(SOCKETS):
        for subject in subjects:
            measured = uvloop.run(talk(subject))
            bench.figures.add(SOCKETS, MESSAGES, subject.name, measured.rate)
            bench.figures.add(SOCKETS, COST, subject.name, measured.cost_seconds * 1e6)
            bench.figures.add(SOCKETS, SHARE, subject.name, measured.busy * 100)


def admission(bench: Bench) -> None:
    """Admission alone, on memory and on Redis: scripts of their own, whose lines are taken over."""
    few = ["20000"] if bench.length is QUICK else []
    for title, command in (("memory", ["bench.admission", *few]), ("Redis", ["support.redis"])):
        print(f"bench: admission on {title}", file=sys.stderr, flush=True)
        script = pinned(LOAD_CORE, [sys.executable, "-m", *command])
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(script, capture_output=True, text=True, check=False, env=environ)
        if done.returncode:
            raise SystemExit(f"bench: admission on {title} failed: {done.stderr}")
        bench.figures.notes += [f"{title}: {line}" for line in done.stdout.splitlines()]


def spine(bench: Bench) -> None:
    """Where the time of one request goes, stage by stage."""
    stage, seconds = bench.stage, bench.length.seconds * 2
    subject = stage.clocked("plain")
    loads: dict[str, Callable[[], Measured]] = {
        "JSON POST": partial(load.posts, subject, RUN, 32, seconds, stage.folder),
        "app mix": partial(load.mix, subject, CALLERS, seconds, stage.folder),
    }
    for title, run in loads.items():
        print(f"bench: stages of {title}", file=sys.stderr, flush=True)
        run()
        os.kill(subject.pid, signal.SIGUSR1)
        measured = run()
        os.kill(subject.pid, signal.SIGUSR2)
        stages = _told(stage.folder / "clocked" / REPORT)
        requests = measured.rate * seconds
        for name in STAGES:
            bench.figures.stages.setdefault(name, {})[title] = stages.get(name, 0) / 1e3 / requests
        rest = bench.figures.stages.setdefault("the loop, reading sockets, this clock", {})
        rest[title] = measured.cost_seconds * 1e6 - sum(stages.values()) / 1e3 / requests


CASES: dict[str, Callable[[Bench], None]] = {
    each.__name__: each for each in (post, mix, sse, bulk, upload, websocket, admission, spine)
}


def _official(stage: Stage, upstream: str) -> list[Subject]:
    return [stage.official(EXPRESS, upstream), stage.official(HONO, upstream)]


def _posts(bench: Bench, subject: Subject, connections: int) -> Measured:
    return load.posts(subject, RUN, connections, bench.length.seconds, bench.stage.folder)


@contextmanager
def _growth(figures: Figures, case: str, subject: Subject) -> Iterator[None]:
    before = peak_bytes(subject.pid)
    yield
    figures.add(case, GROWTH, subject.name, (peak_bytes(subject.pid) - before) / 2**20)


def _told(report: Path) -> dict[str, int]:
    """Wait for a report and return each stage's nanoseconds."""
    deadline = time.monotonic() + 10
    while not report.exists():
        if time.monotonic() > deadline:
            raise SystemExit("bench: the clocked proxy does not report")
        time.sleep(0.01)
    spent: dict[str, int] = json.loads(report.read_text())["spent"]
    report.unlink()
    return spent


def _capability(subject: Subject) -> str:
    """Ask where to upload; return the path."""
    fields = {"Authorization": subject.address("")[1]["Authorization"], "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=10)
    connection.request("POST", MOUNT + INITIATE, b'{"content_type":"video/mp4"}', fields)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(f"bench: {subject.name} gives no upload URL: {answer.status} {body[:500]!r}")
    url: str = json.loads(body)["upload_url"]
    return "/" + url.split("/", 3)[3]
