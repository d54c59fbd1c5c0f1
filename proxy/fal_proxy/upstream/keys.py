"""The fal keys in use: whose turn it is, which ones fal refuses, and what the file of keys says by now.

Work is shared by weight, smoothly: of weights 3 and 1, every fourth request takes the second key. A key that fal calls
invalid or locked is set aside and tried again with one request after 30 s, doubling to 10 minutes. No request is ever
repeated on another key here: the answer goes down as it came, and the next request finds the next key.

A key that left the file takes no new work, but stays known for as long as a job that it submitted may be asked about.
"""

from __future__ import annotations

import enum
import logging
import math
import time
from collections.abc import Callable, Iterable
from hashlib import blake2s
from pathlib import Path

import msgspec

from fal_proxy.environment import Secret, fingerprint
from fal_proxy.errors import Refusal
from fal_proxy.upstream.credentials import FalKey, KeyFileError, authorization, public_half, read_keys
from fal_proxy.upstream.request_text import field_text

LOOK_SECONDS = 1.0  # between two looks at the file: one stat() each
FIRST_REST_SECONDS = 30.0
LONGEST_REST_SECONDS = 600.0
TRIAL_SECONDS = 5.0  # for so long one request alone tries a key that rested
FAREWELL_SECONDS = 25 * 3600.0  # longer than the stores keep a record
_SHOWN_CHARS = 8
_log = logging.getLogger("fal_proxy.keys")


class Fault(enum.Enum):
    """Why fal refuses a key."""

    INVALID = "invalid"
    LOCKED = "locked"


class Key:
    """One fal key. `id` names it in the stores and gives nothing away; `field` is the header field that holds it, `line` as text."""

    __slots__ = (
        "_pool",
        "fault",
        "field",
        "id",
        "line",
        "refusals",
        "resting_until",
        "secret",
        "shown",
        "turn",
        "weight",
    )

    def __init__(self, key: FalKey, pool: KeyPool) -> None:
        self.secret = key.secret
        self.weight = key.weight
        self.field = authorization(key.secret)
        self.line = field_text([self.field])
        self.id = blake2s(key.secret.reveal().encode(), digest_size=8).hexdigest()
        self.shown = shown(key.secret)
        self.turn = 0
        self.fault: Fault | None = None
        self.refusals = 0  # in a row
        self.resting_until = 0.0
        self._pool = pool

    def __repr__(self) -> str:
        return f"Key({self.shown})"

    def answered(self, status: int, body: bytes, *, from_job: bool, paid: bool) -> None:
        """Learn what an answer says about the key; `body` is b"" unless it was read whole.

        `from_job`: it carries a request id of fal's, so that it comes from an app, which cannot judge our key. A locked
        account may still read, so that only a success that is `paid` for says that it is no longer locked.
        """
        if status in (401, 403):
            fault = None if from_job else fault_in(status, body)
            if fault is not None:
                self._pool.set_aside(self, fault)
        elif self.fault is not None and (status < 400 or from_job) and (paid or self.fault is Fault.INVALID):
            self._pool.take_back(self)


def shown(key: Secret) -> str:
    """Return what people may see of a key: the beginning of its id, as fal's dashboard shows it, else a hash."""
    public = public_half(key)
    if len(public) >= 2 * _SHOWN_CHARS:
        return public[:_SHOWN_CHARS] + "…"
    return blake2s(key.reveal().encode(), digest_size=8).hexdigest()


