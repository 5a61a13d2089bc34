"""`Redial`: a connection that comes back, how attempts are spread, and how it ends."""

import logging
import random
import re
import ssl
import time
from collections import Counter

import gevent
import gevent.socket
import pytest
from conftest import PATIENCE, Recorder, held_sockets, in_real_thread, wait_until
from scripted_server import accepting, close_frame, frame, until_the_end

import gowsev
from gowsev import testing
from gowsev.connection.fork import disown_all

pytestmark = pytest.mark.usefixtures("quiet_hub")

#: Pauses of tests that wait for several attempts.
SOON = {"first_pause": 0.01, "longest_pause": 0.05}


class Client(Recorder):
    """A handler that also notes what its `Redial`s tell."""

    def opened(self, context, id):
        self.events.append(("opened", id))

    def failed(self, context, error, pause):
        self.events.append(("failed", error, pause))


@pytest.fixture
def client():
    """A running context without a listener, for a `Client`."""
    handler = Client()
    context = gowsev.MakeContext(handler)
    handler.context = context
    with testing.drive(context):
        yield handler


def redial(client, url, **arguments):
    return gowsev.Redial(client.context, url, opened=client.opened, failed=client.failed, **{**SOON, **arguments})


def nobody():
    """A URL where nobody listens, until the socket that is returned with it does."""
    sock = gevent.socket.socket()
    sock.bind(("127.0.0.1", 0))
    return f"ws://127.0.0.1:{sock.getsockname()[1]}/", sock


# -- it comes back -----------------------------------------------------------------------------------------------


def test_it_comes_back_each_time_with_a_new_id(client, serve):
    server = serve()
    link = redial(client, server.url)
    assert link.id == 0
    assert client.context.Write(link.id, b"nobody").__class__ is gowsev.IdNotFound
    for number in (1, 2, 3):
        wait_until(lambda number=number: link.id == number)
        assert client.context.Write(number, b"%d" % number) is None
        wait_until(lambda number=number: ("message", number, b"%d" % number) in client.events)
        wait_until(lambda number=number: len(server.handler.of("accepted")) == number)
        server.context.Close(number, 1001)
    wait_until(lambda: link.id == 4)
    kinds = [event[:2] for event in client.events]
    assert kinds == [pair for id in (1, 2, 3) for pair in (("opened", id), ("message", id), ("closed", id))] + [
        ("opened", 4)
    ]


def test_it_is_told_of_before_its_first_message_and_keeps_its_id_in_its_end(client, scripted):
    def script(sock, head):
        sock.sendall(accepting(head) + frame(b"at once") + close_frame(1001))
        until_the_end(sock)

    ids = []

    def ConnClosed(context, id):
        ids.append((id, link.id))
        link.Stop()

    client.ConnClosed = ConnClosed
    link = redial(client, scripted(script).url)
    wait_until(lambda: ids)
    assert client.events == [("opened", 1), ("message", 1, b"at once")]
    assert ids == [(1, 1)]
    wait_until(lambda: link.id == 0)


def test_it_needs_no_callbacks(client, serve):
    link = gowsev.Redial(client.context, serve().url)
    wait_until(lambda: link.id == 1)
    assert repr(link) == f"<Redial {link._wanted.target.safe_url!r} id=1>"


def test_failures_are_told_with_the_pause(client, caplog):
    caplog.set_level(logging.INFO, "gowsev")
    url, sock = nobody()
    with sock:
        link = redial(client, url.replace("//", "//alice:secret@"))
        wait_until(lambda: len(client.of("failed")) >= 3)
        for _, error, pause in client.of("failed"):
            assert isinstance(error, gowsev.DialError)
            assert "refused" in str(error)
            assert 0 <= pause <= 0.05
        assert "secret" not in repr(link) + caplog.text
        assert re.search(rf"dial {url}: .*refused \(connecting\); it is dialled again in 0\.\d s", caplog.text)


