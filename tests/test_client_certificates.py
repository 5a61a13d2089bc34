"""Clients that show certificates, and those that do not: by listeners, by `ServeHTTP`, by `Dial` and by `AddConn`."""

import contextlib
import datetime
import logging
import shutil
import ssl
import subprocess

import gevent
import gevent.socket
import gevent.ssl
import pytest
import websocket
from conftest import PATIENCE, Conns, Judge, echo, echoes, in_thread, listeners_of, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.handler import WebSocketHandler as GeventWebSocketHandler
from geventwebsocket.logging import create_logger
from programs import websockets_client
from raw import RawClient

import gowsev
from gowsev.connection.tls import TLSSocket

pytestmark = pytest.mark.usefixtures("clean")

#: What TLS 1.2 and 1.3 tell a client without a certificate.
REQUIRED = r"(?i)alert certificate required|alert handshake failure"


def common_name(certificate):
    return dict(pair for names in certificate["subject"] for pair in names)["commonName"]


@pytest.fixture
def asking(authority, certificate):
    """A factory of a server's contexts that ask for certificates of the authority."""

    def make(mode=ssl.CERT_REQUIRED, kind=ssl.SSLContext):
        context = kind(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
        context.verify_mode = mode
        return context

    return make


@pytest.fixture
def showing(authority):
    """A factory of a client's contexts, with a certificate or without."""

    def make(name=None, by=authority, **issued):
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        if name is not None:
            by.issue_cert(f"{name}.example", common_name=name, **issued).configure_cert(context)
        return context

    return make


@pytest.fixture
def files(authority, tmp_path):
    """The files of a client's certificate, and of the authority."""
    issued = authority.issue_cert("meter-7.example", common_name="meter-7")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    issued.private_key_pem.write_to_path(tmp_path / "client.key")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return tmp_path / "client.pem", tmp_path / "client.key", tmp_path / "authority.pem"


# -- who it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ssl.SSLContext, gevent.ssl.SSLContext])
def test_who_the_client_is_decides_and_is_known_to_the_end(serve, asking, showing, kind):
    class Door(Judge):
        def ConnRequested(self, context, request):
            super().ConnRequested(context, request)
            name = common_name(request.peer_certificate)
            return gowsev.Accept(name) if name.startswith("meter") else gowsev.Reject(403)

        def ConnClosed(self, context, id):
            last.append(context.MustConn(id).peer_certificate)

    last = []
    server = serve(Door(), ssl_context=asking(kind=kind))
    client = server.client(tls=showing("meter-7"))
    assert echoes(client)
    (conn,) = server.handler.conns
    assert conn.data == common_name(conn.peer_certificate) == "meter-7"
    assert conn.peer_certificate["subjectAltName"] == (("DNS", "meter-7.example"),)
    assert server.handler.requests[0].peer_certificate == conn.peer_certificate
    with pytest.raises(gowsev.DialError) as caught:
        server.dial(ssl_context=showing("toaster"))
    assert caught.value.status == 403
    client.send_close()
    wait_until(lambda: last)
    assert last == [conn.peer_certificate]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_resumes_a_session_is_the_same(serve, asking, showing, version):
    server = serve(Conns(), ssl_context=asking())
    tls = showing("meter-7")
    tls.maximum_version = version
    first = server.client(tls=tls)
    assert echoes(first)  # with which the ticket has come
    sock = gevent.socket.create_connection((server.host, server.port))
    with tls.wrap_socket(sock, server_hostname="localhost", session=first.sock.session) as again:
        assert again.session_reused
        again.sendall(RawClient.request())
        assert again.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
    wait_until(lambda: len(server.handler.conns) == 2)
    assert [common_name(conn.peer_certificate) for conn in server.handler.conns] == ["meter-7", "meter-7"]


@pytest.mark.parametrize("tickets", [0, 2])
def test_without_tickets_each_connection_is_verified(serve, asking, showing, tickets):
    # As docs/tls.md has it. A revoked certificate is one of whose authority there is no list: none is good any more.
    own = asking()
    own.minimum_version = ssl.TLSVersion.TLSv1_3
    own.num_tickets = tickets
    server = serve(ssl_context=own)
    tls = showing("meter-7")
    first = server.client(tls=tls)
    assert echoes(first)
    own.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    sock = gevent.socket.create_connection((server.host, server.port))
    with tls.wrap_socket(sock, server_hostname="localhost", session=first.sock.session) as again:
        assert again.session_reused is (tickets > 0)
        if tickets:
            again.sendall(RawClient.request())
            assert again.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                again.recv(1 << 16)


@pytest.mark.parametrize("mode", [ssl.CERT_NONE, ssl.CERT_OPTIONAL])
def test_a_client_without_a_certificate_is_nobody_where_none_is_required(serve, asking, showing, mode):
    server = serve(Conns(), ssl_context=asking(mode))
    assert echoes(server.client(tls=showing()))
    assert echoes(server.client(tls=showing("meter-7")))
    known = [conn.peer_certificate for conn in server.handler.conns]
    assert known[0] is None
    assert (known[1] is None) == (mode == ssl.CERT_NONE)


def test_without_tls_there_is_no_certificate(serve):
    server = serve(Conns())
    server.client()
    wait_until(lambda: server.handler.conns)
    assert server.handler.conns[0].peer_certificate is None


def test_who_a_dialled_server_is(serve, certificate, client_tls):
    server = serve(certificate=certificate)
    conn = server.dial(ssl_context=client_tls).conn
    assert conn.peer_certificate["subjectAltName"] == (("DNS", "localhost"), ("IP Address", "127.0.0.1"))
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    assert server.dial(ssl_context=trusting).conn.peer_certificate is None, "it was not verified"


def test_who_the_server_of_another_library_is(serve, certificate, authority):
    server = serve(Conns(), certificate=certificate)
    tls = ssl.create_default_context()
    authority.configure_trust(tls)

    def connect():
        return websocket.create_connection(
            f"wss://localhost:{server.port}", timeout=PATIENCE, sslopt={"context": tls}, http_no_proxy=["*"]
        )

    id = server.context.AddConn(in_thread(connect))
    names = server.context.MustConn(id).peer_certificate["subjectAltName"]
    assert names == (("DNS", "localhost"), ("IP Address", "127.0.0.1"))


class Unreadable:
    """A certificate of an authority of its own, with a name that is no UTF-8."""

    def __init__(self):
        self._authority_key = ec.generate_private_key(ec.SECP256R1())
        self.authority = self._signed(self._authority_key, x509.BasicConstraints(True, None))
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.UnrecognizedExtension(x509.OID_SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\x82\x02\xff\xfe")
        self._certificate = self._signed(self._key, name)

    def _signed(self, key, extension):
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "strange authority")])
        subject = issuer if key is self._authority_key else x509.Name([])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        return builder.add_extension(extension, False).sign(self._authority_key, hashes.SHA256())

    def configure(self, context, folder):
        file = folder / "unreadable.pem"
        key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM) + key)
        context.load_cert_chain(file)


