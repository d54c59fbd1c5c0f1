"""What the README tells people to type: the one line of each client, and commands for a shell."""

from __future__ import annotations

import re

from support.documents import README

EXAMPLE_ORIGIN = "https://app.example.com"


def client_lines() -> dict[str, str]:
    """Return the code of the table "Your client", by the client that its row names."""
    table = README.read_text("utf-8").partition("<!-- clients:")[2].partition("<!-- /clients -->")[0]
    return dict(re.findall(r"^\| (.+?) \| `(.+)` \|$", table, re.MULTILINE))


def shell_commands() -> list[str]:
    """Return every `curl` of the README, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if "curl " in line]


def at(origin: str, code: str) -> str:
    """Return code of the README with the example's origin replaced."""
    return code.replace(EXAMPLE_ORIGIN, origin)
