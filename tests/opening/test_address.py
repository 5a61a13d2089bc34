"""`address`: what `ListenAndServe` understands, and the sockets that come of it, on live servers."""

import contextlib
import errno
import os
import socket
import stat

import gevent
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, Conns, Recorder, echoes
from raw import RawClient

import gowsev
from gowsev.opening.address import Address, listen, parse_port

pytestmark = pytest.mark.usefixtures("clean")


# -- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "address", "text"),
    [
        ("9000", ("", 9000, socket.AF_INET6), ":9000"),
        (":9000", ("", 9000, socket.AF_INET6), ":9000"),
        (9000, ("", 9000, socket.AF_INET6), ":9000"),
        (0, ("", 0, socket.AF_INET6), ":0"),
        ("65535", ("", 65535, socket.AF_INET6), ":65535"),
        ("127.0.0.1:9000", ("127.0.0.1", 9000, socket.AF_INET), "127.0.0.1:9000"),
        ("localhost:0", ("localhost", 0, socket.AF_INET), "localhost:0"),
        ("[::1]:9000", ("::1", 9000, socket.AF_INET6), "[::1]:9000"),
        ("[::]:9000", ("::", 9000, socket.AF_INET6), "[::]:9000"),
        ("unix:/run/chat.sock", ("/run/chat.sock", 0, socket.AF_UNIX), "unix:/run/chat.sock"),
        ("unix:chat.sock", ("chat.sock", 0, socket.AF_UNIX), "unix:chat.sock"),
    ],
)
def test_parse_port_understands_every_form_of_the_documentation(port, address, text):
    assert parse_port(port) == Address(*address)
    assert str(parse_port(port)) == text


@pytest.mark.parametrize(
    "port",
    [
        *("", ":", " 9000", "9000 ", "9000\n", "+9000", "-1", "9_000", "0x2328", "٩٠٠٠", "http", "65536", "100000"),
        *(-1, 65536, 10**9),
        *("127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:65536", "127.0.0.1:90:00"),
        *("::1:9000", "[::1]", "[::1:9000", "::1]:9000", "[[::1]]:9000", "[::1]9000"),
        *("unix:", "unix:/a\0b", "unix:\0abstract", "tcp://localhost:9000"),
        *("a..b:9000", "a" * 64 + ".example:9000", "\ud800:9000"),
    ],
)
def test_parse_port_refuses_what_is_no_address_and_names_it(port):
    with pytest.raises(ValueError, match=r"^port must be a port like '9000'") as caught:
        parse_port(port)
    assert f", not {port!r}" in str(caught.value)


@pytest.mark.parametrize("port", [None, True, 9000.0, b"9000", ("127.0.0.1", 9000), ["9000"]])
def test_parse_port_refuses_other_types_and_names_the_value(port):
    with pytest.raises(TypeError, match=r"^port must be") as caught:
        parse_port(port)
    assert str(caught.value).endswith(f", not {port!r}")


def make_context(**options):
    """A context that listens nowhere, for errors in listening."""
    return gowsev.MakeContext(Recorder(), gowsev.Options(**options))


def test_a_port_in_use_is_an_error_that_names_the_address(serve):
    port = serve().port
    with pytest.raises(OSError, match=f"^.Errno {errno.EADDRINUSE}. cannot listen on 127.0.0.1:{port}: ") as caught:
        make_context().ListenAndServe(f"127.0.0.1:{port}")
    assert caught.value.errno == errno.EADDRINUSE


