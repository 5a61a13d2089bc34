"""What the relay's port serves to browsers and monitors: a page to try it with, /healthz and /metrics.

A WSGI application, for `Options(http_app=...)`. The page is page.html with page.css, page.js and page.svg, from beside
this file; nothing comes from anywhere else, and a strict Content-Security-Policy says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

#: (path, file, type)
FILES = [
    ("/", "page.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
    ("/page.svg", "page.svg", "image/svg+xml"),
]
#: Connecting to the same host and port, by whatever scheme, is all that the page may do.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
SAFE = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]


class Page:
    """The application.

    Args:
        token: whether clients need one; the page then asks for it.
    """

    def __init__(self, token: bool = False) -> None:
        self.apps: dict[str, Callable[..., Iterable[bytes]]] = {}
        """What answers for other paths; to be set before requests come."""
        self._files: dict[str, tuple[str, bytes, str]] = {}
        for path, name, type in FILES:
            content = (HERE / name).read_bytes()
            if token and name == "page.html":
                content = content.replace(b'data-token="no"', b'data-token="yes"')
            self._files[path] = type, content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"] or "/", environ["REQUEST_METHOD"]
        headers, type = [*SAFE, ("Cache-Control", "no-store")], "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            headers = [*SAFE, ("Allow", "GET, HEAD")]
            status, body = "405 Method Not Allowed", b"This is read only.\n"
        elif path in self._files:
            type, body, tag = self._files[path]
            status = "200 OK"
            # Asked for again each time, and sent again only when it has changed.
            headers = [*SAFE, ("Cache-Control", "no-cache"), ("ETag", tag)]
            if tag in environ.get("HTTP_IF_NONE_MATCH", ""):
                start_response("304 Not Modified", headers)
                return []
        elif path in self.apps:
            return self.apps[path](environ, lambda status, more: start_response(status, SAFE + more))
        elif path == "/metrics":
            status = "501 Not Implemented"
            body = b"Metrics need the Python package prometheus-client: pip install '.[relay]' brings it.\n"
        else:
            status, body = "404 Not Found", b"There is nothing here. The page is at /.\n"
        start_response(status, [*headers, ("Content-Type", type), ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]