def test_what_dial_takes_it_takes_too(client, serve, tmp_path):
    server = serve(port=f"unix:{tmp_path}/socket", subprotocols=("chat",))
    link = redial(client, "ws://localhost/", unix=tmp_path / "socket", subprotocols=["chat"])
    wait_until(lambda: link.id)
    assert client.context.MustConn(link.id).subprotocol == "chat"
    assert server.handler.of("accepted")


def test_it_comes_back_from_a_silence(client, scripted):
    def script(sock, head):
        sock.sendall(accepting(head))
        until_the_end(sock)  # which answers no ping

    link = redial(client, scripted(script).url, options=gowsev.Options(ping_interval=0.05, ping_timeout=0.05))
    wait_until(lambda: link.id == 2)
    assert client.events[:3] == [("opened", 1), ("closed", 1, 1006, ""), ("opened", 2)]


def test_it_comes_back_from_a_close_of_the_program(client, serve):
    link = redial(client, serve().url)
    wait_until(lambda: link.id == 1)
    client.context.Close(link.id)
    wait_until(lambda: link.id == 2)
    assert client.events == [("opened", 1), ("closed", 1, 1000, ""), ("opened", 2)]


@pytest.mark.parametrize(
    "dialled", [gowsev.Redial, lambda context, *args, **kw: context.AddConn(gowsev.Dial(*args, **kw))]
)
def test_options_are_its_own_and_not_those_of_the_context(serve, dialled):
    handler, server = Client(), serve()
    context = gowsev.MakeContext(handler, gowsev.Options(max_message_bytes=10))
    with testing.drive(context):
        dialled(context, server.url, options=gowsev.Options(max_message_bytes=20))
        wait_until(lambda: server.handler.of("accepted"))
        for size in (20, 21):
            server.context.Write(1, bytes(size))
        wait_until(lambda: server.handler.closed)
    assert handler.events[0] == ("message", 1, bytes(20))
    assert server.handler.closed[0][2] == 1009


def test_headers_may_be_made_anew_for_each_attempt(client, serve):
    class Door(Recorder):
        def ConnRequested(self, context, request):
            tokens.append(request.headers["Authorization"])
            return gowsev.Reject(503) if len(tokens) < 3 else None

    def headers():
        if not made:
            made.append(0)
            raise OSError("no token today")
        made.append(0)
        return {"Authorization": f"Bearer {len(made)}"}

    tokens, made = [], []
    link = redial(client, serve(Door()).url, headers=headers)
    wait_until(lambda: link.id)
    assert tokens == ["Bearer 2", "Bearer 3", "Bearer 4"]
    first, *others = client.of("failed")
    assert "its headers cannot be made: OSError('no token today')" in str(first[1])
    assert [event[1].status for event in others] == [503, 503]


def test_a_callback_that_raises_closes_the_connection(client, serve, caplog):
    def opened(context, id):
        if id == 1:
            raise ZeroDivisionError

    server = serve()
    link = gowsev.Redial(client.context, server.url, opened=opened, **SOON)
    wait_until(lambda: link.id == 2)
    assert client.closed[0][1] == 1
    assert server.handler.closed[0][2] == 1011
    assert "ZeroDivisionError" in caplog.text


# -- how long it waits -------------------------------------------------------------------------------------------


@pytest.fixture
def bounds(monkeypatch):
    """The bounds of the random pauses, each of which is drawn as half of its bound."""
    drawn = []

    def uniform(low, high):
        drawn.append((low, high))
        return high / 2

    monkeypatch.setattr(random, "uniform", uniform)
    return drawn


def test_the_bound_doubles_up_to_the_longest_and_a_short_connection_does_not_reset_it(client, scripted, bounds):
    def script(sock, head):
        sock.sendall(accepting(head) + close_frame(1001))
        until_the_end(sock)

    redial(client, scripted(script).url, first_pause=0.01, longest_pause=0.05)
    wait_until(lambda: len(bounds) >= 5)
    assert bounds[:5] == [(0, 0.01), (0, 0.02), (0, 0.04), (0, 0.05), (0, 0.05)]
    assert len(client.of("opened")) >= 5


