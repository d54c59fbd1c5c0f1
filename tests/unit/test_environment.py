"""What the environment may hold: several secrets in one variable, from the variable or its file, and all of them masked."""

from __future__ import annotations

import base64
from pathlib import Path

from fal_proxy.environment import SECRET_VARIABLES, shared_secrets, webhook_key, webhook_secrets
from fal_proxy.loading import Finding
from fal_proxy.telemetry.masking import SecretMask
from support.proxied import WEBHOOK_SECRET

OLDER = "whsec_" + base64.b64encode(b"an older one, of twenty-four").decode()


def test_webhook_secrets_are_read_oldest_first_from_variable_or_file(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"{OLDER}\n{WEBHOOK_SECRET}\n")
    file.chmod(0o600)
    for environ in (
        {"FAL_PROXY_WEBHOOK_SECRET": f" {OLDER} ,{WEBHOOK_SECRET},"},
        {"FAL_PROXY_WEBHOOK_SECRET_FILE": str(file)},
    ):
        findings: list[Finding] = []
        secrets = webhook_secrets(environ, findings)
        assert [secret.reveal() for secret in secrets] == [OLDER, WEBHOOK_SECRET]
        assert findings == []
    assert webhook_key(secrets[0]) == b"an older one, of twenty-four"
    assert webhook_secrets({}, findings) == ()


def test_malformed_webhook_secret_is_named_by_its_variable_and_not_shown() -> None:
    for text in (
        "whsec_",
        "whsec_AAAA",
        "WHSEC_" + WEBHOOK_SECRET[6:],
        WEBHOOK_SECRET[6:],
        "whsec_" + "A" * 92,
        "whsec_ä",
    ):
        findings: list[Finding] = []
        webhook_secrets({"FAL_PROXY_WEBHOOK_SECRET": text}, findings)
        (finding,) = findings
        assert (finding.level, finding.path) == ("error", "FAL_PROXY_WEBHOOK_SECRET"), text
        assert text[6:] not in finding.message or text == "whsec_"


def test_webhook_secrets_are_masked_with_and_without_their_prefix_and_taken_out_of_the_environment() -> None:
    mask = SecretMask()
    environ = {"FAL_PROXY_WEBHOOK_SECRET": f"{OLDER},{WEBHOOK_SECRET}"}
    mask.learn(secret.reveal() for secret in shared_secrets(environ))
    for text in (OLDER, WEBHOOK_SECRET, WEBHOOK_SECRET[6:]):
        assert text[6:] not in mask.masked(f"a log of {text}.")
    assert "FAL_PROXY_WEBHOOK_SECRET" in SECRET_VARIABLES
