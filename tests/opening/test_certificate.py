"""`certificate`: TLS on live servers, with files that are wrong, renewed, half-written or gone."""

import logging
import ssl
import warnings

import gevent
import gevent.socket
import gevent.ssl
import pytest
from conftest import Conns, Recorder, echoes, wait_until
from cryptography.hazmat.primitives import serialization

import gowsev
from gowsev.opening.certificate import Certificate

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
