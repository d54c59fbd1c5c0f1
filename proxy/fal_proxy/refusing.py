"""What cannot start: exit 3 with one line of stderr per finding, and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

import click

from fal_proxy.errors import Misconfigured
from fal_proxy.identity.key import KeyFileError

EXIT_MISCONFIGURED = 3
P = ParamSpec("P")
R = TypeVar("R")


def refusing(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what cannot start into exit 3 with one line per finding."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except Misconfigured as error:
            _stop(error.findings)
        except KeyFileError as error:
            _stop([str(error)])
        except OSError as error:
            _stop([f"{error.filename or 'system'}: {error.strerror or error}"])

    return wrapper


def _stop(findings: list[str]) -> NoReturn:
    for finding in findings:
        click.echo(f"fal-proxy: {' '.join(finding.split())}", err=True)
    sys.exit(EXIT_MISCONFIGURED)
