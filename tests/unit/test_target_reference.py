"""Two readings of the same rules about targets agree: the proxy's grammar, and one that splits and checks by hand."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_proxy.policy.target import resolve
from support import target_questions
from support.corpus import CORPUS, WEBHOOK_HOSTS, Case, cases
from support.target_questions import METHODS, PLANS, Question, disagreement, from_corpus, from_grammar
from support.target_rules import Refused, Understood, judge, judge_lines, webhook_fits

ROWS = cases()
HOSTS = [json.loads(line).get("host", "").encode() for line in CORPUS.read_text("utf-8").splitlines()]
# A generator of hypothesis's own, so that a disagreement shrinks to the shortest that shows it.
RANDOM = st.randoms(use_true_random=False)


@pytest.mark.parametrize(
    ("case", "host"), list(zip(ROWS, HOSTS, strict=True)), ids=[f"{case.allowed}: {case.why}" for case in ROWS]
)
def test_the_second_reading_labels_each_row_as_the_corpus_does(case: Case, host: bytes) -> None:
    verdict = judge_lines(case.lines, case.method)
    allowed = isinstance(verdict, Understood) and (
        verdict.webhook is None or webhook_fits(verdict.webhook, WEBHOOK_HOSTS)
    )
    assert allowed == case.allowed, verdict
    assert not allowed or verdict[0] == host


@pytest.mark.parametrize("method", sorted(set(METHODS)))
def test_both_readings_agree_on_each_row_of_the_corpus(method: str) -> None:
    found = [
        disagreement(Question(line, method, plan_methods))[1]
        for case in ROWS
        for line in case.lines
        for plan_methods in PLANS
    ]
    assert not list(filter(None, found))


@given(random=RANDOM)
@settings(max_examples=2000, deadline=None)
def test_both_readings_agree_on_changed_rows_of_the_corpus(random: Random) -> None:
    assert not disagreement(from_corpus(random))[1]


@given(random=RANDOM)
@settings(max_examples=3000, deadline=None)
def test_both_readings_agree_on_targets_made_by_the_grammar(random: Random) -> None:
    assert not disagreement(from_grammar(random))[1]


@given(
    raw=st.binary(max_size=40), host=st.sampled_from((b"", b"https://fal.run/a/", b"https://queue.fal.run/a/b?logs="))
)
@settings(max_examples=1000, deadline=None)
def test_both_readings_agree_on_any_bytes(raw: bytes, host: bytes) -> None:
    assert not disagreement(Question(host + raw, "POST", ("POST",)))[1]


def test_questions_of_each_kind_and_against_each_rule_are_asked() -> None:
    random = Random(1)
    verdicts = [judge(*make(random)) for make in (from_corpus, from_grammar) for _ in range(20_000)]
    kinds = {verdict.kind for verdict in verdicts if isinstance(verdict, Understood)}
    rules = {verdict.rule.partition(":")[0] for verdict in verdicts if isinstance(verdict, Refused)}
    assert kinds == {
        *("run", "stream", "submit", "status", "status_stream", "result", "cancel"),
        *("token", "upload_initiate", "upload_token", "wma"),
    }
    assert rules == {*(f"rule {number}" for number in range(1, 8)), "contract", "known shape, wrong method"}


def test_a_proxy_that_forgets_one_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resolve

    def forgetful(raw: bytes, method: str, plan_methods: tuple[str, ...]) -> object:
        return whole(raw.replace(b"/./", b"/x/"), method, plan_methods)

    monkeypatch.setattr(target_questions, "resolve", forgetful)
    random = Random(1)
    assert any(disagreement(from_corpus(random))[1] for _ in range(20_000))
