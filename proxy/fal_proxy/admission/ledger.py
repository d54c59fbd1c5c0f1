"""What an exchange's end means for its reservation: the table of settlements, as one pure function per kind of request.

Hanging up is not a refund: whatever may have been billed is charged as reserved until fal says otherwise. Fal says so
with `x-fal-billable-units` on the head of a run, a stream or a known result; that replaces every earlier estimate.
"""

from __future__ import annotations

import msgspec

from fal_proxy.exchange import Kind
from fal_proxy.stores import Outcome

CANCELLED = 499  # fal's status for a job that its caller cancelled; it may have been billed


class Ending(msgspec.Struct, gc=False):
    """The facts of an exchange's end."""

    written: bool = False  # a request byte was written upstream
    status: int | None = None  # of the answer's head, None when none came
    whole: bool = False  # the answer was read to its clean end
    billed: bool = False  # its head carried a valid units field


def of_call(ending: Ending) -> Outcome:
    """Settle a run or a stream."""
    if not ending.written:
        return Outcome.RELEASED
    if ending.billed:
        return Outcome.BILLED
    return Outcome.RELEASED if ending.whole and _is_refused(ending.status) else Outcome.AS_RESERVED


def of_submit(ending: Ending, request_id: str | None) -> Outcome | None:
    """Settle a submit; None leaves it reserved, because the job's result will say more."""
    if not ending.written:
        return Outcome.RELEASED
    if ending.whole and ending.status is not None and ending.status >= 400:
        return Outcome.RELEASED
    return None if request_id is not None else Outcome.AS_RESERVED


def of_result(ending: Ending, *, completed: bool, has_request_id: bool) -> Outcome | None:
    """Settle a job by an answer on its result path; None when the answer says nothing about the job.

    Before completion the path answers 400, and any 401, 403, 404, 408, 429 or 5xx without fal's request id comes from
    something in front of the job. `completed` says that COMPLETED was seen, `has_request_id` that the answer carries
    `x-fal-request-id`.
    """
    status = ending.status
    if status is None:
        return None
    success = 200 <= status < 300 and status != 202
    if not success and not (completed and has_request_id and ending.whole and status != 202):
        return None
    if ending.billed:
        return Outcome.BILLED
    return Outcome.RELEASED if _is_refused(status) else Outcome.AS_RESERVED


def of_cancel(status: int, body: bytes) -> Outcome | None:
    """Settle a job by the answer to its cancellation: released when it never ran, None when that is not said."""
    if status != 200:
        return None
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    never_ran = isinstance(answer, dict) and (answer.get("status") == "OK" or answer.get("success") is True)
    return Outcome.RELEASED if never_ran else None


def _is_refused(status: int | None) -> bool:
    return status is not None and status >= 400 and status != CANCELLED


def is_reserving(kind: Kind) -> bool:
    """Say whether a kind opens an entry: what fal bills by the request."""
    return kind in (Kind.RUN, Kind.STREAM, Kind.SUBMIT, Kind.REALTIME)
