"""The ways to a finished handshake: a unix socket, a client's certificate, redirects; and what a refusal tells."""

import inspect
import ssl

import gevent
import gevent.socket
import gevent.ssl
import pytest
from conftest import Recorder, echo, wait_until
from forward_proxies import free_port
from gevent import monkey
from nginx_server import needs_nginx, running_nginx
from scripted_server import accepting, answer_close, reset, until_the_end

import gowsev
from gowsev.opening.attempt import check_wanted

pytestmark = pytest.mark.usefixtures("quiet_hub")


def converse(url, **arguments):
    with gowsev.Dial(url, **arguments) as conn:
        conn.WriteMessage(gowsev.TextMessage, "hello")
        assert conn.ReadMessage() in ((gowsev.TextMessage, "hello"), (gowsev.BinaryMessage, b"hello"))
        return conn


def refused(url, **arguments):
    with pytest.raises(gowsev.DialError) as caught:
        gowsev.Dial(url, **arguments)
    return caught.value


def test_the_arguments_of_dial_and_their_defaults_are_those_that_are_checked():
    dial, checked = (inspect.signature(function).parameters for function in (gowsev.Dial, check_wanted))
    assert [(p.name, p.default) for p in dial.values()] == [(p.name, p.default) for p in checked.values()]


# -- a unix socket -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_unix_socket_in_place_of_host_and_port(serve, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")  # which has no part in it
    path = tmp_path / "socket"
    server = serve(port=f"unix:{path}")
    conn = converse("ws://chat.example/room?a=b", unix=kind(path))
    assert (conn.peer, conn.local, conn.path, conn.tls) == (("", 0), ("", 0), "/room", False)
    wait_until(lambda: server.handler.closed)


def test_tls_over_a_unix_socket(serve, tmp_path, certificate, client_tls):
    path = tmp_path / "socket"
    serve(port=f"unix:{path}", certificate=certificate)
    assert converse("wss://localhost/", unix=path, ssl_context=client_tls).tls


def test_a_unix_socket_where_nobody_listens(tmp_path):
    error = refused("ws://localhost/", unix=tmp_path / "socket")
    assert str(error).endswith("No such file or directory (connecting)")
    assert (error.status, error.headers, error.body, error.location, error.proxy) == (None, None, b"", None, None)


@pytest.mark.parametrize(("unix", "kind"), [(5, TypeError), (b"/tmp/socket", TypeError), ("", ValueError)])
def test_a_path_that_is_none(unix, kind):
    with pytest.raises(kind, match=r"^unix must be a path"):
        gowsev.Dial("ws://localhost/", unix=unix)


# -- a certificate of the client's -------------------------------------------------------------------------------

NGINX = """
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_client_certificate {authority};
    ssl_verify_client on;
    location / {{
        proxy_pass http://127.0.0.1:{upstream};
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
        proxy_set_header X-Client $ssl_client_s_dn;
    }}
}}
"""


@pytest.mark.parametrize("kind", [ssl.SSLContext, gevent.ssl.SSLContext, monkey.get_original("ssl", "SSLContext")])
def test_a_tls_context_of_each_kind_is_taken(serve, certificate, authority, kind):
    # The last is another than the first where gevent's has taken its name, as in a context that was made before.
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
    assert converse(f"wss://localhost:{serve(certificate=certificate).port}/", ssl_context=context).tls


@needs_nginx
def test_a_certificate_of_the_clients(serve, tmp_path, authority, certificate):
    class Door(Recorder):
        def ConnRequested(self, context, request):
            names.append(request.headers["X-Client"])

    names = []
    server, port = serve(Door(echo)), free_port()
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(trusted)
    configuration = NGINX.format(
        port=port, upstream=server.port, certificate=certificate[0], key=certificate[1], authority=trusted
    )
    ours = authority.issue_cert("client.example", common_name="client")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    ours.private_key_pem.write_to_path(tmp_path / "client.key")
    with running_nginx(tmp_path, configuration):
        context = ssl.create_default_context(cafile=trusted)
        error = refused(f"wss://localhost:{port}/", ssl_context=context)
        assert error.status == 400
        assert b"No required SSL certificate was sent" in error.body
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        assert converse(f"wss://localhost:{port}/", ssl_context=context).tls
    assert len(names) == 1
    assert "CN=client" in names[0]


