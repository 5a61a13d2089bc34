"""`certificate`: TLS on live servers, with files that are wrong, renewed, half-written or gone, and with own contexts.

Clients that show certificates are in `test_client_certificates`.
"""

import logging
import shutil
import ssl
import subprocess
import warnings

import gevent
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, Conns, Recorder, echoes, in_thread, listeners_of, wait_until
from cryptography.hazmat.primitives import serialization
from gevent import monkey

import gowsev
from gowsev.opening.certificate import Certificate, check_server_context

pytestmark = pytest.mark.usefixtures("clean")


# -- TLS ---------------------------------------------------------------------------------------------------------


def test_tls_serves_and_says_so(serve, certificate, client_tls):
    server = serve(Conns(), certificate=certificate)
    client = server.client(tls=client_tls)
    assert client.sock.version() in ("TLSv1.2", "TLSv1.3")
    assert echoes(client, b"x" * 100_000)
    assert server.handler.conns[0].tls
    client.send_close(1000, "bye")
    assert client.read_close() == (1000, "")
    wait_until(lambda: server.handler.closed == [("closed", 1, 1000, "bye")])


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)],
)
def test_tls_is_1_2_or_newer(serve, informed, certificate, authority, version, accepted):
    tls = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(tls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as it should be; that is what is tested
        tls.minimum_version = tls.maximum_version = ssl.TLSVersion[version]
    tls.set_ciphers("DEFAULT:@SECLEVEL=0")  # else the client itself would not offer 1.1
    server = serve(certificate=certificate)
    if accepted:
        client = server.client(tls=tls)
        assert client.sock.version() == version.replace("_", ".")
        assert echoes(client)
    else:
        with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
            server.client(tls=tls)
        wait_until(lambda: any("before its request" in line for line in informed()))


@pytest.fixture
def files(tmp_path, authority):
    """A function that puts a new certificate and its key in place, as a renewal does; returns the serial number."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put():
        issued = authority.issue_cert("localhost", "127.0.0.1")
        new_cert, new_key = tmp_path / "new-cert.pem", tmp_path / "new-key.pem"
        new_cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        new_key.write_bytes(issued.private_key_pem.bytes())
        text = ssl._ssl._test_decode_cert(str(new_cert))["serialNumber"]
        new_cert.replace(cert)
        new_key.replace(key)
        return text

    put.cert, put.key = cert, key
    return put


def encrypted(key_pem):
    key = serialization.load_pem_private_key(key_pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def missing_certificate(files):
    files.cert.unlink()


def missing_key(files):
    files.key.unlink()


def certificate_that_is_no_pem(files):
    files.cert.write_text("not PEM")


def key_that_is_no_pem(files):
    files.key.write_text("not PEM")


def key_of_another_certificate(files):
    old = files.cert.read_bytes()
    files()
    files.cert.write_bytes(old)


def encrypted_key(files):
    files.key.write_bytes(encrypted(files.key.read_bytes()))


def folder_for_a_certificate(files):
    files.cert.unlink()
    files.cert.mkdir()


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (missing_certificate, FileNotFoundError, "cannot read the certificate in "),
        (missing_key, FileNotFoundError, "cannot read the certificate in "),
        (folder_for_a_certificate, OSError, "certificate"),
        (certificate_that_is_no_pem, ssl.SSLError, "no certificate with its key in "),
        (key_that_is_no_pem, ssl.SSLError, "no certificate with its key in "),
        (key_of_another_certificate, ssl.SSLError, "no certificate with its key in "),
        (encrypted_key, ssl.SSLError, "the key is encrypted"),
    ],
)
def test_wrong_certificate_files_are_an_error_that_names_them(files, spoil, error, text):
    files()
    spoil(files)
    with pytest.raises(error) as caught:
        gowsev.MakeContext(Recorder()).ListenAndServeTLS("127.0.0.1:0", str(files.cert), str(files.key))
    assert isinstance(caught.value, OSError)
    for part in (text, repr(str(files.cert)), repr(str(files.key))):
        assert part in str(caught.value)


@pytest.mark.parametrize("missing", ["cert", "key"])
def test_of_two_files_the_missing_one_is_named(files, missing):
    files()
    getattr(files, missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        gowsev.MakeContext(Recorder()).ListenAndServeTLS("127.0.0.1:0", str(files.cert), str(files.key))
    assert str(caught.value).endswith(f": No such file or directory: {str(getattr(files, missing))!r}")


@pytest.mark.parametrize("unreadable", ["cert", "key"])
def test_of_two_files_the_one_that_cannot_be_read_is_named(files, unreadable):
    files()
    file = getattr(files, unreadable)
    file.unlink()
    file.mkdir()  # which root may not read either
    with pytest.raises(IsADirectoryError) as caught:
        gowsev.MakeContext(Recorder()).ListenAndServeTLS("127.0.0.1:0", str(files.cert), str(files.key))
    assert str(caught.value).endswith(f": Is a directory: {str(file)!r}")


def exchanged(files):
    cert = files.cert.read_bytes()
    files.cert.write_bytes(files.key.read_bytes())
    files.key.write_bytes(cert)


@pytest.mark.parametrize(
    ("spoil", "no_certificate", "no_key"),
    [
        (certificate_that_is_no_pem, True, False),
        (key_that_is_no_pem, False, True),
        (exchanged, True, True),
        (key_of_another_certificate, False, False),
    ],
)
def test_of_two_files_the_one_that_holds_something_else_is_named(files, spoil, no_certificate, no_key):
    files()
    spoil(files)
    with pytest.raises(ssl.SSLError) as caught:
        gowsev.MakeContext(Recorder()).ListenAndServeTLS("127.0.0.1:0", str(files.cert), str(files.key))
    assert (f"{str(files.cert)!r} holds no certificate in PEM" in str(caught.value)) is no_certificate
    assert (f"{str(files.key)!r} holds no private key in PEM" in str(caught.value)) is no_key


def test_certificate_files_may_be_path_objects(files, serve, client_tls):
    files()
    assert echoes(serve(certificate=(files.cert, files.key)).client(tls=client_tls))


def serial(server, client_tls):
    """The serial number of the certificate that a new connection sees."""
    client = server.client(tls=client_tls)
    assert echoes(client)
    return client.sock.getpeercert()["serialNumber"]


def test_a_renewed_certificate_is_picked_up_without_a_restart(serve, files, client_tls, informed):
    old = files()
    server = serve(certificate=(str(files.cert), str(files.key)))
    before = server.client(tls=client_tls)
    assert before.sock.getpeercert()["serialNumber"] == old
    assert serial(server, client_tls) == old
    new = files()
    assert new != old
    assert serial(server, client_tls) == new
    assert serial(server, client_tls) == new
    assert sum("read the renewed certificate" in line for line in informed()) == 1
    assert echoes(before)  # a connection that is open goes on


def vanished(files):
    files.cert.unlink()


def half_written(files):
    files.cert.write_bytes(files.cert.read_bytes()[:100])


def renewed_without_its_key_yet(files):
    old = files.key.read_bytes()
    files()
    files.key.write_bytes(old)


@pytest.mark.parametrize(
    "spoil",
    [
        vanished,
        half_written,
        renewed_without_its_key_yet,
    ],
)
def test_unreadable_certificate_files_keep_the_last_good_one_until_they_recover(
    serve, files, client_tls, caplog, spoil
):
    old = files()
    server = serve(certificate=(str(files.cert), str(files.key)))
    spoil(files)
    for _ in range(3):
        assert serial(server, client_tls) == old
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    caplog.clear()
    assert len(errors) == 1, "logged once, not for every connection"
    assert "going on with the last one" in errors[0]
    assert repr(str(files.cert)) in errors[0]
    new = files()
    assert serial(server, client_tls) == new
    vanished(files)
    assert serial(server, client_tls) == new
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["ERROR"]
    caplog.clear()


def test_a_certificate_reads_its_files_only_when_they_change(files):
    files()
    certificate = Certificate(str(files.cert), str(files.key))
    context = certificate.context()
    assert certificate.context() is context
    files()
    assert certificate.context() is not context


# -- ALPN --------------------------------------------------------------------------------------------------------


def offering(client_tls, *protocols):
    """A context that trusts what `client_tls` does, and offers these protocols."""
    tls = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(cadata=b"".join(client_tls.get_ca_certs(True)))
    tls.set_alpn_protocols(protocols)
    return tls


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)],
)
def test_http_1_1_is_chosen_where_a_client_offers_it(serve, certificate, client_tls, offered, chosen):
    client = serve(certificate=certificate).client(tls=offering(client_tls, *offered))
    assert client.sock.selected_alpn_protocol() == chosen
    assert echoes(client)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_and_a_listener_agree_on_http_1_1(serve, certificate):
    server = serve(certificate=certificate)
    command = ["openssl", "s_client", "-alpn", "h2,http/1.1", "-connect", f"127.0.0.1:{server.port}"]
    run = {"input": b"", "capture_output": True, "timeout": PATIENCE}
    shown = in_thread(lambda: subprocess.run(command, check=True, **run).stdout)
    assert b"ALPN protocol: http/1.1\n" in shown


# -- a context of one's own --------------------------------------------------------------------------------------

#: The standard library's class, gevent's, and the first one in a process in which gevent's took its name.
KINDS = {"ssl": ssl.SSLContext, "gevent": gevent.ssl.SSLContext, "original": monkey.get_original("ssl", "SSLContext")}


def server_context(*files, kind=ssl.SSLContext):
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    if files:
        context.load_cert_chain(*files)
    return context


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_of_ones_own_is_used_as_it_is(serve, certificate, client_tls, kind):
    own = server_context(*certificate, kind=KINDS[kind])
    server = serve(Conns(), ssl_context=own)
    client = server.client(tls=offering(client_tls, "http/1.1"))
    assert echoes(client, b"x" * 100_000)
    assert server.handler.conns[0].tls
    assert client.sock.selected_alpn_protocol() is None
    own.set_alpn_protocols(["http/1.1"])
    client = server.client(tls=offering(client_tls, "http/1.1"))
    assert client.sock.selected_alpn_protocol() == "http/1.1"


def test_a_context_of_ones_own_is_renewed_by_loading_into_it(serve, files, client_tls):
    old = files()
    own = server_context(files.cert, files.key)
    server = serve(ssl_context=own)
    before = server.client(tls=client_tls)
    assert serial(server, client_tls) == old
    new = files()
    assert serial(server, client_tls) == old, "its files are the program's affair"
    own.load_cert_chain(files.cert, files.key)
    assert serial(server, client_tls) == new != old
    assert echoes(before)


def test_listeners_of_one_context_may_have_different_ones(serve, authority, certificate, client_tls):
    server = serve(Conns(), certificate=certificate)
    strict = server_context(*certificate)
    authority.configure_trust(strict)
    strict.verify_mode = ssl.CERT_REQUIRED
    port = server.context.ListenAndServeTLS("127.0.0.1:0", ssl_context=strict)[1]
    assert echoes(server.client(tls=client_tls))
    with pytest.raises(gowsev.DialError, match=r"certificate required|handshake failure"):
        gowsev.Dial(f"wss://localhost:{port}/", ssl_context=client_tls)
    assert len(server.handler.conns) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_may_choose_another_by_the_name_that_is_asked_for(serve, authority, certificate, client_tls, kind):
    other = server_context()
    authority.issue_cert("other.example").configure_cert(other)
    own = server_context(*certificate, kind=KINDS[kind])
    names = []

    def choose(tls, name, context):
        names.append(name)
        assert context is own
        if name == "other.example":
            tls.context = other

    own.sni_callback = choose
    server = serve(ssl_context=own)
    assert echoes(server.client(tls=client_tls))
    sock = gevent.socket.create_connection((server.host, server.port))
    with client_tls.wrap_socket(sock, server_hostname="other.example") as client:
        assert client.getpeercert()["subjectAltName"] == (("DNS", "other.example"),)
    assert names == ["localhost", "other.example"]


def of_a_client(files):
    return {"ssl_context": ssl.create_default_context()}


def without_a_certificate(files):
    return {"ssl_context": server_context()}


def without_a_certificate_for_1_3(files):
    context = server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return {"ssl_context": context}


def beside_the_files(files):
    return {"certFile": files[0], "keyFile": files[1], "ssl_context": server_context(*files)}


def beside_a_key(files):
    return {"keyFile": files[1], "ssl_context": server_context(*files)}


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (lambda files: {}, TypeError, "needs certFile and keyFile, not None and None, or ssl_context"),
        (lambda files: {"certFile": files[0]}, TypeError, "needs certFile and keyFile, not '.*cert.pem' and None, or"),
        (lambda files: {"keyFile": files[1]}, TypeError, "needs certFile and keyFile, not None and '.*key.pem', or"),
        (lambda files: {"ssl_context": True}, TypeError, "ssl_context must be an ssl.SSLContext, not True"),
        (of_a_client, ValueError, "must be a server's, .* not a client's: <.*SSLContext object"),
        (without_a_certificate, ValueError, "must have a certificate, by its load_cert_chain: <.*SSLContext object"),
        (without_a_certificate_for_1_3, ValueError, "must have a certificate"),
        (beside_the_files, ValueError, "ssl_context <.*> cannot be given beside certFile and keyFile, '.*' and '.*'"),
        (beside_a_key, ValueError, "cannot be given beside certFile and keyFile, None and '.*key.pem'"),
    ],
)
def test_what_no_client_could_use_is_refused_at_the_call(serve, certificate, arguments, error, text):
    server = serve()
    with pytest.raises(error, match=text):
        server.context.ListenAndServeTLS("127.0.0.1:0", **arguments(certificate))
    assert len(listeners_of(server)) == 1


def restricted(context, ciphers):
    context.set_ciphers(ciphers)


def versions(context, least, most):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = least, most


@pytest.mark.parametrize(
    "change",
    [
        lambda context: setattr(context, "verify_mode", ssl.CERT_REQUIRED),
        lambda context: restricted(context, "ECDHE-ECDSA-AES256-SHA:AES256-SHA:@SECLEVEL=0"),
        lambda context: versions(context, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        lambda context: versions(context, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        lambda context: versions(context, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1),
    ],
)
def test_an_unusual_context_with_a_certificate_is_taken(certificate, change):
    context = server_context(*certificate)
    change(context)
    assert check_server_context(context) is context


def test_a_context_that_chooses_by_name_needs_no_certificate_itself():
    context = server_context()
    context.sni_callback = lambda *_: None
    assert check_server_context(context) is context
