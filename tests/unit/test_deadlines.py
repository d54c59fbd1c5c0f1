"""How long a caller may take, judged by sweeps that the test makes itself."""

from __future__ import annotations

import pytest

from fal_proxy.downstream.deadlines import BODY_BYTES_PER_SECOND, Deadlines, Overdue, Phase


def _sweeps_until(
    deadlines: Deadlines, *, willing: bool = True, unsent: int = 0, per_sweep: int = 0, limit: int = 200
) -> tuple[int, Overdue | None]:
    """Sweep every second until something is overdue; `per_sweep` body bytes come in between."""
    for count in range(1, limit + 1):
        deadlines.received += per_sweep
        overdue = deadlines.look(1.0, willing=willing, unsent=unsent, taken=0)
        if overdue is not None:
            return count, overdue
    return limit, None


# The sweep in which a deadline is met: the one after it, because the phase began somewhere between two sweeps.
PHASES = [
    (Phase.OPENED, 11, Overdue.CLOSE, "nothing was said, nothing is answered"),
    (Phase.HEAD, 11, Overdue.TIMEOUT, "a head within 10 s"),
    (Phase.BODY, 21, Overdue.TIMEOUT, "no byte of a body is less than 1 KiB/s"),
    (Phase.LEFTOVER, 11, Overdue.CLOSE, "the rest of a body that was answered early"),
    (Phase.IDLE, 76, Overdue.CLOSE, "keep-alive is 75 s"),
    (Phase.LINGER, 3, Overdue.CLOSE, "a refusal had 2 s to arrive"),
    (Phase.ANSWER, 200, None, "our own time is not the caller's"),
]


@pytest.mark.parametrize(("phase", "sweeps", "overdue", "reason"), PHASES)
def test_phase_ends_in_the_first_sweep_after_its_deadline(
    phase: Phase, sweeps: int, overdue: Overdue | None, reason: str
) -> None:
    deadlines = Deadlines()
    deadlines.enter(phase)
    assert _sweeps_until(deadlines) == (sweeps, overdue), reason


def test_first_head_has_the_connections_first_ten_seconds_however_late_it_begins() -> None:
    deadlines = Deadlines()
    for _ in range(8):
        assert deadlines.look(1.0, willing=True, unsent=0, taken=0) is None
    deadlines.continue_head()
    assert _sweeps_until(deadlines) == (3, Overdue.TIMEOUT)


def test_later_head_has_ten_seconds_from_its_first_byte_and_more_bytes_buy_no_time() -> None:
    deadlines = Deadlines()
    deadlines.enter(Phase.IDLE)
    for _ in range(60):
        assert deadlines.look(1.0, willing=True, unsent=0, taken=0) is None
    deadlines.continue_head()
    for _ in range(5):
        assert deadlines.look(1.0, willing=True, unsent=0, taken=0) is None
        deadlines.continue_head()
    assert _sweeps_until(deadlines) == (6, Overdue.TIMEOUT)


BODIES = [
    (BODY_BYTES_PER_SECOND, None, "exactly as fast as demanded"),
    (BODY_BYTES_PER_SECOND - 100, Overdue.TIMEOUT, "a little slower"),
    (1, Overdue.TIMEOUT, "a byte a second"),
]


@pytest.mark.parametrize(("per_sweep", "overdue", "reason"), BODIES)
def test_body_must_average_a_kibibyte_a_second(per_sweep: int, overdue: Overdue | None, reason: str) -> None:
    deadlines = Deadlines()
    deadlines.enter(Phase.BODY)
    assert _sweeps_until(deadlines, per_sweep=per_sweep)[1] is overdue, reason


def test_fast_start_does_not_excuse_half_a_minute_of_silence() -> None:
    deadlines = Deadlines()
    deadlines.enter(Phase.BODY)
    deadlines.received += 10_000_000
    assert _sweeps_until(deadlines) == (31, Overdue.TIMEOUT)


def test_time_in_which_we_do_not_read_is_not_the_callers() -> None:
    deadlines = Deadlines()
    deadlines.enter(Phase.BODY)
    assert _sweeps_until(deadlines, willing=False) == (200, None)
    assert _sweeps_until(deadlines) == (21, Overdue.TIMEOUT)


def test_answer_of_which_nothing_is_taken_for_half_a_minute_is_cut_in_any_phase() -> None:
    for phase in Phase:
        deadlines = Deadlines()
        deadlines.enter(phase)
        deadlines.received = 100_000_000
        sweeps, overdue = _sweeps_until(deadlines, unsent=1, willing=False)
        assert overdue is Overdue.RESET or sweeps < 30, phase


def test_answer_that_is_taken_byte_by_byte_is_not_cut_however_much_waits() -> None:
    deadlines = Deadlines()
    deadlines.enter(Phase.ANSWER)
    for second in range(1, 200):
        assert deadlines.look(1.0, willing=True, unsent=200_000 + second, taken=second) is None


def test_answer_that_was_taken_and_then_waits_again_has_the_whole_time_anew() -> None:
    deadlines = Deadlines()
    deadlines.enter(Phase.ANSWER)
    assert _sweeps_until(deadlines, unsent=10, limit=29) == (29, None)
    assert deadlines.look(1.0, willing=True, unsent=0, taken=10) is None
    assert _sweeps_until(deadlines, unsent=10, limit=29) == (29, None)
