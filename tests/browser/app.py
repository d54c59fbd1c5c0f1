"""The official client as a page loads it, and what `app.mjs` must bring when everything works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fal_proxy.demo
from browser.sites import document

_BUNDLE = Path(fal_proxy.demo.__file__).with_name("page") / "fal-client.js"
# For pages of any origin: a document of the proxy's may load it from elsewhere.
CLIENT = document(_BUNDLE.read_bytes(), "text/javascript", access_control_allow_origin="*")
WAYS = ["me", "run", "subscribe", "watch", "stream", "upload", "realtime"]
INPUT = {"prompt": "a pier"}


def judge_use(seen: dict[str, Any], *, realtime: bool = True) -> None:
    """Assert that each of WAYS brought what it was asked for."""
    assert {way: seen[way] for way in ("run", "subscribe", "watch")} == dict.fromkeys(
        ("run", "subscribe", "watch"), INPUT
    )
    assert seen["stream"] > 1
    assert seen["upload"] is True
    assert not realtime or seen["realtime"] == 1
