"""Where a queued request stands, computed from the time alone."""

from fal_proxy.emulator.jobs import KEPT_JOBS, KEPT_SECONDS, LOG_WINDOW, Job, Jobs, cancel, describe, look
from fal_proxy.emulator.models.plan import Failure, Plan, constant

LOGS = tuple((step * 0.5, f"step {step}") for step in range(21))


def job(*, queue: float = 4.0, run: float = 10.0, **more: object) -> Job:
    plan = Plan(run_seconds=run, output=constant({}), logs=LOGS)
    made = Job("id", "fal-ai/flux/dev", plan, created_at=100.0, queue_seconds=queue, run_seconds=run, position=3)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_a_job_waits_with_a_falling_position_then_runs_then_is_complete() -> None:
    made = job()
    assert [look(made, 100 + second).position for second in (0, 1, 2, 3.9)] == [3, 2, 1, 0]
    assert [look(made, 100 + second).state for second in (0, 3.99, 4, 13.99, 14, 9999)] == [
        "IN_QUEUE",
        "IN_QUEUE",
        "IN_PROGRESS",
        "IN_PROGRESS",
        "COMPLETED",
        "COMPLETED",
    ]
    assert look(made, 114).inference_seconds == 10


def test_looking_twice_at_the_same_time_shows_the_same() -> None:
    made = job()
    assert [look(made, 100 + n / 7) for n in range(120)] == [look(made, 100 + n / 7) for n in range(120)]


def test_logs_are_a_window_that_moves() -> None:
    made = job()
    assert [entry["message"] for entry in look(made, 104.6).logs] == ["step 0", "step 1"]
    late = look(made, 114).logs
    assert len(late) == LOG_WINDOW
    assert late[-1]["message"] == "step 20"
    assert late[0].keys() == {"timestamp", "message", "level", "source", "labels"}


def test_a_status_has_null_logs_and_empty_metrics_until_asked_and_done() -> None:
    made = job()
    waiting = describe(made, look(made, 100), logs=False)
    assert waiting == {
        "status": "IN_QUEUE",
        "request_id": "id",
        "response_url": "https://queue.fal.run/fal-ai/flux/requests/id",
        "status_url": "https://queue.fal.run/fal-ai/flux/requests/id/status",
        "cancel_url": "https://queue.fal.run/fal-ai/flux/requests/id/cancel",
        "queue_position": 3,
        "logs": None,
        "metrics": {},
    }
    running = describe(made, look(made, 106), logs=True)
    assert "queue_position" not in running
    assert running["logs"]
    done = describe(made, look(made, 114), logs=False)
    assert (done["logs"], done["metrics"]) == (None, {"inference_time": 10.0})
    assert "error" not in done


def test_cancelled_in_the_queue_it_never_runs() -> None:
    made = job()
    assert cancel(made, 101) == (200, "OK")
    standing = look(made, 101)
    assert (standing.state, standing.inference_seconds) == ("COMPLETED", 0)
    assert describe(made, standing, logs=False)["error_type"] == "client_cancelled"
    assert cancel(made, 101) == (400, "ALREADY_COMPLETED")


def test_cancelled_while_running_it_ends_soon_after_with_499() -> None:
    made = job()
    assert cancel(made, 106) == (202, "CANCELLATION_REQUESTED")
    assert look(made, 106.1).state == "IN_PROGRESS"
    assert cancel(made, 106.1) == (202, "CANCELLATION_REQUESTED")
    ended = look(made, 106.3)
    assert ended.state == "COMPLETED"
    assert ended.failure is not None
    assert ended.failure.status == 499


def test_a_complete_job_cannot_be_cancelled() -> None:
    made = job()
    assert cancel(made, 114) == (400, "ALREADY_COMPLETED")
    assert look(made, 115).failure is None


def test_a_start_deadline_shorter_than_the_queue_ends_the_job_with_504() -> None:
    made = job(start_timeout_seconds=2.0)
    assert look(made, 101.9).state == "IN_QUEUE"
    ended = look(made, 102)
    assert ended.failure is not None
    assert (ended.state, ended.failure.status) == ("COMPLETED", 504)
    assert describe(made, ended, logs=False)["error_type"] == "request_timeout"
    assert look(job(start_timeout_seconds=5.0), 114).failure is None


def test_a_failed_job_is_completed_with_an_error_and_its_type() -> None:
    failed = Plan(run_seconds=1, output=constant(None), failure=Failure(500, {"detail": "x"}))
    made = Job("id", "a/b", failed, created_at=0, queue_seconds=0, run_seconds=1)
    body = describe(made, look(made, 1), logs=False)
    assert (body["status"], body["error"], body["error_type"]) == (
        "COMPLETED",
        "Invalid status code: 500",
        "runner_server_error",
    )


def test_namespaces_keep_a_third_segment_in_the_urls() -> None:
    made = job()
    made.endpoint = "workflows/me/wf/extra"
    url = describe(made, look(made, 100), logs=False)["status_url"]
    assert url == "https://queue.fal.run/workflows/me/wf/requests/id/status"


def test_results_are_forgotten_after_an_hour_and_the_oldest_when_there_are_too_many() -> None:
    now = 100.0
    jobs = Jobs(lambda: now)
    jobs.add(job())
    now = 114 + KEPT_SECONDS
    assert jobs.find("id") is not None
    now += 1
    assert jobs.find("id") is None
    for number in range(KEPT_JOBS + 5):
        made = job()
        made.request_id, made.created_at = str(number), now
        jobs.add(made)
    assert jobs.find("4") is None
    assert jobs.find("5") is not None
