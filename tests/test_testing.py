"""`gowsev.testing` and its fixtures, as a test of somebody's program would use them; and `docs/testing.md`, run."""

import re
import subprocess
import sys
import time

import gevent
import pytest
from conftest import PATIENCE
from programs import read, snippets

import gowsev
from gowsev import pytest_plugin, testing
from gowsev.testing import Callback, Client, Recorder, Server, drive, in_thread, wait_until

PAGE = read("docs/testing.md")


class Echo(gowsev.Handler):
    def MessageReceived(self, context, id, message):
        context.Write(id, message)


class Talker(Echo):
    """Has the optional callbacks too."""

    def ConnRequested(self, context, request):
        return gowsev.Reject(404) if request.path == "/nowhere" else None

    def TextReceived(self, context, id, text):
        if text == "raise":
            raise LookupError(text)
        if text == "close":
            context.WriteText(id, "goodbye")
            context.Close(id, 4001, "enough")
            return
        context.WriteText(id, text)


# -- waiting -----------------------------------------------------------------------------------------------------


def test_wait_until_returns_what_the_condition_did():
    found = []
    gevent.spawn_later(0.01, found.append, 1)
    assert wait_until(lambda: found) == [1]


def test_wait_until_gives_up():
    def never():
        return []

    with pytest.raises(AssertionError, match=r"^still not true after 0.01 s: <function .*never"):
        wait_until(never, 0.01)


def test_in_thread_lets_greenlets_run_meanwhile():
    ran = []
    gevent.spawn(ran.append, 1)

    def blocking(deadline):
        while not ran and time.monotonic() < deadline:
            time.sleep(0.001)
        return list(ran)

    assert in_thread(blocking, time.monotonic() + PATIENCE) == [1]


def test_in_thread_raises_what_the_function_raised():
    with pytest.raises(ZeroDivisionError):
        in_thread(divmod, 1, 0)


def test_in_thread_gives_up():
    over = []
    with pytest.raises(AssertionError, match=r"has not returned within 0.01 s"):
        in_thread(lambda: [time.sleep(0.001) for _ in iter(lambda: bool(over), True)], timeout=0.01)
    over.append(True)


def test_a_timeout_of_somebody_else_is_left_to_them():
    with Server(Echo()) as server:
        client = server.dial()
        with gevent.Timeout(0.01) as limit, pytest.raises(gevent.Timeout) as raised:
            client.receive()
    assert raised.value is limit


# -- a server and its clients ------------------------------------------------------------------------------------


def test_messages_come_back_as_they_were_sent():
    with Server(Talker()) as server:
        client = server.dial("/somewhere?a=b")
        client.send("text")
        client.send(b"binary")
        assert client.receive() == "text"
        assert client.receive() == b"binary"
        assert (client.conn.path, client.conn.query) == ("/somewhere", "a=b")


def test_options_are_those_of_the_context():
    with Server(Echo(), max_connections=1, subprotocols=("a", "b")) as server:
        assert server.dial(subprotocols=["b"]).conn.subprotocol == "b"
        with pytest.raises(gowsev.DialError) as refused:
            server.dial()
    assert refused.value.status == 503


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="max_conections"):
        Server(Echo(), max_conections=1)


def test_an_argument_that_dial_does_not_know_is_refused():
    with Server(Echo()) as server:
        with pytest.raises(TypeError, match=r"^Client\(\) got an unexpected keyword argument 'colour'$"):
            server.dial(colour="red")
        with pytest.raises(TypeError, match=r"'ping_interval'; options=gowsev\.Options\(ping_interval=.* takes it$"):
            Client(server.url, ping_interval=5)


def test_a_path_begins_with_a_slash():
    with Server(Echo()) as server, pytest.raises(ValueError, match="path must begin with '/', not 'live'"):
        server.dial("live")


