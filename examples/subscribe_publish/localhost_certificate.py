"""A certificate for localhost, made on first use, so that TLS can be tried out.

It is self-signed: clients have to be told to trust it. For a service, get one from an authority, and name it with the
relay's `--cert` and `--key`.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

logger = logging.getLogger("relay")

#: Beside this file.
OWN_CERT = Path(__file__).resolve().with_name("localhost-cert.pem")
OWN_KEY = OWN_CERT.with_name("localhost-key.pem")
HOST, ADDRESSES = "localhost", ("127.0.0.1", "::1")
LIFETIME = timedelta(days=3650)


class NoCertificate(Exception):
    """No certificate could be made; the text says why."""


def ensure_certificate(cert: Path, key: Path) -> None:
    """Make a self-signed certificate for this machine's own names, unless there is one.

    Raises:
        NoCertificate: it cannot be made.
    """
    if cert.exists() and key.exists():
        return
    try:
        # Made in a directory that only we can enter, and moved into place when finished.
        with tempfile.TemporaryDirectory(dir=cert.parent) as folder:
            new_cert, new_key = Path(folder, "cert"), Path(folder, "key")
            try:
                make_certificate(new_cert, new_key)
            except ImportError:  # the package `cryptography` is optional
                make_certificate_by_command(new_cert, new_key)
            new_key.chmod(0o600)
            new_key.replace(key)
            new_cert.replace(cert)
    except OSError as error:
        raise NoCertificate(f"cannot make a certificate in {cert.parent}: {error.strerror or error}") from error
    logger.info("Made a self-signed certificate: %s", cert)


def make_certificate(cert: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    alternatives = [x509.DNSName(HOST), *(x509.IPAddress(ip_address(address)) for address in ADDRESSES)]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # for a client whose clock is late
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(private, hashes.SHA256())
    )
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(*form))


def make_certificate_by_command(cert: Path, key: Path) -> None:
    """Do the same with the command `openssl`, where the package `cryptography` is not installed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NoCertificate("to make a certificate takes the Python package cryptography or the command openssl")
    config = cert.with_name("config")
    config.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n"
        f"[name]\nCN = {HOST}\n"
        "[extensions]\n"
        f"subjectAltName = {','.join([f'DNS:{HOST}', *(f'IP:{address}' for address in ADDRESSES)])}\n"
        "basicConstraints = critical,CA:FALSE\n"
        "extendedKeyUsage = serverAuth\n"
        "subjectKeyIdentifier = hash\n"
    )
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(LIFETIME.days), "-config", str(config), "-keyout", str(key), "-out", str(cert)]
    # Nothing in the command comes from outside.
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise NoCertificate(f"openssl made no certificate: {lines[-1] if lines else f'exit {done.returncode}'}")
