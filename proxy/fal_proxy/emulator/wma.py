"""wma.fal.run: world models over WebRTC. A session lives as long as its heartbeats come; media is not emulated."""

import json
from dataclasses import dataclass

from . import answers
from .answers import Answer
from .exchange import Exchange, Json
from .models.schema import Field, InvalidInputError, one_of, problem, string, validate
from .peer import answer_sdp, ice_servers
from .world import World

HEARTBEAT_SECONDS = 5.0  # how often clients send one
PATIENCE_SECONDS = 3 * HEARTBEAT_SECONDS
_KEPT_SESSIONS = 1000


@dataclass
class _Session:
    app_id: str
    seen_at: float


class Wma:
    """The world-model sessions of one emulator; silence ends them, and what fal bills is the time between heartbeats."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sessions: dict[str, _Session] = {}
        self._routes = {"/ice": self._ice, "/session": self._open, "/session/heartbeat": self._heartbeat}

    async def serve(self, exchange: Exchange) -> Answer:
        """Serve one request that has been let in."""
        route = self._routes.get(exchange.path.rstrip("/"))
        if route is None:
            return answers.detail(404, "Not Found")
        if exchange.method != "POST":
            return answers.detail(405, "Method Not Allowed", [("allow", "POST")])
        try:
            return route(exchange, json.loads(await exchange.body() or b"null"))
        except InvalidInputError as refused:
            return answers.invalid(refused.problems)
        except (ValueError, RecursionError):
            return answers.invalid([problem(("body",), "JSON decode error", "json_invalid", {})])

    def _ice(self, _: Exchange, body: Json) -> Answer:
        validate((Field("app_id", string(1), required=True),), body)
        return answers.json_answer(
            200, {"ice_servers": ice_servers(self._world), "status": "ok", "credential_age_seconds": 0}
        )

    def _open(self, _: Exchange, body: Json) -> Answer:
        fields = (
            Field("app_id", string(1), required=True),
            Field("sdp", string(1), required=True),
            Field("type", one_of("offer"), required=True),
        )
        given = validate(fields, body)
        session_id = self._world.new_id()
        self._sessions[session_id] = _Session(given["app_id"], self._world.clock())
        while len(self._sessions) > _KEPT_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        sdp = answer_sdp(self._world, given["sdp"])
        return answers.json_answer(200, {"session_id": session_id, "sdp": sdp, "type": "answer"})

    def _heartbeat(self, exchange: Exchange, body: Json) -> Answer:
        given = validate((Field("session_id", string(1), required=True),), body)
        session = self._sessions.get(given["session_id"])
        now = self._world.clock()
        if session is None or now - session.seen_at > PATIENCE_SECONDS:
            self._sessions.pop(given["session_id"], None)
            return answers.json_answer(200, {"alive": False})
        exchange.entry.bill(self._world.seconds_since(session.seen_at))
        session.seen_at = now
        return answers.json_answer(200, {"alive": True})
