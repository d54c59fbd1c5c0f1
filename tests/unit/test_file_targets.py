"""The grammar of file hosts, which exist in the path form only: what is an upload, what is a file, and what is neither."""

from __future__ import annotations

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind
from fal_proxy.policy.target import resolve, resolve_file

HOSTS = ("v3.fal.media", "v3b.fal.media")
V3 = "https://v3.fal.media"

UNDERSTOOD = [
    ("POST", V3 + "/files/upload", Kind.UPLOAD_PART, "a whole file"),
    ("POST", V3 + "/files/upload/multipart", Kind.UPLOAD_PART, "one in parts"),
    ("PUT", "https://v3b.fal.media/files/b/0a/x.bin/multipart/abc_-/10", Kind.UPLOAD_PART, "a part"),
    ("POST", "https://v3b.fal.media/files/b/0a/x.bin/multipart/abc_-/complete", Kind.UPLOAD_PART, "the end"),
    ("GET", "https://v3b.fal.media/files/b/0a/x%20y.png", Kind.FILE, "a file"),
    ("HEAD", V3 + "/files/elephant/x.png", Kind.FILE, "its head"),
    ("GET", V3 + "/files/x.png?v=1", Kind.FILE, "with a query"),
]
REFUSED = [
    ("GET", "https://fal.media.evil.example/x", 400, "another host"),
    ("GET", "https://fal.media/files/x", 400, "a host that is not listed"),
    ("GET", "https://v3.fal.media:443/files/x", 400, "a port"),
    ("GET", "https://u@v3.fal.media/files/x", 400, "a user"),
    ("GET", "https://V3.fal.media/files/x", 400, "another spelling"),
    ("GET", "https://v3.fal.media./files/x", 400, "another spelling"),
    ("GET", "http://v3.fal.media/files/x", 400, "no TLS"),
    ("GET", V3, 400, "no path"),
    ("GET", V3 + "/", 400, "no file"),
    ("GET", V3 + "/files/../x", 400, "a dot segment"),
    ("GET", V3 + "/files//x", 400, "an empty segment"),
    ("GET", V3 + "/files/%2e%2e/x", 400, "an escaped dot segment"),
    ("GET", V3 + "/files/a%2fb", 400, "an escaped separator"),
    ("GET", V3 + "/files/x#y", 400, "a fragment"),
    ("GET", V3 + "/files/x?", 400, "an empty query"),
    ("GET", V3 + "/files/x?fal_key=1", 400, "a credential"),
    ("GET", V3 + "/files/upload", 405, "no file"),
    ("PUT", V3 + "/files/upload", 405, "another method"),
    ("POST", V3 + "/files/upload/", 405, "a slash makes a file of it"),
    ("POST", V3 + "/files/upload?x=1", 400, "a query"),
    ("PUT", V3 + "/files/b/0a/x/multipart/abc/1?x=1", 400, "a query"),
    ("PUT", V3 + "/files/b/0a/x/multipart/abc/one", 400, "no number"),
    ("POST", V3 + "/files/b/0a/x/multipart/abc/1", 405, "another method"),
    ("PUT", V3 + "/files/b/0a/x", 405, "a file is not written"),
    ("DELETE", V3 + "/files/b/0a/x", 405, "nor deleted"),
    ("get", V3 + "/files/b/0a/x", 405, "methods have one spelling"),
]


@pytest.mark.parametrize(("method", "url", "kind", "reason"), UNDERSTOOD)
def test_an_upload_or_a_file_is_understood_and_kept_to_the_byte(method: str, url: str, kind: Kind, reason: str) -> None:
    target = resolve_file(url.encode(), method, HOSTS)
    assert target.kind is kind, reason
    assert f"https://{target.host.decode()}{target.path_and_query.decode()}" == url


@pytest.mark.parametrize(("method", "url", "status", "reason"), REFUSED)
def test_anything_else_is_refused(method: str, url: str, status: int, reason: str) -> None:
    with pytest.raises(Refusal) as refused:
        resolve_file(url.encode(), method, HOSTS)
    assert refused.value.status == status, reason


@pytest.mark.parametrize(("method", "url", "kind", "reason"), UNDERSTOOD)
def test_no_file_host_is_a_target_of_the_header_form(method: str, url: str, kind: Kind, reason: str) -> None:
    with pytest.raises(Refusal) as refused:
        resolve(url.encode(), method, ("POST", "GET", "PUT"))
    assert refused.value.error_type == "invalid_target"
