"""A Flask worker that has served one landing request: prints its resident memory in KiB.

``python -m tests.benchmarks.flask_worker with|without DIRECTORY``. Imports nothing that a shop's worker would not.
"""

from __future__ import annotations

import gc
import io
import sys
from typing import Any

from flask import Flask

LANDING = {
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "https",
    "wsgi.input": io.BytesIO(),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "REQUEST_METHOD": "GET",
    "QUERY_STRING": "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_NAME": "shop.example.com",
    "SERVER_PORT": "443",
    "HTTP_HOST": "shop.example.com",
    "HTTP_USER_AGENT": "Mozilla/5.0",
    "REMOTE_ADDR": "203.0.113.7",
    "PATH_INFO": "/",
    "SCRIPT_NAME": "",
}


def main(with_us: bool, directory: str) -> None:
    """Build the shop, serve one request, print."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "Hello, shop!\n")
    if with_us:
        _wrap(app, directory)
    sent: list[tuple[str, str]] = []

    def start_response(_status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Any:
        sent.extend(headers)

    b"".join(app(LANDING, start_response))
    if with_us != any(name == "Set-Cookie" for name, _ in sent):
        raise AssertionError(sent)
    gc.collect()
    print(_resident())


def _wrap(app: Flask, directory: str) -> None:
    from katalys_wsgi import ClickMiddleware, Tracker

    tracker = Tracker(
        site_id="KA-1A2B3C4",
        secret_key="kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2",
        outbox=f"{directory}/never-used.db",
    )
    app.wsgi_app = ClickMiddleware(app.wsgi_app, tracker)  # type: ignore[method-assign] # Flask's documented way


def _resident() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    main(sys.argv[1] == "with", sys.argv[2])
