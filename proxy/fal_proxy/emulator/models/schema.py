"""Checks of a model's input that complain in pydantic's words, because that is what fal's apps answer with.

Messages, types and ctx follow pydantic 2; unknown fields are ignored as pydantic does by default. Knows no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..exchange import Json

Location = tuple[str | int, ...]
Problem = dict[str, Json]
Check = Callable[[Json, Location], tuple[Json, list[Problem]]]


class InvalidInputError(Exception):
    """An input that the model refuses; `problems` is the list that goes under `detail`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = list(problems)


@dataclass(frozen=True)
class Field:
    """One field: absent it takes the default, `null` is accepted only where None is the default."""

    name: str
    check: Check
    required: bool = False
    default: Json = None


def validate(fields: Sequence[Field], body: Json) -> dict[str, Json]:
    """Return the checked values of all fields; raise InvalidInputError with every problem at once."""
    if body is None:
        raise InvalidInputError([problem(("body",), "Field required", "missing", None)])
    if not isinstance(body, dict):
        raise InvalidInputError([_no_object(("body",), body)])
    values: dict[str, Json] = {}
    problems: list[Problem] = []
    for field in fields:
        if field.name not in body:
            values[field.name] = field.default
            if field.required:
                problems.append(problem(("body", field.name), "Field required", "missing", body))
        elif body[field.name] is None and field.default is None and not field.required:
            values[field.name] = None
        else:
            values[field.name], found = field.check(body[field.name], ("body", field.name))
            problems += found
    if problems:
        raise InvalidInputError(problems)
    return values


def problem(at: Location, message: str, kind: str, value: Json, ctx: Json = None) -> Problem:
    """Make one item of the list under `detail`."""
    item: Problem = {"type": kind, "loc": list(at), "msg": message, "input": value}
    return {**item, "ctx": ctx} if ctx else item


def string(least: int = 0, most: int | None = None) -> Check:
    """Check for a string of so many characters."""

    def check(value: Json, at: Location) -> tuple[Json, list[Problem]]:
        if not isinstance(value, str):
            return value, [problem(at, "Input should be a valid string", "string_type", value)]
        if len(value) < least:
            plural = "" if least == 1 else "s"
            message = f"String should have at least {least} character{plural}"
            return value, [problem(at, message, "string_too_short", value, {"min_length": least})]
        if most is not None and len(value) > most:
            message = f"String should have at most {most} characters"
            return value, [problem(at, message, "string_too_long", value, {"max_length": most})]
        return value, []

    return check


def integer(least: int | None = None, most: int | None = None) -> Check:
    """Check for a whole number within bounds; numeric strings and 3.0 pass, as in pydantic's lax mode."""

    def check(value: Json, at: Location) -> tuple[Json, list[Problem]]:
        number, found = _as_integer(value, at)
        return number, found or _bounds(number, at, least, most)

    return check


def number(least: float | None = None, most: float | None = None) -> Check:
    """Check for a number within bounds."""

    def check(value: Json, at: Location) -> tuple[Json, list[Problem]]:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                message = "Input should be a valid number, unable to parse string as a number"
                return value, [problem(at, message, "float_parsing", value)]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value, [problem(at, "Input should be a valid number", "float_type", value)]
        return value, _bounds(value, at, least, most)

    return check


def boolean(value: Json, at: Location) -> tuple[Json, list[Problem]]:
    """Check for true or false, or one of the words and numbers pydantic takes for them."""
    if isinstance(value, bool):
        return value, []
    words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}
    if isinstance(value, str | int) and str(value).lower() in words:
        return words[str(value).lower()], []
    if isinstance(value, str | int):
        message = "Input should be a valid boolean, unable to interpret input"
        return value, [problem(at, message, "bool_parsing", value)]
    return value, [problem(at, "Input should be a valid boolean", "bool_type", value)]


def one_of(*choices: str) -> Check:
    """Check for one of a few words."""
    quoted = [f"'{choice}'" for choice in choices]
    expected = " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]

    def check(value: Json, at: Location) -> tuple[Json, list[Problem]]:
        if isinstance(value, str) and value in choices:
            return value, []
        return value, [problem(at, f"Input should be {expected}", "literal_error", value, {"expected": expected})]

    return check


def size(names: dict[str, tuple[int, int]], largest: int) -> Check:
    """Check for a named size or {width, height}; the value becomes (width, height)."""
    named = one_of(*names)
    side = integer(1, largest)

    def check(value: Json, at: Location) -> tuple[Json, list[Problem]]:
        if isinstance(value, dict):
            # Either side may be left out: fal's ImageSize has 512 for both.
            width, wide = side(value.get("width", 512), (*at, "ImageSize", "width"))
            height, high = side(value.get("height", 512), (*at, "ImageSize", "height"))
            return (width, height), wide + high
        word, found = named(value, (*at, "ImageSizePreset"))
        # pydantic reports every member of a union that did not match.
        return (value, [_no_object((*at, "ImageSize"), value), *found]) if found else (names[word], [])

    return check


def _as_integer(value: Json, at: Location) -> tuple[Json, list[Problem]]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, []
    if isinstance(value, float):
        if value.is_integer():
            return int(value), []
        message = "Input should be a valid integer, got a number with a fractional part"
        return value, [problem(at, message, "int_from_float", value)]
    if isinstance(value, str):
        try:
            return int(value), []
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            return value, [problem(at, message, "int_parsing", value)]
    return value, [problem(at, "Input should be a valid integer", "int_type", value)]


def _bounds(value: float, at: Location, least: float | None, most: float | None) -> list[Problem]:
    if least is not None and not value >= least:
        message = f"Input should be greater than or equal to {least}"
        return [problem(at, message, "greater_than_equal", value, {"ge": least})]
    if most is not None and not value <= most:
        message = f"Input should be less than or equal to {most}"
        return [problem(at, message, "less_than_equal", value, {"le": most})]
    return []


def _no_object(at: Location, value: Json) -> Problem:
    message = "Input should be a valid dictionary or object to extract fields from"
    return problem(at, message, "model_attributes_type", value)