# -- what a refusal tells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"Content-Length: 4\r\n\r\ngone", b"gone"),
        (b"Content-Length: 4\r\n\r\ngone, and more", b"gone"),
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"Content-Length: 100\r\n\r\ncut off", b"cut off"),
        (b"\r\nto the end", b"to the end"),
        (b"Content-Length: x\r\n\r\nto the end", b"to the end"),
        (b"Content-Length: 3000\r\n\r\n" + b"x" * 3000, b"x" * 1024),
        (b"\r\n" + b"x" * 3000, b"x" * 1024),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n6;a=b\r\n today\r\n0\r\n\r\n", b"busy today"),
        (b"Transfer-Encoding: Chunked\r\n\r\n4\r\nbu", b"bu"),
        (b"Transfer-Encoding: chunked\r\n\r\nbad\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n\r\nff0\r\n" + b"x" * 4080 + b"\r\n0\r\n\r\n", b"x" * 1024),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000, b"x" * 1024),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1;" + b"a" * 150 + b"\r\nx\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"a" * 40_000, b""),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_the_beginning_of_a_refusals_body(scripted, rest, body, apart):
    def script(sock, head):
        sock.sendall(b"HTTP/1.1 503 Busy\r\nX-One: 1\r\n")
        if apart:
            fields, end, begun = rest.partition(b"\r\n\r\n") if b":" in rest[:20] else (b"", b"\r\n", rest[2:])
            sock.sendall(fields + end + begun[:1])
            gevent.sleep(0.01)
            sock.sendall(begun[1:])
        else:
            sock.sendall(rest)

    error = refused(scripted(script).url)
    assert (error.status, error.body, error.location) == (503, body, None)
    assert error.headers["x-one"] == "1"


def test_a_body_that_does_not_come_is_not_waited_for(scripted):
    def script(sock, head):
        sock.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 8\r\n\r\nhalf")
        until_the_end(sock)

    for timeout in (None, 0.2):
        error = refused(scripted(script).url, timeout=timeout)
        assert (error.status, error.body) == (503, b"half")


def test_a_reset_in_the_body_is_no_other_error(scripted):
    def script(sock, head):
        sock.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 8\r\n\r\nhalf")
        gevent.sleep(0.01)
        reset(sock)

    assert refused(scripted(script).url).status == 503


def test_a_greenlet_that_is_killed_while_it_reads_a_body_leaves_no_socket(scripted):
    def script(sock, head):
        sock.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 8\r\n\r\nhalf")
        ended.append(until_the_end(sock))

    ended = []
    listener = scripted(script)
    dialling = gevent.spawn(gowsev.Dial, listener.url)
    wait_until(lambda: listener.heads)
    dialling.kill()
    wait_until(lambda: ended == [b""])


# -- redirects ---------------------------------------------------------------------------------------------------

REDIRECT = b"HTTP/1.1 %d Moved\r\nLocation: %b\r\nContent-Length: 5\r\n\r\nmoved"


def redirecting(scripted, place, status=302):
    return scripted(REDIRECT % (status, place.encode()))


def fields(head, *names):
    lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
    return {name: value for name, _, value in lines if name in names}


def takes_in(sock, head):
    sock.sendall(accepting(head))
    answer_close(sock)


def test_a_redirect_is_told_and_not_followed(scripted):
    there = scripted(takes_in)
    here = redirecting(scripted, there.url.replace("ws", "http"))
    error = refused(here.url)
    assert (error.status, error.location, error.body) == (302, there.url, b"moved")
    assert there.heads == []
    gowsev.Dial(error.location).Close()


def test_where_a_redirect_is_told_to_lead_shows_no_password(scripted):
    here = redirecting(scripted, "/there")
    error = refused(here.url.replace("//", "//alice:secret@"))
    assert error.location == here.url + "there"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_takes_no_credentials_along(scripted, status):
    there = scripted(takes_in)
    # Another port is another server, whoever it belongs to.
    here = redirecting(scripted, f"http://mallory:trap@127.0.0.1:{there.port}/live?a=b#part", status)
    headers = {"Cookie": "session=1", "authorization": "Bearer x", "X-Own": "1", "Host": "chat.example"}
    conn = gowsev.Dial(here.url, headers=headers, origin="https://chat.example", follow_redirects=1)
    conn.Close()
    (asked,) = here.heads
    assert fields(asked, "Cookie", "authorization", "Host") == {
        "Cookie": "session=1",
        "authorization": "Bearer x",
        "Host": "chat.example",
    }
    (asked,) = there.heads
    assert asked.startswith(b"GET /live?a=b HTTP/1.1\r\n")
    assert fields(asked, "Cookie", "authorization", "Authorization", "Host", "X-Own", "Origin") == {
        "Host": f"127.0.0.1:{there.port}",
        "X-Own": "1",
        "Origin": "https://chat.example",
    }
    assert conn.path == "/live"