def test_a_client_uses_no_proxy_of_the_environment_unless_it_is_told_to(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    with Server(Echo()) as server:
        server.dial().close()
        with pytest.raises(gowsev.DialError, match=r"the proxy http://127\.0\.0\.1:1"):
            server.dial(proxy=True)


def test_a_client_answers_pings_unless_it_is_told_not_to():
    handler = Recorder(Echo())
    with Server(handler) as server:
        for client in (server.dial(), server.dial(answer_pings=False)):
            (id,) = handler.wait_for("ConnAccepted")
            assert server.context.Ping(id) is None
            client.send(b"behind it")
            assert client.receive() == b"behind it"
            client.send(b"and again")  # after what the ping was answered with
            handler.wait_for("MessageReceived", id, b"and again")
        assert server.context.MustConn(1).round_trip > 0
        assert server.context.MustConn(2).round_trip is None
        assert server.context.Stats().round_trips == 1


def test_who_answers_no_pings_is_given_up():
    with Server(Echo(), ping_interval=0.05, ping_timeout=0.05) as server:
        assert server.dial(answer_pings=False).wait_closed().code == 1006


def test_a_server_with_tls(certificate, client_tls):
    with Server(Echo(), certificate=certificate) as server:
        client = server.dial(ssl_context=client_tls)
        client.send(b"secret")
        assert client.receive() == b"secret"
        assert server.url.startswith("wss://127.0.0.1:")


def test_a_server_on_ipv6():
    with Server(Echo(), port="[::1]:0") as server:
        server.dial().send(b"far")
        assert server.url == f"ws://[::1]:{server.port}/"


def test_receive_gives_up():
    with Server(Echo()) as server:
        client = server.dial(timeout=0.05)
        with pytest.raises(AssertionError, match=r"^no message has come within 0.05 s$"):
            client.receive()
        with pytest.raises(AssertionError, match=r"^the connection has not ended within 0.05 s$"):
            client.wait_closed()
        client.timeout = PATIENCE
        client.send(b"still there")
        assert client.receive() == b"still there"


def test_the_end_of_a_connection():
    with Server(Talker()) as server:
        client = server.dial()
        client.send("close")
        closed = client.wait_closed()
        assert (closed.code, closed.reason) == (4001, "enough")
        with pytest.raises(gowsev.ConnectionClosed):
            client.receive()
        with pytest.raises(gowsev.ConnectionClosed):
            client.send("too late")


def test_nothing_is_left_when_a_server_ends():
    with Server(Echo()) as server, Client(server.url) as own:
        dialled = server.dial()
    for client in (own, dialled):
        assert client.wait_closed().code == 1000
    assert server.loop.successful()
    assert server.context.Stats().connections == 0


def test_what_leaves_the_loop_is_raised_where_the_server_ends(capfd):
    def crash():
        with Server(Talker(), raise_errors=True) as server:
            server.dial().send("raise")
            wait_until(server.loop.ready)

    with pytest.raises(LookupError, match="raise"):
        crash()
    assert "LookupError" in capfd.readouterr().err  # gevent tells of it as soon as it happens


def test_a_loop_that_does_not_end_is_told():
    class Stuck(gowsev.Handler):
        def ConnAccepted(self, context, id):
            gevent.sleep(PATIENCE)

    context = gowsev.MakeContext(Stuck())
    host, port = context.ListenAndServe("127.0.0.1:0")
    client = Client(f"ws://{host}:{port}/")
    complaint = r"^after its Shutdown the loop has not ended within 0.05 s$"
    with pytest.raises(AssertionError, match=complaint), drive(context, 0.05):
        gevent.sleep(0)  # the loop has begun, and is stuck
    client.wait_closed()
    while context.EventLoopIteration():  # the greenlet that drove it is dead
        pass


# -- a recorder --------------------------------------------------------------------------------------------------


def test_callbacks_are_noted_in_their_order():
    handler = Recorder(Talker())
    with Server(handler) as server:
        client = server.dial()
        client.send("text")
        client.send(b"binary")
        client.receive()
        client.receive()
        client.close()
        wait_until(lambda: len(handler.callbacks) == 5)
        assert handler.callbacks[0].name == "ConnRequested"
        assert handler.callbacks[1:] == [
            Callback("ConnAccepted", (1,)),
            Callback("TextReceived", (1, "text")),
            Callback("MessageReceived", (1, b"binary")),
            Callback("ConnClosed", (1,)),
        ]


def test_waiting_takes_callbacks_one_after_the_other():
    handler = Recorder(Echo())
    with Server(handler) as server:
        ann, bob = server.dial(), server.dial()
        for number in b"1", b"2", b"3":
            ann.send(number)
        bob.send(b"4")
        assert handler.wait_for("MessageReceived", 2) == (2, b"4")
        assert handler.wait_for("MessageReceived") == (1, b"1")
        assert handler.wait_for("MessageReceived", 1, b"3") == (1, b"3")
        assert [callback.args for callback in handler.callbacks if callback.name == "MessageReceived"] == [(1, b"2")]


def test_waiting_for_a_callback_gives_up_and_tells_what_there_was():
    handler = Recorder(Echo())
    with Server(handler) as server:
        server.dial()
        handler.wait_for("ConnAccepted", 1)
        with pytest.raises(AssertionError, match=r"^no MessageReceived\(1,\) within 0.01 s, but \[\]$"):
            handler.wait_for("MessageReceived", 1, timeout=0.01)
        with pytest.raises(AssertionError, match=r"^no ConnClosed within"):
            handler.wait_for("ConnClosed", timeout=0.01)


def test_a_callback_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of ConnAccepted, .*, not 'ConnOpened'"):
        Recorder(Echo()).wait_for("ConnOpened")


def test_what_a_callback_raised_is_raised_in_the_test():
    handler = Recorder(Talker())
    with Server(handler) as server:
        client = server.dial()
        client.send("raise")
        with pytest.raises(LookupError, match="raise"):
            handler.wait_for("TextReceived")
        assert client.wait_closed().code == 1011


def let_a_callback_raise(failure=None):
    with Server(Recorder(Talker())) as server:
        client = server.dial()
        client.send("raise")
        client.wait_closed()
        if failure is not None:
            raise failure


def test_what_a_callback_raised_fails_a_test_that_has_not_asked():
    with pytest.raises(LookupError, match="raise"):
        let_a_callback_raise()


def test_a_failure_of_the_test_itself_comes_first():
    with pytest.raises(AssertionError, match="mine"):
        let_a_callback_raise(AssertionError("mine"))


def test_a_recorder_has_the_optional_callbacks_of_its_handler():
    assert hasattr(Recorder(Talker()), "TextReceived")
    assert not hasattr(Recorder(Echo()), "TextReceived")
    with Server(Recorder(Talker())) as server, pytest.raises(gowsev.DialError) as refused:
        server.dial("/nowhere")
    assert refused.value.status == 404


def test_a_recorder_is_nothing_else():
    with pytest.raises(AttributeError, match=r"<Recorder of .*Echo.*> has no attribute 'room'"):
        _ = Recorder(Echo()).room
    with pytest.raises(TypeError, match="ConnAccepted"):
        gowsev.MakeContext(Recorder(object()))


# -- the fixtures ------------------------------------------------------------------------------------------------


def test_the_fixtures(gowsev_server, gowsev_client, gowsev_drive):
    server = gowsev_server(Recorder(Echo()), max_connections=2)
    gowsev_client(server.url).send(b"over")
    assert server.handler.wait_for("MessageReceived") == (1, b"over")
    context = gowsev.MakeContext(Echo())
    address = context.ListenAndServe("127.0.0.1:0")
    loop = gowsev_drive(context)
    client = gowsev_client("ws://{}:{}/".format(*address))
    client.send(b"there")
    assert client.receive() == b"there"
    assert not loop.ready()


def test_everything_is_documented():
    for module in (testing, pytest_plugin):
        assert [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()] == []


def test_only_the_fixtures_need_pytest():
    code = "import sys; sys.modules['pytest'] = None; import gowsev.testing"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the page ----------------------------------------------------------------------------------------------------


@snippets("docs/testing.md")
def test_the_tests_of_the_page_pass(page):
    for name in page.names:
        page.write(name)
    count = sum(path.read_text("utf-8").count("def test_") for path in page.folder.glob("test_*.py"))
    quiet = ["pytest", "-p", "no:cacheprovider"]
    for command in (["-m", *quiet], ["-m", "gevent.monkey", "--module", *quiet]):
        program = page.run(*command)
        assert program.process.wait(PATIENCE * 4) == 0, program.output
        assert f"{count} passed" in program.output
    program = page.run("test_with_unittest.py")
    assert program.wait() == 0, program.output
    assert "Ran 1 test" in program.output


def test_the_tables_of_the_page_are_complete():
    first = "\n".join(re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE))
    told = set(re.findall(r"`(?:\w+\.)?(\w+)", first))
    with Server(Echo()) as server:
        things = {name for thing in (server, server.dial()) for name in vars(thing)}
    methods = {name for kind in (Client, Recorder, Server) for name in vars(kind)}
    public = {name for name in things | methods if not name.startswith("_")}
    assert told >= (public | set(pytest_plugin.__all__) | {"Recorder", "wait_until", "in_thread"}) - {"check"}
    for name in testing.__all__:
        assert f"`{name}" in PAGE or name == "Callback"
