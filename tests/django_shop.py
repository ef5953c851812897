"""A Django shop for tests, and the Django of this process; importing it configures Django, once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.test import override_settings
from django.urls import path

from katalys_wsgi import Tracker
from katalys_wsgi.django import get_tracker

from .support import make_conversion

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: A project without KATALYS_ settings; each test overrides what it needs.
settings.configure(
    SECRET_KEY="d8f7g6h5jq0w9e8r7t6y5u4i3o2p1a0s9",
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["katalys_wsgi.django"],
    MIDDLEWARE=["katalys_wsgi.django.KatalysMiddleware"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    LOGGING_CONFIG=None,  # the other tests' logs are not Django's business
)
django.setup()


def katalys_settings(options: dict[str, Any]) -> dict[str, Any]:
    """A tracker's settings as Django's."""
    return {f"KATALYS_{name.upper()}": value for name, value in options.items()}


class DjangoShop:
    """The shop as a WSGI application with settings of its own, of which Django itself has one set in a process.

    :param options: settings by their plain name.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._settings = katalys_settings(options)
        with override_settings(**self._settings):
            self._handler: WSGIApplication = WSGIHandler()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with override_settings(**self._settings):
            return self._handler(environ, start_response)

    def tracker(self) -> Tracker:
        """A tracker of the same settings; each request has one of its own."""
        with override_settings(**self._settings):
            return get_tracker()


def page(request: HttpRequest) -> HttpResponse:
    click = request.katalys.click
    return HttpResponse(f"Welcome from {click.aff_id}" if click else "Welcome")


def old(_request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/")


def broken(_request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError("an error in a view")


def checkout(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.katalys.record(make_conversion(request.POST["order"])).outcome.name)


def leave(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.katalys.token())


def come_back(request: HttpRequest) -> HttpResponse:
    visit = request.katalys.resume(request.POST["token"])
    return HttpResponse(visit.record(make_conversion(request.POST["order"])).outcome.name)


urlpatterns = [
    path("", page),
    path("page1", page),
    path("old", old),
    path("broken", broken),
    path("checkout", checkout),
    path("leave", leave),
    path("return", come_back),
]
