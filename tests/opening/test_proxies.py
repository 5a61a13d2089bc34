"""A real nginx and a real HAProxy in front, with connections kept open: they and we agree about where a request ends.

Where they do not, a part of one client's body is the beginning of the next client's request.
"""

from __future__ import annotations

import gevent
import gevent.socket
import pytest
from haproxy_server import needs_haproxy, running_haproxy
from nginx_server import needs_nginx, running_nginx
from raw import RawClient

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"

NGINX = """
upstream gowsev {{ server 127.0.0.1:{upstream}; keepalive 1; }}
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://gowsev;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Connection "";
        proxy_request_buffering {buffering};
    }}
}}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 30s
    timeout client 30s
    timeout server 30s
frontend front
    bind 127.0.0.1:{port}
    default_backend gowsev
backend gowsev
    http-reuse always
    server one 127.0.0.1:{upstream}
"""

LENGTH = b"Content-Length: %d" % len(HIDDEN)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)

#: Header lines, and what follows the head: the hidden request is a body by some reading, and a request by another.
AMBIGUOUS = [
    ("a length", [LENGTH], HIDDEN),
    ("chunked", [b"Transfer-Encoding: chunked"], CHUNKED),
    ("chunked, whose sizes have extensions", [b"Transfer-Encoding: chunked"], CHUNKED.replace(b"\r\n", b";a=b\r\n", 1)),
    ("chunked, with a trailer", [b"Transfer-Encoding: chunked"], CHUNKED[:-2] + b"Content-Length: 50\r\n\r\n"),
    ("both", [LENGTH, b"Transfer-Encoding: chunked"], b"0\r\n\r\n" + HIDDEN),
    ("both, the other way round", [b"Transfer-Encoding: chunked", b"Content-Length: 5"], b"0\r\n\r\n" + HIDDEN),
    ("two lengths", [b"Content-Length: 0", LENGTH], HIDDEN),
    ("two lengths, the other way round", [LENGTH, b"Content-Length: 0"], HIDDEN),
    ("two lengths in a list", [b"Content-Length: 0, %d" % len(HIDDEN)], HIDDEN),
    ("a length with a sign", [b"Content-Length: +%d" % len(HIDDEN)], HIDDEN),
    ("a length in hexadecimal", [b"Content-Length: 0x%x" % len(HIDDEN)], HIDDEN),
    ("a length with an underscore", [b"Content-Length: 4_1"], HIDDEN),
    ("a negative length", [b"Content-Length: -1"], HIDDEN),
    ("another coding", [b"Transfer-Encoding: xchunked", LENGTH], HIDDEN),
    ("identity", [b"Transfer-Encoding: identity", LENGTH], HIDDEN),
    ("chunked first", [b"Transfer-Encoding: chunked, identity"], CHUNKED),
    ("chunked twice", [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], CHUNKED),
    ("a blank before the colon", [b"Transfer-Encoding : chunked", LENGTH], b"0\r\n\r\n" + HIDDEN),
    ("a tab before the coding", [b"Transfer-Encoding:\tchunked"], CHUNKED),
    ("a vertical tab before the coding", [b"Transfer-Encoding: \x0bchunked", LENGTH], b"0\r\n\r\n" + HIDDEN),
    ("a folded coding", [b"Transfer-Encoding:", b" chunked", LENGTH], b"0\r\n\r\n" + HIDDEN),
    ("an underscore in the name", [b"Content_Length: 0", LENGTH], HIDDEN),
    ("another underscore", [b"Transfer_Encoding: chunked", LENGTH], HIDDEN),
    ("named by Connection", [b"Connection: close, Content-Length", LENGTH], HIDDEN),
    ("a body of an upgrade", [b"Upgrade: websocket", b"Connection: Upgrade", LENGTH], HIDDEN),
]


def witness(asked):
    """Make an application that notes what it is asked, and answers with it."""

    def application(environ, start_response):
        body = environ["wsgi.input"].read()
        asked.append((environ["PATH_INFO"], body))
        answer = environ["PATH_INFO"].encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
        return [answer]

    return application


def free_port():
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(
    params=[
        pytest.param("nginx", marks=needs_nginx),
        pytest.param("nginx, unbuffered", marks=needs_nginx),
        pytest.param("haproxy", marks=needs_haproxy),
    ]
)
def proxied(request, serve, tmp_path):
    """A server behind a proxy: what its application is asked, and the proxy's port."""
    asked = []
    upstream, port = serve(http_app=witness(asked)).port, free_port()
    if request.param == "haproxy":
        proxy = running_haproxy(tmp_path, port, HAPROXY.format(port=port, upstream=upstream))
    else:
        buffering = "off" if "unbuffered" in request.param else "on"
        proxy = running_nginx(tmp_path, NGINX.format(port=port, upstream=upstream, buffering=buffering))
    with proxy:
        yield asked, port


def exchange(port, data):
    client = RawClient("127.0.0.1", port, handshake=False)
    try:
        client.send(data)
        return client.read_to_end()
    except OSError:  # refused before all of it was read
        return b""
    finally:
        client.close()


def test_a_proxy_and_we_agree_about_where_a_request_ends(proxied):
    asked, port = proxied
    for name, lines, rest in AMBIGUOUS:
        asked.clear()
        head = b"\r\n".join([b"POST /first HTTP/1.1", b"Host: localhost", *lines, b"", b""])
        client = RawClient("127.0.0.1", port, handshake=False)
        client.send(head + rest)
        try:
            client.read_head()
        except EOFError:
            # HAProxy 3.2 refuses some with a 400 that only its log shows, and closes: then none of it has come to us.
            assert asked == [], name
        finally:
            client.close()
        # Another client, whose request takes the same connection to us.
        follower = b"GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = exchange(port, follower)
        assert answer.startswith(b"HTTP/1.1 200 "), (name, answer)
        assert answer.endswith(b"/next"), (name, answer)
        # The proxy may itself have taken the rest for a request of the first client: it has looked at that.
        assert asked[-1] == ("/next", b""), name
        assert all(body in (b"", HIDDEN) for _, body in asked), name
        consumed = any(path == "/first" and body == HIDDEN for path, body in asked)
        assert not (consumed and "/hidden" in dict(asked)), name