def test_a_certificate_that_python_cannot_read_is_none_and_its_client_nobody(
    serve, asking, showing, tmp_path, informed
):
    unreadable = Unreadable()
    own, tls = asking(), showing()
    own.load_verify_locations(cadata=unreadable.authority.public_bytes(serialization.Encoding.DER))
    unreadable.configure(tls, tmp_path)
    server = serve(Conns(), ssl_context=own)
    assert echoes(server.client(tls=tls))
    assert server.handler.conns[0].peer_certificate is None
    assert any(
        "cannot read the certificate of 127.0.0.1:" in line and "UnicodeDecodeError" in line for line in informed()
    )


# -- who is not let in -------------------------------------------------------------------------------------------------


def nothing(showing):
    return showing()


def of_another_authority(showing):
    import trustme

    return showing("meter-7", trustme.CA())


def expired(showing):
    return showing("meter-7", not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("shown", "told", "logged"),
    [
        (nothing, REQUIRED, "peer did not return a certificate"),
        (of_another_authority, "(?i)alert unknown ca", "certificate verify failed: unable to get local issuer"),
        (expired, "(?i)alert certificate expired", "certificate verify failed: certificate has expired"),
    ],
)
def test_a_client_without_a_good_certificate_is_told_and_logged_and_harms_nobody(
    serve, asking, showing, informed, caplog, shown, told, logged, version
):
    server = serve(Judge(), ssl_context=asking())
    other = server.client(tls=showing("meter-7"))
    tls = shown(showing)
    tls.maximum_version = version
    for _ in range(2):
        with pytest.raises(gowsev.DialError, match=told):
            server.dial(ssl_context=tls)
    wait_until(lambda: server.context.Stats().refusals == {"client_certificate": 2})
    lines = [record for record in caplog.records if "by its certificate" in record.getMessage()]
    assert [record.levelno for record in lines] == [logging.WARNING, logging.INFO]
    assert all(
        record.getMessage().startswith("refused 127.0.0.1:") and logged in record.getMessage() for record in lines
    )
    assert not any("lost" in line for line in informed())
    assert len(server.handler.requests) == 1
    wait_until(lambda: listeners_of(server)[0].pending == 0)
    assert echoes(other)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_stops_before_its_certificate_is_given_up(serve, asking, showing, informed, version):
    class Stopping(gevent.socket.socket):
        """Sends once."""

        sent = 0

        def send(self, data, *args):
            self.sent += 1
            return super().send(data, *args) if self.sent == 1 else len(data)

    server = serve(ssl_context=asking(), handshake_timeout=0.5)
    tls = showing("meter-7")
    tls.maximum_version = version
    sock = Stopping()
    sock.connect((server.host, server.port))
    client = TLSSocket(sock, tls, "localhost")
    with contextlib.suppress(OSError):  # in TLS 1.2 it waits for the server's last word
        client.do_handshake()
    wait_until(lambda: any("no request from 127.0.0.1:" in line for line in informed()))
    assert server.context.Stats().refusals == {"handshake_timeout": 1}
    assert listeners_of(server)[0].pending == 0
    client.close()


