"""The TLS of a listener: a certificate and its key, read again when their files change, or a context of one's own."""

from __future__ import annotations

import logging
import os
import ssl

from gevent import monkey

__all__ = ["Certificate", "check_server_context"]

logger = logging.getLogger("gowsev")

#: How the first line of PEM ends, for every kind of certificate and key.
_MARKS = (b"CERTIFICATE-----", b"PRIVATE KEY-----")


class Certificate:
    """A certificate and its key, read again whenever their files change.

    Raises:
        OSError: a file cannot be read, or is no certificate (`ssl.SSLError` is one); the text names both.
    """

    def __init__(self, cert_file: str, key_file: str) -> None:
        self._files = (os.fspath(cert_file), os.fspath(key_file))
        self._failing = False
        try:
            self._seen = self._modified()
            self._context = self._load()
        except ssl.SSLError as error:
            raise ssl.SSLError(
                error.errno, f"no certificate with its key in {self._named()}: {error.strerror}{self._lacking()}"
            ) from error
        except OSError as error:
            raise OSError(
                error.errno, f"cannot read the certificate in {self._named()}: {error.strerror}: {error.filename!r}"
            ) from error

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of the files as they are now; the last good one if they cannot be read."""
        try:
            seen = self._modified()
            if seen != self._seen:
                self._seen = seen
                self._context = self._load()
                self._failing = False
                logger.info("read the renewed certificate in %s", self._named())
        except OSError as error:
            # The files are half-written or missing: their renewal may not be done. Clients go on getting the last
            # certificate that could be read, and the files are read again when they change.
            self._seen = None if isinstance(error, FileNotFoundError) else self._seen
            if not self._failing:
                self._failing = True
                logger.error("cannot read the certificate in %s, going on with the last one: %s", self._named(), error)
        return self._context

    def _modified(self) -> tuple[tuple[int, int], ...] | None:
        return tuple((status.st_mtime_ns, status.st_ino) for status in map(os.stat, self._files))

    def _load(self) -> ssl.SSLContext:
        for file in self._files:
            open(file, "rb").close()  # OpenSSL's error would not name the file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # RFC 9325 section 3.5: its uses have other means by now, and each renegotiation costs us a handshake.
        context.options |= ssl.OP_NO_RENEGOTIATION
        # RFC 7301: else a client that could speak HTTP/2 too would have to guess.
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(*self._files, password=_no_password)
        return context

    def _lacking(self) -> str:
        """Name the file with the wrong content, where that is easily seen: OpenSSL says "PEM lib" of either."""
        said = ""
        for file, what, mark in zip(self._files, ("certificate", "private key"), _MARKS, strict=True):
            with open(file, "rb") as opened:
                if mark not in opened.read():
                    said += f"; {file!r} holds no {what} in PEM"
        return said

    def _named(self) -> str:
        return " and ".join(map(repr, self._files))


def _no_password() -> str:
    raise ssl.SSLError(0, "the key is encrypted; gowsev cannot ask for its password")


def check_server_context(context: object) -> ssl.SSLContext:
    """Check a TLS context that a program has made for a listener.

    Raises:
        TypeError: it is none, of the standard library or of gevent.
        ValueError: it is a client's, or has no certificate.
    """
    # gevent's class is derived from this one, and takes its name where the process is monkey-patched.
    kind: type[ssl.SSLContext] = monkey.get_original("ssl", "SSLContext")
    if not isinstance(context, kind):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {context!r}")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "ssl_context must be a server's, as ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) makes it, "
            f"not a client's: {context!r}"
        )
    if _lacks_certificate(context):
        raise ValueError(f"ssl_context must have a certificate, by its load_cert_chain: {context!r}")
    return context


def _lacks_certificate(context: ssl.SSLContext) -> bool:
    """Whether a context has no certificate to show, which only a handshake can tell: one with itself, in memory."""
    if context.sni_callback is not None:
        return False  # it is the program's, and may choose another context for each name
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")  # whatever its own are
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    for side in (client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass  # it has said the first that it has to say
        except ssl.SSLError as error:
            # Without a certificate OpenSSL has no TLS 1.3 to offer, and for TLS 1.2 no ciphers. What else may be wrong,
            # such as a version that only very old clients speak, is the program's affair.
            return error.reason == "NO_SHARED_CIPHER" or (
                error.reason == "UNSUPPORTED_PROTOCOL" and context.minimum_version == ssl.TLSVersion.TLSv1_3
            )
    return False
