"""Run the Autobahn test suite against gowsev: as server over plain TCP and TLS, and as client.

usage: run.py [--quick] [server|tls|client|server-takeover|client-takeover|server-pieces ...]

All of it runs with compression on, and its sections on compression (12 and 13) once more, in the roles named
`-takeover`, with contexts that are kept from one message to the next. Sections 5, 6, 7 and 10, on fragmentation, UTF-8,
close frames and limits, run once more, in the role `server-pieces`, against a server that gets fragments as they come
and echoes in pieces.

The suite is installed from the package index into a virtual environment of its own on the first run (about 30 s).
`--quick` leaves out sections 9, 12 and 13 (performance and compression), which take most of the time. Exits with 1 if
a case failed or the connection was not closed cleanly, or with the wrong code.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import trustme

HERE = Path(__file__).parent
#: Verdicts that the suite itself calls a matter of timing are reported as NON-STRICT, and don't count here.
FAILING = "FAILED,UNCLEAN,UNIMPLEMENTED,WRONG CODE"

_COMPRESSION = "12.*,13.*"
#: Each role, and its cases.
ROLES = {
    "server": "*",
    "tls": "*",
    "client": "*",
    "server-takeover": _COMPRESSION,
    "client-takeover": _COMPRESSION,
    "server-pieces": "5.*,6.*,7.*,10.*",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out sections 9, 12 and 13")
    parser.add_argument("what", nargs="*", help=f"{', '.join(ROLES)}; all by default")
    arguments = parser.parse_args()
    what = arguments.what or list(ROLES)
    if unknown := set(what) - set(ROLES):
        parser.error(f"not one of {', '.join(ROLES)}: {', '.join(sorted(unknown))}")
    environ = {"AUTOBAHN_FAIL_ON": FAILING, **os.environ}
    if arguments.quick:
        what = [role for role in what if ROLES[role] != _COMPRESSION]
        environ["AUTOBAHN_EXCLUDE"] = f"9.*,{_COMPRESSION}"
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        server, urls = start_server(Path(folder))
        try:
            for role in what:
                if role.startswith("client"):
                    client = [sys.executable, HERE / "echo_client.py", "{URL}", *role.split("-")[1:]]
                    command = ["bash", HERE / "autobahn_client.sh", "-c", ROLES[role], "--", *client]
                else:
                    command = ["bash", HERE / "autobahn.sh", urls[role], ROLES[role]]
                print(f"== as {role}", flush=True)
                if subprocess.run(command, env=environ, check=False).returncode:
                    failed.append(role)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    print(f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(what)}")
    return bool(failed)


def start_server(folder):
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    server = subprocess.Popen([sys.executable, HERE / "echo_server.py", cert, key], stdout=subprocess.PIPE, text=True)
    roles = ("server", "tls", "server-takeover", "server-pieces")
    return server, dict(zip(roles, server.stdout.readline().split(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