class KeyPool:
    """Every fal key of one deployment."""

    def __init__(
        self, keys: Iterable[FalKey], file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the keys, and the file they were read from if it is to be watched."""
        self.file_fault = ""  # why the file as it is now is not in force
        self.file_faults = 0
        self.refused = 0  # answers that called a key invalid or locked
        self._clock = clock
        self._file = file
        self._state = fingerprint(file) if file else None
        self._look_at = clock() + LOOK_SECONDS
        self._known: dict[str, Key] = {}
        self._leaving: dict[str, float] = {}  # keys that left the file, and when they may be forgotten
        self._listeners: list[Callable[[list[Secret]], None]] = []
        self._active: list[Key] = []
        self._adopt(keys)

    def __repr__(self) -> str:
        return f"KeyPool({self._active})"

    def listen(self, listener: Callable[[list[Secret]], None]) -> None:
        """Tell `listener` every key that is known, now and whenever that changes."""
        self._listeners.append(listener)
        listener([key.secret for key in self._known.values()])

    def choose(self) -> Key:
        """Return the key whose turn it is. Raises Refusal no_usable_key."""
        now = self._clock()
        if now >= self._look_at:
            self.look()
        best: Key | None = None
        total = 0
        for key in self._active:
            if key.fault is None or key.resting_until <= now:
                key.turn += key.weight
                total += key.weight
                if best is None or key.turn > best.turn:
                    best = key
        if best is None:
            raise self._none_usable(now)
        best.turn -= total
        if best.fault is not None:
            best.resting_until = now + TRIAL_SECONDS
        return best

    def accepted(self) -> list[Key]:
        """Return the keys that fal does not refuse, for questions that are free: nobody's turn passes."""
        if self._clock() >= self._look_at:
            self.look()
        return [key for key in self._active if key.fault is None]

    def of_job(self, key_id: str) -> Key:
        """Return the key that submitted a job, even if it left the file or is locked; else one whose turn it is.

        Another key is right where keys share an account; where they do not, fal answers 404, which settles nothing.
        Raises Refusal no_usable_key.
        """
        key = self._known.get(key_id)
        return key if key is not None and key.fault is not Fault.INVALID else self.choose()

    def look(self) -> None:
        """Re-read the file if it has changed; one that makes no sense leaves the keys as they are."""
        now = self._clock()
        self._look_at = now + LOOK_SECONDS
        if self._leaving:
            self._forget(now)
        if self._file is None or (state := fingerprint(self._file)) == self._state:
            return
        self._state = state
        try:
            keys = read_keys(self._file)
        except (OSError, KeyFileError) as error:
            self.file_fault = error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)
            self.file_faults += 1
            _log.error("FAL_KEY_FILE cannot be re-read, the keys stay as they were: %s", self.file_fault)
        else:
            self.file_fault = ""
            self._adopt(keys)
            _log.warning("FAL_KEY_FILE was re-read: %d fal keys", len(keys))

    def usable(self) -> int:
        """Return how many keys may be chosen."""
        now = self._clock()
        return sum(key.fault is None or key.resting_until <= now for key in self._active)

    def resting(self) -> int:
        """Return how many keys are set aside."""
        return len(self._active) - self.usable()

    def reasons(self) -> list[str]:
        """Return what is wrong with the keys, without naming one."""
        self.look()
        count, resting = len(self._active), self.resting()
        faults = sorted({key.fault.value for key in self._active if key.fault is not None})
        reasons = [f"{resting} of {count} fal keys set aside: fal calls them {' or '.join(faults)}"] if resting else []
        return [*reasons, f"FAL_KEY_FILE is not in force: {self.file_fault}"] if self.file_fault else reasons

    def set_aside(self, key: Key, fault: Fault) -> None:
        """Let a key rest that fal refused."""
        self.refused += 1
        now = self._clock()
        if key.fault is not None and now < key.resting_until - TRIAL_SECONDS:
            return  # a request that was under way when it was set aside
        seconds = min(FIRST_REST_SECONDS * 2**key.refusals, LONGEST_REST_SECONDS)
        key.fault, key.refusals, key.resting_until = fault, min(key.refusals + 1, 16), now + seconds
        _log.warning("fal key %s is set aside for %d s: fal calls it %s", key.shown, seconds, fault.value)

    def take_back(self, key: Key) -> None:
        """Use a key again that fal accepted."""
        key.fault, key.refusals, key.resting_until = None, 0, 0.0
        _log.warning("fal key %s is in use again", key.shown)

    def _adopt(self, keys: Iterable[FalKey]) -> None:
        self._active = []
        for each in keys:
            fresh = Key(each, self)
            key = self._known.setdefault(fresh.id, fresh)
            key.weight = each.weight
            key.turn = 0
            self._active.append(key)
        now, active = self._clock(), {key.id for key in self._active}
        leaving = [key_id for key_id in self._known if key_id not in active]
        self._leaving = {key_id: self._leaving.get(key_id, now + FAREWELL_SECONDS) for key_id in leaving}
        self._tell()

    def _forget(self, now: float) -> None:
        for key_id in [key_id for key_id, end in self._leaving.items() if end <= now]:
            del self._leaving[key_id], self._known[key_id]
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener([key.secret for key in self._known.values()])

    def _none_usable(self, now: float) -> Refusal:
        seconds = max(1, math.ceil(min((key.resting_until for key in self._active), default=now + 1) - now))
        detail = "fal accepts none of this proxy's keys at the moment; its operator can see why"
        return Refusal("no_usable_key", detail, headers=((b"retry-after", b"%d" % seconds),))


def fault_in(status: int, body: bytes) -> Fault | None:
    """Return what an answer of fal's own says about our key; None for every other 401 or 403."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    detail = answer.get("detail") if isinstance(answer, dict) else answer
    if not isinstance(detail, str):
        return None
    if status == 401 and detail.lower().startswith("invalid key credentials"):
        return Fault.INVALID
    return Fault.LOCKED if status == 403 and detail.startswith("User is locked") else None
