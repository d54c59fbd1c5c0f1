"""Tokens whose signature was looked at before: believed for as long as anything else about them holds."""

from __future__ import annotations

import pytest

from fal_proxy.identity import Presented
from fal_proxy.identity.jwks import PublicKey
from fal_proxy.request import Request
from support.bearers import Stage, staging
from support.issuer import rsa_signer

stage = staging


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what signatures were looked at, in order."""
    signed: list[bytes] = []
    verifies = PublicKey.verifies

    def noted(key: PublicKey, algorithm: str, data: bytes, signature: bytes) -> bool:
        signed.append(data)
        return verifies(key, algorithm, data, signature)

    monkeypatch.setattr(PublicKey, "verifies", noted)
    return signed


def _presented(text: str) -> Presented:
    return Presented(Request("POST", b"/", None, [], "127.0.0.1", "http"), text)


@pytest.mark.parametrize("by", ["rsa", "ec", "ed"])
async def test_the_signature_of_a_head_that_comes_again_is_looked_at_once(
    by: str, stage: Stage, verified: list[bytes]
) -> None:
    presented = _presented(stage.mint(by=by))
    callers = [await stage.source.identify(presented) for _ in range(3)]
    assert len(set(callers)) == 1
    assert callers[0] is not None
    assert len(verified) == 1


async def test_a_token_whose_signature_is_known_expires_all_the_same(stage: Stage) -> None:
    presented = _presented(stage.mint(exp=stage.clock.now + 100))
    assert await stage.source.identify(presented) is not None
    stage.clock.now += 129
    assert await stage.source.identify(presented) is not None
    stage.clock.now += 2
    assert await stage.source.identify(presented) is None


async def test_a_key_that_the_issuer_withdraws_proves_nothing_more(stage: Stage, verified: list[bytes]) -> None:
    presented = _presented(stage.mint(exp=stage.clock.now + 10_000))
    assert await stage.source.identify(presented) is not None
    stage.clock.now += 301
    assert await stage.source.identify(presented) is not None
    assert len(verified) == 2, "the issuer was asked anew, and its keys are other ones"
    stage.issuer.keys = [rsa_signer(1).public("rsa")]
    assert await stage.source.identify(presented) is not None, "not known yet: keys are asked for every 5 minutes"
    stage.clock.now += 301
    assert await stage.source.identify(presented) is None


async def test_what_is_known_of_one_token_is_not_believed_of_another(stage: Stage) -> None:
    presented = _presented(stage.mint())
    ada = await stage.source.identify(presented)
    forged = presented.credential.rpartition(".")[0] + "." + stage.mint(sub="eve").rpartition(".")[2]  # type: ignore[union-attr]
    assert await stage.source.identify(Presented(presented.request, forged)) is None
    eve = await stage.source.identify(Presented(presented.request, stage.mint(sub="eve")))
    assert ada is not None
    assert eve is not None
    assert ada.id != eve.id
