"""No secret in a log: the filter that every handler of the process carries."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from fal_proxy.telemetry.lines import LineWriter
from fal_proxy.telemetry.masking import MASK, SecretMask
from support.proxied import FAL_KEY, FAL_KEY_SECRET


class Log:
    """A logger below another one, whose handler carries the mask."""

    def __init__(self) -> None:
        self.mask = SecretMask()
        self.mask.learn([FAL_KEY.reveal(), FAL_KEY_SECRET])
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self.handler.addFilter(self.mask)
        self.parent = logging.getLogger("masked")
        self.parent.propagate = False  # the run's own watch must not see what these tests log on purpose
        self.parent.addHandler(self.handler)
        self.logger = self.parent.getChild("somebody.elses.library")

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.parent.removeHandler(made.handler)


def fail_with_the_key(depth: int = 2) -> None:
    if depth:
        return fail_with_the_key(depth - 1)
    raise ValueError(f"cannot send Authorization: Key {FAL_KEY.reveal()}")


def test_traceback_that_holds_the_key_is_masked(log: Log) -> None:
    try:
        fail_with_the_key()
    except ValueError:
        log.logger.exception("fault while answering %s", "POST")
    assert FAL_KEY_SECRET not in log.text
    assert "ERROR masked.somebody.elses.library fault while answering POST" in log.text
    assert f"ValueError: cannot send Authorization: Key {MASK}" in log.text
    assert "in fail_with_the_key" in log.text, "the rest of it stays"


def test_cause_of_a_cause_is_masked_too(log: Log) -> None:
    try:
        try:
            fail_with_the_key()
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        log.logger.warning("", exc_info=True)
    assert FAL_KEY_SECRET not in log.text
    assert "RuntimeError: outer" in log.text


SAID: list[tuple[str, tuple[object, ...]]] = [
    (f"the key is {FAL_KEY_SECRET}", ()),
    ("the key is %s", (FAL_KEY_SECRET,)),
    ("the keys are %r", ([FAL_KEY.reveal()],)),
    ("the key is %(key)s", ({"key": FAL_KEY_SECRET},)),
    ("the key is " + FAL_KEY_SECRET[:20] + "%s", (FAL_KEY_SECRET[20:],)),
    ("too few %s %s", (FAL_KEY_SECRET,)),
    ("not a number: %d", (FAL_KEY_SECRET,)),
]


@pytest.mark.parametrize(("message", "arguments"), SAID)
def test_message_and_arguments_are_masked_even_when_they_do_not_fit(
    message: str, arguments: tuple[object, ...], log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.logger.error(message, *arguments)
    assert MASK in log.text
    assert FAL_KEY_SECRET not in log.text
    assert FAL_KEY_SECRET[20:] not in log.text
    assert FAL_KEY_SECRET not in capsys.readouterr().err, "logging prints what it cannot format"


def test_stack_is_masked_and_innocent_records_are_left_alone(log: Log) -> None:
    record = log.logger.makeRecord("x", logging.INFO, "f", 1, "hello %s", ("ada",), None, sinfo=f"in {FAL_KEY_SECRET}")
    assert log.mask.filter(record)
    assert record.stack_info == f"in {MASK}"
    assert (record.msg, record.args) == ("hello %s", ("ada",)), "arguments stay for those who read them"


def test_exception_itself_is_dropped_only_where_it_holds_a_secret(log: Log) -> None:
    for text, kept in (("harmless", True), (FAL_KEY_SECRET, False)):
        try:
            raise ValueError(text)
        except ValueError:
            record = log.logger.makeRecord("x", logging.ERROR, "f", 1, "m", (), sys.exc_info())
        log.mask.filter(record)
        assert (record.exc_info is not None) is kept


def test_what_is_learnt_anew_replaces_what_the_same_source_said_before() -> None:
    mask = SecretMask()
    mask.learn(["first-secret", "short"], of="pool")
    mask.learn(["another-secret"])
    mask.learn(["second-secret"], of="pool")
    assert mask.masked("first-secret second-secret another-secret short") == f"first-secret {MASK} {MASK} short"


def test_longer_secrets_are_masked_before_what_they_contain() -> None:
    mask = SecretMask()
    mask.learn([FAL_KEY_SECRET, FAL_KEY.reveal()])
    assert mask.masked(f"Key {FAL_KEY.reveal()}.") == f"Key {MASK}."


def test_access_lines_are_masked() -> None:
    stream, mask = io.StringIO(), SecretMask()
    mask.learn([FAL_KEY_SECRET])
    lines = LineWriter(stream, masked=mask.masked)
    lines.start()
    lines.put('{"reason": "' + FAL_KEY_SECRET + '"}')
    lines.flush()
    assert stream.getvalue() == '{"reason": "' + MASK + '"}\n'