def test_the_user_and_password_of_the_url_stay_behind_too(scripted):
    there = scripted(takes_in)
    here = redirecting(scripted, there.url)
    gowsev.Dial(here.url.replace("//", "//alice:secret@"), follow_redirects=1).Close()
    assert fields(here.heads[0], "Authorization") == {"Authorization": "Basic YWxpY2U6c2VjcmV0"}
    assert fields(there.heads[0], "Authorization") == {}


def test_a_redirect_on_the_same_host_takes_all_along(scripted):
    def script(sock, head):
        if head.startswith(b"GET /there "):
            takes_in(sock, head)
        else:
            sock.sendall(REDIRECT % (307, b"/there"))

    here = scripted(script)
    headers = {"Cookie": "session=1", "Host": "chat.example"}
    gowsev.Dial(here.url.replace("//", "//alice:secret@"), headers=headers, follow_redirects=1).Close()
    kept = {"Authorization": "Basic YWxpY2U6c2VjcmV0", **headers}
    assert [fields(head, "Authorization", "Cookie", "Host") for head in here.heads] == [kept, kept]


def test_redirects_are_counted(scripted):
    here = redirecting(scripted, "/again")
    error = refused(here.url, follow_redirects=3)
    assert (error.status, error.location, len(here.heads)) == (302, here.url + "again", 4)
    assert str(error).startswith(f"dial {here.url}, redirected to {here.url}again, redirected to ")


@pytest.mark.parametrize(("number", "kind"), [(-1, ValueError), (21, ValueError), (True, TypeError), ("1", TypeError)])
def test_a_number_of_redirects_that_cannot_be(number, kind):
    with pytest.raises(kind, match=r"^follow_redirects must be"):
        gowsev.Dial("ws://localhost/", follow_redirects=number)


@pytest.mark.parametrize("place", ["ftp://localhost/", "http://[::1/", "ws://:80/"])
def test_a_redirect_to_what_is_no_websocket_url(scripted, place):
    error = refused(redirecting(scripted, place).url, follow_redirects=1)
    assert error.status == 302
    assert "to what is no URL of a WebSocket" in str(error)


def test_a_redirect_from_ws_to_wss_is_followed_and_back_is_not(serve, scripted, certificate, client_tls):
    class Door(Recorder):
        def ConnRequested(self, context, request):
            if request.path == "/back":
                return gowsev.Reject(302, headers={"Location": insecure.url})
            return None

    insecure = scripted(takes_in)
    server = serve(Door(echo), certificate=certificate)
    here = redirecting(scripted, f"https://localhost:{server.port}/")
    assert converse(here.url, ssl_context=client_tls, follow_redirects=1).tls
    here = redirecting(scripted, f"https://localhost:{server.port}/back")
    error = refused(here.url, ssl_context=client_tls, follow_redirects=5)
    assert "which is not followed from wss:// to ws://" in str(error)
    assert (error.status, error.location, insecure.heads) == (302, insecure.url, [])


def test_redirects_over_a_unix_socket_stay_there(serve, scripted, tmp_path):
    class Door(Recorder):
        def ConnRequested(self, context, request):
            if request.path == "/here":
                return gowsev.Reject(302, headers={"Location": "/there"})
            if request.path == "/away":
                return gowsev.Reject(302, headers={"Location": outside.url})
            return None

    outside = scripted(takes_in)
    serve(Door(echo), port=f"unix:{tmp_path}/socket")
    arguments = {"unix": tmp_path / "socket", "follow_redirects": 3}
    assert converse("ws://chat.example/here", **arguments).path == "/there"
    error = refused("ws://chat.example/away", **arguments)
    assert "which is not followed from a unix socket" in str(error)
    assert outside.heads == []


def test_all_redirects_have_one_time(scripted):
    def script(sock, head):
        gevent.sleep(0.1)
        sock.sendall(REDIRECT % (302, b"/again"))

    error = refused(scripted(script).url, timeout=0.25, follow_redirects=20)
    assert "timed out after 0.25 s" in str(error)
