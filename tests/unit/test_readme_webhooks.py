"""What the README tells an app's server to write judges both signatures, in Node."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.environment import Secret
from fal_proxy.webhooks.signing import Signer
from support.documents import README
from support.proxied import WEBHOOK_SECRET

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "fal_webhooks.json").read_bytes())
BODY = '{"payload": "žluťoučký"}'.encode()
ASK = """
const { ofTheProxy, ofFal, jwks } = JSON.parse(process.argv[1]);
const raw = (body) => Buffer.from(body, "base64");
console.log(JSON.stringify({
  ofTheProxy: ofTheProxy.map(({ headers, body, secret }) => isOfTheProxy(headers, raw(body), secret)),
  ofFal: ofFal.map(({ headers, body }) => isOfFal(Object.fromEntries(headers), raw(body), jwks)),
}));
"""


def ours(
    at: int = 0, body: bytes = BODY, secrets: tuple[str, ...] = (WEBHOOK_SECRET,), **changes: str
) -> dict[str, Any]:
    """Return one delivery, signed `at` seconds from now."""
    fields = Signer([Secret(each) for each in secrets]).fields("msg_1", int(time.time()) + at, body)
    headers = {name.decode(): value.decode() for name, value in fields}
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {"headers": headers, "body": base64.b64encode(BODY).decode(), "secret": WEBHOOK_SECRET}


OTHER = "whsec_" + base64.b64encode(b"another secret, long enough").decode()


def deliveries() -> list[tuple[dict[str, Any], bool, str]]:
    """Return deliveries signed just now, whether each is good, and why: a gate may collect them minutes before."""
    return [
        (ours(), True, "as it is sent"),
        (ours(secrets=(WEBHOOK_SECRET, OTHER)), True, "during a rotation"),
        (ours(secrets=(OTHER,)), False, "another secret"),
        (ours(body=b"{}"), False, "another body"),
        (ours(at=-3600), False, "an hour old"),
        (ours(webhook_id="msg_2"), False, "another id"),
        (ours(webhook_signature="v1,AAAA v1a,x"), False, "nonsense"),
    ]


def test_what_the_readme_tells_a_server_to_write_knows_the_proxy_and_fal() -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    section = README.read_text("utf-8").partition("### Webhooks\n")[2].partition("\n## ")[0]
    [source] = [each for each in re.findall(r"```js\n(.*?)```", section, re.DOTALL) if "isOfFal" in each]
    told = deliveries()
    fals = [(vector, kind == "good") for kind in ("good", "forged") for vector in VECTORS[kind]]
    asked = {"ofTheProxy": [row[0] for row in told], "ofFal": [row[0] for row in fals], "jwks": VECTORS["jwks"]}
    command = [node, "--input-type=module", "-e", source + ASK, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    said = json.loads(done.stdout)
    assert [(seen, why) for seen, (_, _, why) in zip(said["ofTheProxy"], told, strict=True)] == [
        row[1:] for row in told
    ]
    assert said["ofFal"] == [good for _, good in fals]