def test_a_port_taken_between_bind_and_listen_is_an_error_that_names_the_address(monkeypatch):
    # Linux lets two sockets with SO_REUSEADDR bind one address, and only one of them listen.
    with gevent.socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", 0))
        port = rival.getsockname()[1]
        really_listen = gevent.socket.socket.listen

        def too_late(sock, *backlog):
            really_listen(rival)
            really_listen(sock, *backlog)

        monkeypatch.setattr(gevent.socket.socket, "listen", too_late)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: ") as caught:
            make_context().ListenAndServe(f"127.0.0.1:{port}")
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("port", "number"),
    [
        ("192.0.2.1:0", errno.EADDRNOTAVAIL),  # RFC 5737: nobody's address
        ("[2001:db8::1]:0", errno.EADDRNOTAVAIL),  # RFC 3849
        ("no-such-host.invalid:0", None),  # RFC 6761; the resolver's errors have numbers of their own
        ("unix:/nonexistent/chat.sock", errno.ENOENT),
        ("unix:/dev/null/chat.sock", errno.ENOTDIR),
        ("unix:/" + "long/" * 60 + "chat.sock", None),  # Python refuses it before the system could
    ],
)
def test_an_address_that_is_not_ours_is_an_error_that_names_it(port, number):
    with pytest.raises(OSError, match="cannot listen on ") as caught:
        make_context().ListenAndServe(port)
    assert f"cannot listen on {port}: " in str(caught.value)
    assert number is None or caught.value.errno == number