# -- pages, and other servers ------------------------------------------------------------------------------------------


def who(environ, start_response):
    certificate = environ["gowsev.peer_certificate"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"nobody" if certificate is None else common_name(certificate).encode()]


def page_of(client):
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return client.read_to_end().rpartition(b"\r\n\r\n")[2]


def test_a_page_beside_knows_who_asks(serve, asking, showing):
    server = serve(ssl_context=asking(ssl.CERT_OPTIONAL), http_app=who)
    assert b"meter-7" in page_of(server.client(tls=showing("meter-7"), handshake=False))
    assert b"nobody" in page_of(server.client(tls=showing(), handshake=False))


@pytest.fixture
def beside(idle):
    """A factory of gevent's `WSGIServer`s whose application has a context in it."""
    started = []

    def start(application, tls, handler=gowsev.WebSocketHandler):
        server = idle(Judge(), listen=False)
        server.handler.answer = echo
        server.http = WSGIServer(
            ("127.0.0.1", 0),
            application(server.context),
            log=None,
            error_log=None,
            handler_class=handler,
            ssl_context=tls,
        )
        server.http.logger = create_logger("geventwebsocket")
        server.http.start()
        server.host, server.port = "127.0.0.1", server.http.server_port
        server.loop = gevent.spawn(server.context.EventLoop)
        started.append(server)
        return server

    yield start
    for server in started:
        server.http.stop(timeout=0)
        server.close_clients()
        server.context.Shutdown(0)
        server.loop.join(PATIENCE)


@pytest.mark.parametrize("handler", [WSGIHandler, gowsev.WebSocketHandler, GeventWebSocketHandler])
def test_who_the_client_of_another_server_is(beside, asking, showing, handler):
    server = beside(lambda context: context.ServeHTTP, asking(ssl.CERT_OPTIONAL, gevent.ssl.SSLContext), handler)
    assert echoes(server.client(tls=showing("meter-7")))
    assert echoes(server.client(tls=showing()))
    requests, conns = server.handler.requests, server.handler.conns
    assert [conn.peer_certificate for conn in conns] == [request.peer_certificate for request in requests]
    assert common_name(conns[0].peer_certificate) == "meter-7"
    assert conns[1].peer_certificate is None


def test_a_view_of_another_server_knows_who_asks(beside, asking, showing):
    def application(context):
        def view(environ, start_response):
            if environ["PATH_INFO"] == "/":
                return who(environ, start_response)
            name = common_name(environ["gowsev.peer_certificate"])
            return context.Upgrade(gowsev.Accept(name))(environ, start_response)

        return view

    server = beside(application, asking(kind=gevent.ssl.SSLContext))
    assert echoes(server.client(tls=showing("meter-7"), path="/live"))
    assert server.handler.conns[0].data == "meter-7"
    assert b"meter-8" in page_of(server.client(tls=showing("meter-8"), handshake=False))


# -- clients of others -------------------------------------------------------------------------------------------------


def test_websockets_shows_a_certificate(serve, asking, files):
    server = serve(Conns(), ssl_context=asking())
    tls = ssl.create_default_context(cafile=files[2])

    def converse():
        with websockets_client(f"wss://localhost:{server.port}/", tls=tls) as client:
            client.send(b"hello")
            return client.recv(PATIENCE)

    tls.load_cert_chain(*files[:2])
    assert in_thread(converse) == b"hello"
    assert common_name(server.handler.conns[0].peer_certificate) == "meter-7"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_shows_a_certificate(serve, asking, files):
    server = serve(ssl_context=asking(), http_app=who)
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--cacert",
        files[2],
        f"https://localhost:{server.port}/",
    ]

    def curl(*more):
        done = in_thread(lambda: subprocess.run([*command, *more], capture_output=True, timeout=PATIENCE, check=False))
        return done.stdout, done.stderr

    assert curl("--cert", files[0], "--key", files[1]) == (b"meter-7", b"")
    assert b"alert" in curl()[1]
    wait_until(lambda: server.context.Stats().refusals == {"client_certificate": 1})
