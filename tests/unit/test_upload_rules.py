"""What may be uploaded, as pure rules. The wire has the tables; here is what must hold for every input."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.admission.uploaded import KEPT_UPLOADS, Uploaded
from fal_proxy.errors import Refusal
from fal_proxy.policy.uploads import MAX_NAME_BYTES, UploadRules, harmless_name, judge_first_bytes


@given(st.text(st.characters()))
def test_every_name_becomes_harmless_and_stays_so(name: str) -> None:
    shown = harmless_name(name)
    assert 0 < len(shown.encode()) <= MAX_NAME_BYTES
    assert not set(shown) & set('/\\:<>"|?*')
    assert shown not in (".", "..")
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    assert harmless_name(shown) == shown or len(name) > 80, "what is harmless is left alone"


@pytest.mark.parametrize("glob", ["*", "image", "image/", "/png", "*/*", "*/png", "image/p*", "image/png; a=b", ""])
def test_a_malformed_content_type_is_found_at_the_start(glob: str) -> None:
    with pytest.raises(ValueError, match="no content type"):
        UploadRules([glob])


def test_types_are_compared_without_case_and_parameters() -> None:
    rules = UploadRules(["Image/PNG", "text/*"])
    assert rules.judge_type("image/png; q=1") == "image/png; q=1"
    assert rules.judge_type("TEXT/html") == "TEXT/html"
    with pytest.raises(Refusal, match="image/jpeg"):
        rules.judge_type("image/jpeg")


@given(st.binary(max_size=600))
def test_only_markup_is_ever_refused(first: bytes) -> None:
    try:
        judge_first_bytes("image/png", first)
    except Refusal:
        assert b"<" in first


def test_an_upload_is_as_large_as_the_last_attempts_of_its_parts() -> None:
    uploaded = Uploaded()
    for size in (90, 50, 60):
        uploaded.count("a", "1", size, 100)
    uploaded.count("a", "2", 40, 100)
    uploaded.count("b", "1", 100, 100)
    with pytest.raises(Refusal) as refused:
        uploaded.count("a", "3", 1, 100)
    assert refused.value.status == 413
    uploaded.count("a", "2", 39, 100)
    uploaded.count("a", "3", 1, 100)


def test_what_is_remembered_is_bounded() -> None:
    uploaded = Uploaded()
    for number in range(KEPT_UPLOADS + 1):
        uploaded.count(str(number), "1", 1, 1)
    uploaded.count("0", "2", 1, 1)
    with pytest.raises(Refusal):
        uploaded.count(str(KEPT_UPLOADS), "2", 1, 1)
