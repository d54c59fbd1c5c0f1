"""Token mode, as tests of it set it up."""

from __future__ import annotations

from typing import Any

from fal_proxy.settings import Plan, Realtime
from support.limited import said, wide

TOKENS = ("POST", "/rest.fal.ai/tokens/")
TOKEN_MODE = Realtime(mode="token", token_seconds=120, usd_per_second=0.001)
LCM = b'{"allowed_apps":["lcm"],"token_expiration":120}'
PAID: dict[str, Any] = {"prices": {"default": 0.04}, "realtime": TOKEN_MODE}
MINTED = said(201, b'"fal.s.token"')


def handing(**changes: Any) -> Plan:
    """Return a plan that opens everything and hands out fal's tokens."""
    return wide(realtime_token=True, **changes)
