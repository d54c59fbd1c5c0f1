"""The proxy in a FastAPI app, for whoever holds a token of the app's own, on the plan that the token names.

FAL_KEY=… uvicorn fastapi_app:app
"""

import contextlib
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from fal_proxy import User, create_app

TOKENS = {"a token of ada's": ("ada", "default"), "a token of bob's": ("bob", "generous")}  # in place of a database


async def identify(scope):
    """Name the token's holder; a page's script attaches it by itself, so no other page can."""
    _, _, token = HTTPConnection(scope).headers.get("authorization", "").partition(" ")
    found = TOKENS.get(token)
    return User(*found, ambient=False) if found else None


fal = create_app(config="fal-proxy.toml", identify=identify)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    """Let the proxy write down what it knows at the end: mounted apps hear nothing of it."""
    yield
    await fal.close()


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
def hello(token: Annotated[object, Depends(HTTPBearer())]) -> str:
    """Stand in for the rest of the app."""
    return "hello"


app.mount("/api/fal", fal)  # it answers at /api/fal/proxy
