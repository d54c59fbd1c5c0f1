"""fal-proxy: lets a browser app use fal.ai without ever holding the fal key.

`create_app`, `Settings` and `User` are the Python API; they load on first use: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fal_proxy._version import __version__

if TYPE_CHECKING:
    from fal_proxy.app import create_app
    from fal_proxy.identity.app import User
    from fal_proxy.settings import Settings

__all__ = ["Settings", "User", "__version__", "create_app"]


def __getattr__(name: str) -> object:
    if name == "create_app":
        from fal_proxy.app import create_app

        return create_app
    if name == "Settings":
        from fal_proxy.settings import Settings

        return Settings
    if name == "User":
        from fal_proxy.identity.app import User

        return User
    raise AttributeError(name)