@contextlib.contextmanager
def without_privileges():
    """As an ordinary user, for as long as it lasts."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_privileged_port_is_an_error_that_names_it(serve):
    serve()  # so that Python has imported all it needs: another user may not be able to read its library
    with without_privileges():
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", 1))
            except PermissionError:
                pass
            else:
                pytest.skip("this system lets every user listen on every port")
        with pytest.raises(PermissionError, match=r"cannot listen on 127\.0\.0\.1:1: "):
            make_context().ListenAndServe("127.0.0.1:1")


def has_ipv6():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no address ::1")


@needs_ipv6
def test_a_bare_port_is_reachable_by_ipv4_and_ipv6_and_shows_ipv4_peers_as_such(serve):
    server = serve(Conns(), port=0)
    for host in ("127.0.0.1", "::1"):
        client = RawClient(host, server.port)
        server.clients.append(client)
        assert echoes(client)
        conn = server.handler.conns.pop()
        assert conn.peer == client.sock.getsockname()[:2]
        assert conn.local == (host, server.port)


@needs_ipv6
@pytest.mark.parametrize(
    ("port", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("localhost:0", None, None),
        ("[::1]:0", socket.AF_INET6, "::1"),
        ("[::]:0", socket.AF_INET6, "::"),
    ],
)
def test_a_host_is_listened_on_alone(serve, port, family, host):
    server = serve(port=port)
    if host is not None:
        assert server.host == host
    assert echoes(server.client())
    other = {socket.AF_INET: "::1", socket.AF_INET6: "127.0.0.1"}.get(family)
    if other is not None:
        with pytest.raises(ConnectionRefusedError):
            RawClient(other, server.port)


def test_without_ipv6_a_bare_port_means_all_of_ipv4(serve, monkeypatch):
    really_socket = gevent.socket.socket

    def without_ipv6(family=socket.AF_INET, *args, **kwargs):
        # As a kernel without IPv6 answers.
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return really_socket(family, *args, **kwargs)

    monkeypatch.setattr(gevent.socket, "socket", without_ipv6)
    server = serve(Conns(), port="0")
    monkeypatch.undo()
    assert server.host == "0.0.0.0"
    client = server.client()
    assert echoes(client)
    assert server.handler.conns[0].peer == client.sock.getsockname()


def test_two_contexts_share_a_port_with_reuse_port(serve):
    first = serve(reuse_port=True)
    second = serve(port=f"127.0.0.1:{first.port}", reuse_port=True)
    # The kernel deals connections out by a hash: each goes to either.
    for _ in range(200):
        assert echoes(first.client())
        if first.handler.events and second.handler.events:
            break
    assert first.handler.messages
    assert second.handler.messages
    with pytest.raises(OSError, match="cannot listen on"):
        make_context().ListenAndServe(f"127.0.0.1:{first.port}")
    first.close_clients()  # some of which are the second's


def test_one_context_has_several_listeners(serve, tmp_path, certificate, client_tls):
    server = serve(Conns())
    context = server.context
    _, port = context.ListenAndServe("127.0.0.1:0")
    _, tls_port = context.ListenAndServeTLS("127.0.0.1:0", *certificate)
    path, none = context.ListenAndServe(f"unix:{tmp_path}/chat.sock")
    assert (path, none) == (f"{tmp_path}/chat.sock", 0)
    clients = [
        server.client(),
        RawClient("127.0.0.1", port),
        RawClient("127.0.0.1", tls_port, tls=client_tls),
        RawClient(path, 0),
    ]
    server.clients.extend(clients)
    assert all(echoes(client) for client in clients)
    assert [(conn.id, conn.tls) for conn in server.handler.conns] == [(1, False), (2, False), (3, True), (4, False)]


# -- unix sockets ------------------------------------------------------------------------------------------------


def test_a_unix_socket_serves_and_is_removed_at_shutdown(serve, tmp_path):
    path = tmp_path / "chat.sock"
    server = serve(Conns(), port=f"unix:{path}")
    assert (server.host, server.port) == (str(path), 0)
    assert stat.S_ISSOCK(path.stat().st_mode)
    client = server.client(path="/room?x=1")
    assert echoes(client)
    conn = server.handler.conns[0]
    assert (conn.peer, conn.local, conn.path, conn.query) == (("", 0), (str(path), 0), "/room", "x=1")
    server.context.Shutdown(5)
    assert client.read_close() == (1001, "shutting down")
    assert not path.exists()


def test_a_unix_socket_by_a_relative_path(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = serve(port="unix:chat.sock")
    assert (server.host, server.port) == ("chat.sock", 0)
    client = RawClient(str(tmp_path / "chat.sock"), 0)
    server.clients.append(client)
    assert echoes(client)


def test_the_unix_socket_of_a_dead_process_is_replaced(serve, tmp_path):
    path = tmp_path / "chat.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    assert echoes(serve(port=f"unix:{path}").client())


def test_a_live_unix_socket_is_left_to_its_owner(serve, tmp_path):
    server = serve(port=f"unix:{tmp_path}/chat.sock")
    with pytest.raises(OSError, match=f"cannot listen on unix:{tmp_path}/chat.sock: ") as caught:
        make_context().ListenAndServe(f"unix:{tmp_path}/chat.sock")
    assert caught.value.errno == errno.EADDRINUSE
    assert echoes(server.client())


def test_a_live_unix_socket_with_a_full_backlog_is_left_to_its_owner(tmp_path):
    path = str(tmp_path / "chat.sock")
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(path)
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        with gevent.Timeout(2), pytest.raises(OSError, match="cannot listen on unix:") as caught:
            make_context().ListenAndServe(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE


def test_reuse_port_does_not_hinder_a_unix_socket(serve, tmp_path):
    assert echoes(serve(port=f"unix:{tmp_path}/chat.sock", reuse_port=True).client())


def test_a_regular_file_in_the_way_of_a_unix_socket_is_not_removed(tmp_path):
    path = tmp_path / "diary"
    path.write_text("dear diary")
    with pytest.raises(OSError, match="cannot listen on unix:") as caught:
        make_context().ListenAndServe(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    assert path.read_text() == "dear diary"


def test_a_unix_socket_that_somebody_else_removed_is_no_error_at_shutdown(serve, tmp_path):
    path = tmp_path / "chat.sock"
    server = serve(port=f"unix:{path}")
    path.unlink()
    server.context.Shutdown(5)
    server.loop.join(PATIENCE)
    assert server.loop.successful()


def test_listen_returns_a_socket_that_does_not_block():
    with listen(parse_port("127.0.0.1:0"), gowsev.Options()) as sock, pytest.raises(BlockingIOError):
        sock.accept()


def test_the_name_that_a_client_gave_its_own_unix_socket_is_not_taken_over(serve, tmp_path):
    server = serve(Conns(), port=f"unix:{tmp_path}/chat.sock")
    with gevent.socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/\x1b[31m\nevil")
        sock.connect(f"{tmp_path}/chat.sock")
        sock.sendall(RawClient.request())
        assert sock.recv(100).startswith(b"HTTP/1.1 101 ")
        assert server.handler.conns[0].peer == ("", 0)
