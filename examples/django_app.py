"""The proxy beside a Django project, for the users of Django's sessions.

FAL_KEY=… DJANGO_SECRET_KEY=… uvicorn django_app:application
"""

import os
from http.cookies import SimpleCookie
from importlib import import_module

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from fal_proxy import User, create_app

settings.configure(  # your project has a module of its own for this
    SECRET_KEY=os.environ["DJANGO_SECRET_KEY"],
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()
Session = import_module(settings.SESSION_ENGINE).SessionStore


@sync_to_async  # most session engines ask a database, which must not block the event loop
def user_of(session_key):
    """Return whom a session belongs to."""
    return Session(session_key).get("user")


async def identify(scope):
    """Name the user of the session, if somebody has logged in: Django's middleware does not see these requests."""
    cookies = SimpleCookie(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))
    found = cookies.get(settings.SESSION_COOKIE_NAME)
    name = await user_of(found.value) if found else None
    return User(name) if name else None


def log_in(request):
    """Stand in for a real login."""
    request.session["user"] = request.POST["name"]
    return HttpResponse("logged in")


urlpatterns = [path("login", log_in)]
site = get_asgi_application()
fal = create_app(config="fal-proxy.toml", identify=identify)


async def application(scope, receive, send):
    """Lead what lies below the mount to the proxy, and all else to Django."""
    inside = scope["type"] != "lifespan" and scope["path"].startswith("/api/fal/proxy")
    await (fal if inside or scope["type"] == "lifespan" else site)(scope, receive, send)
