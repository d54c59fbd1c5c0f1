"""The table of settlements, line by line: what an exchange's end means for its reservation."""

from __future__ import annotations

import pytest

from fal_proxy.admission.ledger import Ending, is_reserving, of_call, of_cancel, of_result, of_submit
from fal_proxy.exchange import Kind
from fal_proxy.stores import Outcome

RELEASED, AS_RESERVED, BILLED = Outcome.RELEASED, Outcome.AS_RESERVED, Outcome.BILLED


def ending(status: int | None, *facts: str) -> Ending:
    """Return the end of an exchange that was written unless `unwritten` is among the facts."""
    return Ending("unwritten" not in facts, status, "whole" in facts, "billed" in facts)


CALLS = [
    (ending(None, "unwritten"), RELEASED, "no request byte was written"),
    (ending(200, "whole", "billed"), BILLED, "the header on a whole answer"),
    (ending(200, "billed"), BILLED, "the header on a cut answer"),
    (ending(422, "whole", "billed"), BILLED, "the header on an error that was billed all the same"),
    (ending(500, "billed"), BILLED, "the header on a cut error"),
    (ending(499, "whole", "billed"), BILLED, "the header on a cancelled run"),
    (ending(400, "whole"), RELEASED, "the first of 4xx"),
    (ending(422, "whole"), RELEASED, "an input that fal refused"),
    (ending(498, "whole"), RELEASED, "just below 499"),
    (ending(500, "whole"), RELEASED, "just above 499, and the first of 5xx"),
    (ending(504, "whole"), RELEASED, "fal's own timeout"),
    (ending(422), AS_RESERVED, "a cut 4xx is an unknown outcome"),
    (ending(500), AS_RESERVED, "a cut 5xx is an unknown outcome"),
    (ending(499, "whole"), AS_RESERVED, "cancelled, and perhaps billed"),
    (ending(499), AS_RESERVED, "cancelled and cut"),
    (ending(200, "whole"), AS_RESERVED, "done without the header"),
    (ending(206, "whole"), AS_RESERVED, "another 2xx without the header"),
    (ending(200), AS_RESERVED, "hanging up is not a refund"),
    (ending(304, "whole"), AS_RESERVED, "neither 4xx nor 5xx"),
    (ending(None), AS_RESERVED, "the connection was lost before the head, or the head came too late"),
]


@pytest.mark.parametrize(("end", "outcome", "reason"), CALLS, ids=[row[-1] for row in CALLS])
def test_a_run_or_stream_is_settled_by_how_it_ends(end: Ending, outcome: Outcome, reason: str) -> None:
    assert of_call(end) is outcome, reason


SUBMITS = [
    (ending(None, "unwritten"), None, RELEASED, "no request byte was written"),
    (ending(400, "whole"), None, RELEASED, "fal refused it"),
    (ending(499, "whole"), None, RELEASED, "a whole 4xx, whichever"),
    (ending(503, "whole"), None, RELEASED, "fal had no room for it"),
    (ending(503, "whole"), "id", RELEASED, "an error names no job, whatever its body says"),
    (ending(400), None, AS_RESERVED, "a cut 4xx is an unknown outcome"),
    (ending(500), None, AS_RESERVED, "a cut 5xx is an unknown outcome"),
    (ending(200), None, AS_RESERVED, "accepted, but the answer was cut"),
    (ending(200, "whole"), None, AS_RESERVED, "accepted, but nobody knows under which id"),
    (ending(None), None, AS_RESERVED, "no head came"),
    (ending(200, "whole"), "id", None, "accepted: its result will say more"),
    (ending(200, "whole", "billed"), "id", None, "units on a submit's answer are not the job's"),
]


@pytest.mark.parametrize(("end", "request_id", "outcome", "reason"), SUBMITS, ids=[row[-1] for row in SUBMITS])
def test_a_submit_is_settled_unless_it_was_accepted(
    end: Ending, request_id: str | None, outcome: Outcome | None, reason: str
) -> None:
    assert of_submit(end, request_id) is outcome, reason


