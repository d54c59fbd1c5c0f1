"""The proxy in a Starlette app, for the users of its own session.

FAL_KEY=… SESSION_SECRET=… uvicorn starlette_app:app
"""

import contextlib
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route

from fal_proxy import User, create_app


def identify(scope):
    """Name the user of the session, if somebody has logged in."""
    name = scope["session"].get("user")
    return User(name) if name else None


async def log_in(request: Request) -> Response:
    """Stand in for a real login."""
    request.session["user"] = (await request.form())["name"]
    return RedirectResponse("/", status_code=303)


fal = create_app(config="fal-proxy.toml", identify=identify)


@contextlib.asynccontextmanager
async def lifespan(app):
    """Let the proxy write down what it knows at the end: mounted apps hear nothing of it."""
    yield
    await fal.close()


app = Starlette(
    routes=[
        Route("/login", log_in, methods=["POST"]),
        Mount("/api/fal", fal),  # it answers at /api/fal/proxy
    ],
    lifespan=lifespan,
    middleware=[Middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"])],
)