def test_a_connection_that_lasted_resets_it(client, serve, bounds):
    url, sock = nobody()
    with sock:
        link = redial(client, url, lasting=0.05)
        wait_until(lambda: len(bounds) >= 3)
    server = serve(port=url.rpartition(":")[2].strip("/"))
    wait_until(lambda: link.id)
    before = len(bounds)
    gevent.sleep(0.06)
    server.context.Close(1)
    wait_until(lambda: len(bounds) > before)
    assert bounds[before] == (0, 0.01)
    assert bounds[2] == (0, 0.04)


REFUSING = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n%b\r\n"


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 407, 410, 426])
def test_what_only_a_change_can_mend_waits_for_long_and_is_a_warning(client, scripted, bounds, caplog, status):
    redial(client, scripted(REFUSING % (status, b"")).url, longest_pause=40)
    wait_until(lambda: client.of("failed"))
    (_, error, pause) = client.of("failed")[0]
    assert (error.status, pause, bounds[-1]) == (status, 20, (20, 40))
    assert [record.levelname for record in caplog.records if "dialled again" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_soon(client, scripted, status):
    listener = scripted(REFUSING % (status, b""))
    redial(client, listener.url)
    wait_until(lambda: len(listener.heads) >= 3)


@pytest.mark.parametrize(
    ("line", "pause"),
    [(b"Retry-After: 7\r\n", 7.5), (b"Retry-After: 100\r\n", 40.5), (b"Retry-After: Fri, 31 Dec 1999\r\n", 0.5)],
)
def test_a_server_may_say_when_to_come_back(client, scripted, bounds, line, pause):
    redial(client, scripted(REFUSING % (503, line)).url, first_pause=1, longest_pause=40)
    wait_until(lambda: client.of("failed"))
    assert client.of("failed")[0][2] == pause


def test_a_certificate_that_is_not_accepted_is_a_refusal(client, serve, certificate, bounds):
    redial(client, f"wss://localhost:{serve(certificate=certificate).port}/", longest_pause=40)
    wait_until(lambda: client.of("failed"))
    (_, error, pause) = client.of("failed")[0]
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert pause == 20


def test_a_program_may_give_up_when_it_is_refused(client, scripted):
    def failed(context, error, pause):
        client.failed(context, error, pause)
        link.Stop()

    listener = scripted(REFUSING % (401, b""))
    link = gowsev.Redial(client.context, listener.url, failed=failed, first_pause=0.001, longest_pause=0.002)
    wait_until(lambda: client.of("failed"))
    gevent.sleep(0.05)
    assert len(listener.heads) == 1


# -- many at once ------------------------------------------------------------------------------------------------


MANY, SPREAD = 200, 2.0


def test_many_that_lost_their_server_do_not_come_back_together(client):
    begun = []  # when each attempt began: how long it then takes is the machine's affair

    def headers():
        begun.append(time.monotonic())

    arguments = {"first_pause": SPREAD, "lasting": 0.001, "headers": headers}
    with testing.Server(Recorder()) as server:
        links = [gowsev.Redial(client.context, server.url, **arguments) for _ in range(MANY)]
        wait_until(lambda: all(link.id for link in links))
        gevent.sleep(0.01)
        begun.clear()
    with testing.Server(Recorder(), port=f"127.0.0.1:{server.port}"):
        wait_until(lambda: len(begun) >= MANY)
    windows = Counter(int((at - begun[0]) / (SPREAD / 4)) for at in begun[:MANY])
    # A quarter of the time holds a quarter of them, more or less; all at once, one would hold nearly all.
    assert max(windows.values()) < MANY / 2, windows


# -- how it ends -------------------------------------------------------------------------------------------------


def test_stop_closes_the_connection_and_dials_no_more(client, serve):
    server = serve()
    link = redial(client, server.url)
    wait_until(lambda: link.id)
    link.Stop(4000, "enough")
    wait_until(lambda: client.closed)
    link.Stop()
    gevent.sleep(0.1)
    assert server.handler.closed[0][2:] == (4000, "enough")
    assert len(server.handler.of("accepted")) == 1
    assert link.id == 0
    assert client.of("opened") == [("opened", 1)]


def test_stop_in_a_pause_and_before_it_has_begun(client):
    url, sock = nobody()
    with sock:
        link = redial(client, url, first_pause=PATIENCE, longest_pause=PATIENCE)
        wait_until(lambda: client.of("failed"))
        link.Stop()
        redial(client, url).Stop()
        sock.listen()
        gevent.sleep(0.1)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert len(client.of("failed")) == 1


def test_stop_while_it_dials_leaves_no_socket(client, scripted):
    ended = []
    listener = scripted(lambda sock, head: ended.append(until_the_end(sock)))
    link = redial(client, listener.url)
    wait_until(lambda: listener.heads)
    link.Stop()
    wait_until(lambda: ended == [b""])
    assert client.events == []


def test_a_stop_with_a_code_that_may_not_be_sent_stops_nothing(client, serve):
    link = redial(client, serve().url)
    with pytest.raises(ValueError, match="close code"):
        link.Stop(1005)
    wait_until(lambda: link.id)


def test_a_shutdown_ends_it_and_says_goodbye(serve):
    server = serve()
    handler = Client()
    handler.context = context = gowsev.MakeContext(handler)
    with testing.drive(context):
        link = redial(handler, server.url)
        wait_until(lambda: link.id)
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed[0][2] == 1001
    gevent.sleep(0.1)
    assert len(server.handler.of("accepted")) == 1
    with pytest.raises(RuntimeError, match="shut down"):
        redial(handler, server.url)


def arrived_and_not_added(serve, idle):
    """A connection that has been dialled, and that its loop, which nobody drives, has not taken yet."""
    server, waiting = serve(), idle(Client(), listen=False)
    waiting.handler.context = waiting.context
    link = redial(waiting.handler, server.url)
    waiting.context.SetTimeout(PATIENCE)
    waiting.context.EventLoopIteration()  # in which it begins
    wait_until(lambda: server.handler.of("accepted"))
    wait_until(lambda: waiting.context.Stats().queued_events)
    return server, waiting, link


def test_a_stop_before_the_loop_has_taken_a_connection_closes_it(serve, idle):
    server, waiting, link = arrived_and_not_added(serve, idle)
    link.Stop()
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed[0][2] == 1001
    waiting.context.EventLoopIteration()
    assert waiting.handler.events == []


def test_a_shutdown_before_the_loop_has_taken_a_connection_waits_for_its_goodbye(serve, idle):
    server, waiting, _ = arrived_and_not_added(serve, idle)
    waiting.context.Shutdown()
    while waiting.context.EventLoopIteration():
        pass
    assert waiting.handler.events == []
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed[0][2] == 1001


def test_one_that_is_made_while_the_context_is_being_shut_down_ends(serve, idle, scripted, caplog):
    caplog.set_level(logging.INFO, "gowsev")

    def never_says_goodbye(sock, head):
        sock.sendall(accepting(head))
        until_the_end(sock)

    waiting, server = idle(Client(), listen=False), serve()
    context = waiting.handler.context = waiting.context
    context.AddConn(gowsev.Dial(scripted(never_says_goodbye).url))
    context.Shutdown(PATIENCE)
    link = redial(waiting.handler, server.url)
    context.SetTimeout(0.01)
    wait_until(lambda: context.EventLoopIteration() and server.handler.closed)
    assert server.handler.closed[0][2] == 1001
    assert waiting.handler.of("opened") == []
    assert f"{link!r} ends: its context is being shut down" in caplog.text
    context.Shutdown(0)


@pytest.fixture
def driven():
    """A client whose loop runs in a greenlet that is killed at the end, as a forked child's copy of it may be."""
    handler = Client()
    handler.context = gowsev.MakeContext(handler)
    loop = gevent.spawn(handler.context.EventLoop)
    yield handler
    loop.kill()


def stays(sock, head):
    sock.sendall(accepting(head))
    until_the_end(sock)


def test_in_a_forked_child_it_has_ended_whatever_it_was_doing(driven, scripted):
    staying, silent = scripted(stays), scripted(lambda sock, head: until_the_end(sock))
    url, sock = nobody()
    pauses = {"first_pause": 0.3, "longest_pause": 0.3}
    with sock, held_sockets():  # which the parent has
        links = [redial(driven, where, **pauses) for where in (staying.url, silent.url, url)]
        wait_until(lambda: links[0].id and silent.heads and driven.of("failed"))
        failed = len(driven.of("failed"))
        disown_all()
        assert [link.id for link in links] == [0, 0, 0]
        sock.listen()
        gevent.sleep(0.5)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert (len(staying.heads), len(silent.heads)) == (1, 1)
    assert len(driven.of("failed")) == failed
    assert driven.closed == []


def test_one_that_has_not_begun_begins_in_the_child_that_drives_the_loop(scripted, idle):
    waiting = idle(Client(), listen=False)
    waiting.handler.context = waiting.context
    listener = scripted(stays)
    redial(waiting.handler, listener.url)
    disown_all()
    waiting.context.SetTimeout(0.01)

    def besides_timeouts():
        return [event for event in waiting.handler.events if event != ("timeout",)]

    wait_until(lambda: waiting.context.EventLoopIteration() and besides_timeouts())
    assert besides_timeouts() == [("opened", 1)]


FORKING = """
import os, sys
if sys.argv[2] == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent, gowsev


def opened(context, id):
    child = 0 if os.environ.get("CHILD") else os.fork()
    if child:
        print(f"forked {child}", flush=True)
    else:
        gevent.sleep(0.5)  # the child's copy of the hub runs
        os._exit(0)


context = gowsev.MakeContext(gowsev.Handler())
context.ShutdownOnSignal()
link = gowsev.Redial(context, sys.argv[1], opened=opened, first_pause=0.01)
context.EventLoop()
"""


@pytest.mark.parametrize("patched", ["plain", "patched"])
def test_a_real_fork(run, serve, tmp_path, patched):
    server = serve()
    script = tmp_path / "forks.py"
    script.write_text(FORKING)
    program = run(script, server.url, patched)
    program.wait_for("forked")
    gevent.sleep(0.7)  # the child has come to its end: it neither read, nor closed, nor dialled
    assert server.handler.of("accepted") == [("accepted", 1)]
    assert server.handler.closed == []
    assert program.end() == 0
    wait_until(lambda: server.handler.closed)
    assert server.handler.closed[0][2] == 1001


# -- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"url": "http://localhost/"}, ValueError, "^url must be"),
        ({"url": None}, TypeError, "^url must be"),
        ({"opened": 5}, TypeError, "^opened must be callable"),
        ({"failed": 5}, TypeError, "^failed must be callable"),
        ({"first_pause": 0}, ValueError, "^first_pause must be a number of seconds above 0"),
        ({"longest_pause": None}, TypeError, "^longest_pause must be"),
        ({"lasting": -1}, ValueError, "^lasting must be"),
        ({"headers": {"Upgrade": "x"}}, ValueError, "header Upgrade is made by the handshake"),
        ({"timeout": "x"}, TypeError, "^timeout must be"),
        ({"colour": "red"}, TypeError, r"^Redial\(\) got an unexpected keyword argument 'colour'$"),
        (
            {"max_message_bytes": 4},
            TypeError,
            r"^Redial\(\) got .* 'max_message_bytes'; options=gowsev\.Options\(max_message_bytes=\.\.\.\) takes it$",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_the_call(client, arguments, error, text):
    with pytest.raises(error, match=text):
        gowsev.Redial(client.context, **{"url": "ws://localhost/", **arguments})


def test_another_thread_is_refused(client):
    def make():
        with pytest.raises(RuntimeError, match="belongs to the thread"):
            gowsev.Redial(client.context, "ws://localhost/")
        return "refused"

    assert in_real_thread(make) == "refused"