# The end, whether COMPLETED was seen, whether the answer carries fal's request id, the outcome, the reason.
RESULTS = [
    (ending(200, "whole", "billed"), True, True, BILLED, "the usual end"),
    (ending(200, "whole", "billed"), False, True, BILLED, "a 2xx is known without COMPLETED"),
    (ending(200, "whole", "billed"), False, False, BILLED, "a 2xx is known without a request id"),
    (ending(200, "billed"), False, False, BILLED, "the header counts on a cut answer too"),
    (ending(200, "whole"), False, False, AS_RESERVED, "done without the header"),
    (ending(200), True, True, AS_RESERVED, "done without the header, and cut"),
    (ending(206, "whole"), False, False, AS_RESERVED, "any 2xx other than 202"),
    (ending(299, "billed"), False, False, BILLED, "the last of 2xx"),
    (ending(202, "whole"), True, True, None, "202 is no result even after COMPLETED"),
    (ending(202, "whole", "billed"), True, True, None, "202 is no result whatever its head holds"),
    (ending(422, "whole", "billed"), True, True, BILLED, "a failed job that was billed"),
    (ending(422, "whole"), True, True, RELEASED, "a failed job without the header"),
    (ending(500, "whole"), True, True, RELEASED, "a job that failed on fal's side"),
    (ending(498, "whole"), True, True, RELEASED, "just below 499"),
    (ending(499, "whole"), True, True, AS_RESERVED, "cancelled, and perhaps billed"),
    (ending(499, "whole", "billed"), True, True, BILLED, "cancelled, and billed as fal says"),
    (ending(304, "whole"), True, True, AS_RESERVED, "only a 4xx or 5xx says that nothing is owed"),
    (ending(422, "whole"), False, True, None, "an error before COMPLETED was seen"),
    (ending(422, "whole", "billed"), False, True, None, "an unknown result, whatever its head holds"),
    (ending(400, "whole"), False, True, None, "the 400 before completion"),
    (ending(422, "whole"), True, False, None, "an error that does not come from the job"),
    (ending(500, "whole", "billed"), True, False, None, "the same with the header"),
    *((ending(status, "whole"), True, False, None, f"{status} from before the job") for status in (401, 403, 404)),
    *((ending(status, "whole"), True, False, None, f"{status} from before the job") for status in (408, 429, 503)),
    (ending(422), True, True, None, "an error that was cut is no whole answer"),
    (ending(500, "billed"), True, True, None, "the same with the header"),
    (ending(None), True, True, None, "no head came"),
]


@pytest.mark.parametrize(("end", "completed", "named", "outcome", "reason"), RESULTS, ids=[row[-1] for row in RESULTS])
def test_a_job_is_settled_by_its_known_result_only(
    end: Ending, completed: bool, named: bool, outcome: Outcome | None, reason: str
) -> None:
    assert of_result(end, completed=completed, has_request_id=named) is outcome, reason


CANCELS = [
    (200, b'{"status":"OK"}', RELEASED, "it never ran"),
    (200, b'{"success":true}', RELEASED, "the other spelling of it"),
    (200, b'{"success":true,"status":"IN_PROGRESS"}', RELEASED, "either is enough"),
    (202, b'{"status":"OK"}', None, "only a 200 says so"),
    (400, b'{"status":"ALREADY_COMPLETED"}', None, "too late"),
    (404, b'{"status":"OK"}', None, "an error says nothing"),
    (200, b'{"status":"CANCELLATION_REQUESTED"}', None, "it may have run"),
    (200, b'{"status":"ok"}', None, "spelled as fal spells it"),
    (200, b'{"success":false}', None, "it was not cancelled"),
    (200, b'{"success":1}', None, "one is not true"),
    (200, b'{"success":"true"}', None, "a text is not true"),
    (200, b'{"detail":{"status":"OK"}}', None, "not the answer's own status"),
    (200, b'["status","OK"]', None, "no object"),
    (200, b'"OK"', None, "a text"),
    (200, b"OK", None, "no JSON"),
    (200, b"", None, "nothing"),
    (200, b'{"status":"OK"', None, "cut"),
    (200, b"[" * 100_000, None, "nested too deeply"),
]


@pytest.mark.parametrize(("status", "body", "outcome", "reason"), CANCELS, ids=[row[-1] for row in CANCELS])
def test_a_cancelled_job_is_released_when_it_never_ran(
    status: int, body: bytes, outcome: Outcome | None, reason: str
) -> None:
    assert of_cancel(status, body) is outcome, reason


def test_what_fal_bills_by_the_request_or_the_second_is_reserved() -> None:
    assert {kind for kind in Kind if is_reserving(kind)} == {Kind.RUN, Kind.STREAM, Kind.SUBMIT, Kind.REALTIME}
