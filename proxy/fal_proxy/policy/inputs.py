"""What callers may ask of an endpoint: `[[inputs]]` rules over the top-level fields of a JSON input. Pure.

What was judged is what is sent: the input is decoded once, changed, and encoded anew, so a repeated key, an escape in a
key or a fancy number means one thing. Knows neither where a body comes from nor where it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target
from fal_proxy.policy.endpoints import App, Globs, plainly, spelled_plainly
from fal_proxy.request import Request
from fal_proxy.settings import InputRule

Input = dict[str, Any]

# Kinds whose body is the input of an endpoint. Reads and cancels have none, tokens and uploads name no endpoint.
_CARRY_INPUT = frozenset([Kind.RUN, Kind.STREAM, Kind.SUBMIT])
_decode = msgspec.json.Decoder(Input).decode


class InputRules:
    """The rules of one deployment, compiled once at start.

    Every rule that matches applies. First each rule's `reject` is judged, on what the caller sent; then the rules change
    the input one after the other in file order, each with `default`, `clamp`, `force`, `drop` in that order. So an
    earlier rule hides nothing from a later `reject`, a default is clamped too, nothing a caller sends outlives `force`
    or `drop`, and where two rules contradict each other the later one has the last word.
    """

    def __init__(self, rules: Sequence[InputRule]) -> None:
        """Compile `rules`; raise ValueError with one sentence for the first that is malformed."""
        for rule in rules:
            for fault in faults(rule):
                raise ValueError(fault)
        self._rules = [_Compiled(Globs([spelled_plainly(rule.endpoint)]), rule) for rule in rules]
        self._globs = Globs([spelled_plainly(rule.endpoint) for rule in rules])
        self._any = bool(rules)

    def applies(self, endpoint_id: str) -> bool:
        """Say whether any rule matches, under any spelling of the endpoint."""
        return self._any and self._globs.match(spelled_plainly(endpoint_id))

    def reach(self, app: App) -> bool:
        """Say whether any rule matches the app or anything below it."""
        return self._globs.reach(plainly(app))

    def judge(self, endpoint_id: str, body: bytes) -> bytes:
        """Return the body to send instead of `body`. Raises Refusal `input_denied`."""
        return encode_input(self.apply(endpoint_id, decode_input(body)))

    def apply(self, endpoint_id: str, given: Input) -> Input:
        """Return the input as the rules make it; `given` stays as it is. Raises Refusal `input_denied`."""
        plain = spelled_plainly(endpoint_id)
        matching = [compiled.rule for compiled in self._rules if compiled.globs.match(plain)]
        for rule in matching:
            for name in rule.reject:
                if name in given:
                    raise denied(f"{name} may not be set on this endpoint")
        changed = dict(given)
        for rule in matching:
            _change(changed, rule)
        return changed


@dataclass(frozen=True, slots=True)
class _Compiled:
    globs: Globs
    rule: InputRule


def _change(changed: Input, rule: InputRule) -> None:
    for name, value in rule.default.items():
        changed.setdefault(name, value)
    for name, (low, high) in rule.clamp.items():
        if name in changed:
            value = changed[name]
            if not is_number(value):
                # A text "4" or a null could be read as a number by whoever comes after us.
                raise denied(f"{name} must be a number from {low} to {high}")
            changed[name] = low if value < low else min(value, high)
    changed.update(rule.force)
    for name in rule.drop:
        changed.pop(name, None)


def judge_shape(target: Target, request: Request) -> None:
    """Raise Refusal `input_denied` for a request whose input could come by another way than its JSON body."""
    if request.method != "POST":
        raise denied(
            f"this endpoint takes POST only: its input is judged, and a {request.method} may carry it elsewhere"
        )
    if any(name == b"content-encoding" for name, _ in request.headers):
        raise denied("this endpoint takes no Content-Encoding: its input is judged")
    if target.query is not None:
        names = {part.partition(b"=")[0] for part in target.query.split(b"&")}
        if names != {b"fal_webhook"}:
            raise denied("this endpoint takes no query parameter but fal_webhook: its input is judged")


def carries_input(target: Target) -> bool:
    """Say whether the body of this target is an endpoint's input."""
    return target.kind in _CARRY_INPUT


def decode_input(body: bytes) -> Input:
    """Return the JSON object in `body`, {} for an empty one. Raises Refusal `input_denied` for anything else.

    The last of several equal keys counts. Numbers are integers of 64 bits or finite doubles, so a fraction may come out
    shorter than it went in.
    """
    if not body:
        return {}
    try:
        given = _decode(body)
        # The quickest walk to every depth: MessagePack knows no integer beyond 64 bits, and parsers disagree on those.
        msgspec.msgpack.encode(given)
    except RecursionError:
        raise denied("the input is nested too deeply") from None
    except OverflowError:
        raise denied("the input holds an integer beyond 64 bits") from None
    except ValueError:  # also invalid UTF-8; the decoder's own text may quote the caller
        raise denied("the input must be one JSON object in UTF-8, with finite numbers of usual size") from None
    return given


def encode_input(given: Input) -> bytes:
    """Return the input as JSON."""
    try:
        return msgspec.json.encode(given)
    except RecursionError:
        raise denied("the input is nested too deeply") from None


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether a decoded JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def denied(detail: str) -> Refusal:
    """Return the refusal of an input."""
    return Refusal("input_denied", detail)


def faults(rule: InputRule) -> Iterator[str]:
    """Say in one sentence each what is wrong with a rule."""
    try:
        Globs([rule.endpoint, spelled_plainly(rule.endpoint)])
    except ValueError as error:
        yield f"endpoint: {error}"
    yield from _faults_of_names(rule)
    for name, (low, high) in rule.clamp.items():
        if not (_is_json(low) and _is_json(high) and low <= high):
            yield f"clamp.{name}: must be two finite numbers of 64 bits, the smaller one first"
        elif not is_number(rule.default.get(name, low)):
            yield f"default.{name}: must be a number, because clamp takes nothing else"
    for part, table in {"default": rule.default, "force": rule.force}.items():
        for name, value in table.items():
            if not _is_json(value):
                yield f"{part}.{name}: is no JSON value (finite numbers of 64 bits, text, true, false, lists, tables)"


def _faults_of_names(rule: InputRule) -> Iterator[str]:
    parts = {
        "default": rule.default,
        "clamp": rule.clamp,
        "force": rule.force,
        "drop": rule.drop,
        "reject": rule.reject,
    }
    if not any(parts.values()):
        yield "has no effect: add default, clamp, force, drop or reject"
    for part, names in parts.items():
        for name in names:
            if not name or "." in name:
                yield f"{part}: {name!r} is no top-level field, and rules reach no deeper"
    for name in dict.fromkeys(rule.drop):
        for part in ("default", "clamp", "force"):
            if name in parts[part]:
                yield f"drop: {name} contradicts {part}.{name}"


def _is_json(value: object) -> bool:
    """Say whether JSON can say this: TOML also knows dates, infinities and longer integers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(_is_json(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_json(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, str)
