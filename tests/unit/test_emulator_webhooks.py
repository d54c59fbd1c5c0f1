"""Where a webhook's URL leads, and what the emulator's keys sign."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc.jwk import OKPKey

from fal_proxy.emulator.posting import Destination, read_url
from fal_proxy.emulator.signing import Signer


@pytest.mark.parametrize(
    ("url", "destination", "reason"),
    [
        ("http://a.test", Destination("a.test", 80, False, "a.test", "/"), "the root is written out"),
        ("https://a.test/x", Destination("a.test", 443, True, "a.test", "/x"), "https has its port"),
        ("http://A.test:81/X?y=Z", Destination("a.test", 81, False, "a.test:81", "/X?y=Z"), "only names lose case"),
        ("http://a.test/%2F?a=%20&b=c%26", Destination("a.test", 80, False, "a.test", "/%2F?a=%20&b=c%26"), "as is"),
        ("http://a.test/a b/ž#f", Destination("a.test", 80, False, "a.test", "/a%20b/%C5%BE"), "what must be escaped"),
        ("http://[::1]:8/x", Destination("::1", 8, False, "[::1]:8", "/x"), "IPv6 in brackets"),
        ("http://bücher.test/", Destination("xn--bcher-kva.test", 80, False, "xn--bcher-kva.test", "/"), "IDNA"),
        ("http://a.test/x\r\nevil: 1", Destination("a.test", 80, False, "a.test", "/xevil:%201"), "no field is added"),
    ],
)
def test_a_url_is_read_into_where_to_connect_and_what_to_write(url: str, destination: Destination, reason: str) -> None:
    assert read_url(url) == destination, reason


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a.test/", "http://", "http://u@a.test/", "http://a.test:x/", "http://[::1/", "http://.a./"]
)
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        read_url(url)


def test_a_signature_covers_id_user_time_and_the_digest_of_the_body_in_lines() -> None:
    signer = Signer(1)
    headers = dict(signer.headers("id", b"body", 17))
    assert headers.pop("X-Fal-Webhook-Request-Id") == "id"
    assert headers.pop("X-Fal-Webhook-User-Id") == signer.user_id
    assert headers.pop("X-Fal-Webhook-Timestamp") == "17"
    signature = headers.pop("X-Fal-Webhook-Signature")
    assert headers == {}
    assert signature == signature.lower()
    message = f"id\n{signer.user_id}\n17\n{hashlib.sha256(b'body').hexdigest()}"
    [key] = signer.jwks()["keys"]
    public = OKPKey.import_key(key).public_key
    assert isinstance(public, Ed25519PublicKey)
    public.verify(bytes.fromhex(signature), message.encode())  # raises for a wrong one


def test_keys_and_user_follow_the_seed_through_rotations() -> None:
    shown = []
    for seed in (3, 3, 4):
        signer = Signer(seed)
        signer.rotate(keep_old=True)
        shown.append((signer.user_id, signer.jwks()))
    assert shown[0] == shown[1] != shown[2]
    assert len({key["kid"] for key in shown[0][1]["keys"]}) == 2
