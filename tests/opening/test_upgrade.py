"""What the log says of refused upgrades. That they are refused alike everywhere is in the tests of who reads them."""

from __future__ import annotations

import logging

import gevent
import pytest

import gowsev

EVIL = [("Origin", "http://evil.example")]


def refused(server, headers=()):
    client = server.client(handshake=False)
    client.send(client.request("/", headers))
    return client.read_to_end()


def refusals(caplog):
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith("refused ")]


def test_the_first_refusal_by_an_option_is_a_warning_that_names_it(serve, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = serve(max_connections=1)
    for _ in range(3):
        assert refused(server, EVIL).startswith(b"HTTP/1.1 403 ")
    held = server.client()
    for _ in range(2):
        assert refused(server).startswith(b"HTTP/1.1 503 ")
    assert [level for level, _ in refusals(caplog)] == ["WARNING", "INFO", "INFO", "WARNING", "INFO"]
    texts = [text for _, text in refusals(caplog)]
    assert all("see allowed_origins of gowsev.Options" in text for text in texts[:3])
    assert all("see max_connections of gowsev.Options" in text for text in texts[3:])
    held.close()


class Slow(gowsev.Handler):
    def ConnRequested(self, context, request):
        gevent.sleep(0.2)


def test_so_is_the_first_refusal_since_nobody_answered_in_time(serve, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    server = serve(Slow(), handshake_timeout=0.05)
    for _ in range(2):
        assert refused(server).startswith(b"HTTP/1.1 503 ")
    assert [level for level, _ in refusals(caplog)] == ["WARNING", "INFO"]
    assert all("see handshake_timeout of gowsev.Options" in text for _, text in refusals(caplog))


def test_each_context_warns_for_itself(serve, caplog):
    for server in (serve(), serve()):
        refused(server, EVIL)
    assert [level for level, _ in refusals(caplog)] == ["WARNING", "WARNING"]


class Bouncer(gowsev.Handler):
    def ConnRequested(self, context, request):
        return gowsev.Reject(403)


@pytest.mark.parametrize(("handler", "headers"), [(Bouncer(), ()), (None, [("Sec-WebSocket-Version", "8")])])
def test_what_a_program_or_the_protocol_refuses_is_no_warning(serve, caplog, handler, headers):
    caplog.set_level(logging.INFO, "gowsev")
    assert refused(serve(handler), headers).startswith(b"HTTP/1.1 40")
    assert [level for level, _ in refusals(caplog)] == ["INFO"]
