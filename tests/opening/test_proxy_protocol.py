"""The PROXY protocol: headers by the sections of its specification, byte by byte; and listeners that expect one."""

from __future__ import annotations

import socket
import struct

import gevent.socket
import pytest
from conftest import Conns, descriptors, echoes, wait_until
from haproxy_server import needs_haproxy, passing_on, running_haproxy
from raw import RawClient
from redis_server import free_port

from gowsev.opening.proxy_protocol import Malformed, ProxyHeader, Trusted

V2 = b"\r\n\r\n\0\r\nQUIT\n"
INET = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack("!HH", 56324, 443)
INET6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack("!HH", 56324, 443)
UNIX = b"/client".ljust(108, b"\0") + b"/server".ljust(108, b"\0")
WORST = "ffff:" * 7 + "ffff"


def v2(command, kind, body=b"", length=None):
    return V2 + bytes([command, kind]) + struct.pack("!H", len(body) if length is None else length) + body


#: By section of doc/proxy-protocol.txt: a header, and the client that it names (`None`: the connection's own peer).
VALID = [
    ("2.1, its example", b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", ("192.168.0.1", 56324)),
    ("2.1, the longest line of TCP4", b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
     ("255.255.255.255", 65535)),
    ("2.1, the longest line of TCP6", f"PROXY TCP6 {WORST} {WORST} 65535 65535\r\n".encode(), (WORST, 65535)),
    ("2.1, one double colon", b"PROXY TCP6 2001:DB8::1 ::1 0 1\r\n", ("2001:db8::1", 0)),
    ("2.1, IPv4 in IPv6", b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("192.0.2.1", 1)),
    ("2.1, no IPv4 though it begins so", b"PROXY TCP6 ::ffff:0:102:304 ::1 1 2\r\n", ("::ffff:0:102:304", 1)),
    ("2.1, the short form of an unknown connection", b"PROXY UNKNOWN\r\n", None),
    ("2.1, the worst case", f"PROXY UNKNOWN {WORST} {WORST} 65535 65535\r\n".encode(), None),
    ("2.1, the receiver must ignore anything before the CRLF", b"PROXY UNKNOWN \xff\n \r\n", None),
    ("2.2, TCP over IPv4", v2(0x21, 0x11, INET), ("192.0.2.1", 56324)),
    ("2.2, TCP over IPv6", v2(0x21, 0x21, INET6), ("2001:db8::1", 56324)),
    ("2.2, UNIX stream", v2(0x21, 0x31, UNIX), ""),
    ("2.2, datagrams fall back to UNSPEC", v2(0x21, 0x12, INET), None),
    ("2.2, UNIX datagrams too", v2(0x21, 0x32, UNIX), None),
    ("2.2, UNSPEC", v2(0x21, 0x00), None),
    ("2.2, an UNSPEC family with a transport", v2(0x21, 0x01, b"xyz"), None),
    ("2.2, an UNSPEC transport with a family", v2(0x21, 0x10, INET), None),
    ("2.2, LOCAL", v2(0x20, 0x00), None),
    ("2.2, LOCAL, whose family is ignored", v2(0x20, 0xFF, b"whatever"), None),
    ("2.2.1, TLVs are skipped", v2(0x21, 0x11, INET + b"\x04\0\x03abc\x20\0\0"), ("192.0.2.1", 56324)),
    ("2.2, the longest", v2(0x21, 0x11, INET.ljust(65535, b"\x04")), ("192.0.2.1", 56324)),
]  # fmt: skip

INVALID = [
    ("2.1, no CRLF in the first 107 characters", b"PROXY UNKNOWN ".ljust(108, b"x") + b"\r\n", "more than 107"),
    ("2.1, a CRLF that ends in the 108th", b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n", "more than 107"),
    ("2.1, a single LF", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\r\n", "its line"),
    ("2.1, exactly one space", b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "its line"),
    ("2.1, exactly one space at the end", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", "its line"),
    ("2.1, only TCP4 and TCP6", b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "its line"),
    ("2.1, in upper case", b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "begins with"),
    ("2.1, heading zeroes of an address", b"PROXY TCP4 192.0.02.1 192.0.2.2 1 2\r\n", "none of TCP4"),
    ("2.1, the family dictates the format", b"PROXY TCP4 ::1 ::1 1 2\r\n", "none of TCP4"),
    ("2.1, of the destination too", b"PROXY TCP6 ::1 192.0.2.2 1 2\r\n", "none of TCP6"),
    ("2.1, no scope", b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "its line"),
    ("2.1, a port's heading zeroes", b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "its line"),
    ("2.1, a port's range", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", "its line"),
    ("2.1, a port's sign", b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", "its line"),
    ("2.1, a port in ASCII", "PROXY TCP4 192.0.2.1 192.0.2.2 1 ²\r\n".encode("latin-1"), "its line"),
    ("2.2, another protocol", b"GET / HTTP/1.1\r\n\r\n", "begins with b'GET / HTTP/1.1"),
    ("2.2, TLS", b"\x16\x03\x01\x02\x00", "begins with"),
    ("2.2, nearly the signature", V2[:-1] + b"\r", "begins with"),
    ("2.2, another version", v2(0x11, 0x11, INET), "0x11"),
    ("2.2, unassigned commands", v2(0x22, 0x11, INET), "0x22"),
    ("2.2, unspecified families", v2(0x21, 0x41, INET), "0x41"),
    ("2.2, unspecified transports", v2(0x21, 0x13, INET), "0x13"),
    ("2.2, too short for its addresses", v2(0x21, 0x11, INET[:-1]), "too few"),
    ("2.2, too short for IPv6", v2(0x21, 0x21, INET), "too few"),
    ("2.2, too short for UNIX", v2(0x21, 0x31, UNIX[1:]), "too few"),
]


@pytest.mark.parametrize(("section", "data", "client"), VALID, ids=[row[0] for row in VALID])
def test_a_header_names_the_client_and_nothing_behind_it_is_taken(section, data, client):
    whole = ProxyHeader()
    assert whole.feed(data + b"GET /") == len(data)
    assert (whole.complete, whole.client) == (True, client)
    parts = ProxyHeader()
    for position in range(min(len(data), 300)):
        assert not parts.complete
        assert parts.begun == (position > 0)
        assert parts.feed(data[position : position + 1]) == 1
    if not parts.complete:
        assert parts.feed(data[300:] + b"GET /") == len(data) - 300
    assert (parts.complete, parts.client) == (True, client)


@pytest.mark.parametrize(("section", "data", "said"), INVALID, ids=[row[0] for row in INVALID])
def test_what_is_no_header_is_refused_as_soon_as_that_is_known(section, data, said):
    with pytest.raises(Malformed, match=said):
        ProxyHeader().feed(data)
    header = ProxyHeader()

    def byte_by_byte():
        for byte in data:
            header.feed(bytes([byte]))

    with pytest.raises(
        Malformed, match="begins with" if said.startswith("begins") else said
    ):  # which has less to quote
        byte_by_byte()


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        (("10.1.2.3", 5), True),
        (("11.1.2.3", 5), False),
        (("::ffff:10.1.2.3", 5, 0, 0), True),
        (("fe80::1%eth0", 5, 0, 3), True),
        (("2001:db8::1", 5, 0, 0), False),
        ("", False),
    ],
)
def test_who_is_trusted(address, trusted):
    assert (address in Trusted(["10.0.0.0/8", "fe80::/10"])) == trusted
    assert "" in Trusted(["unix"])
    assert ("10.1.2.3", 5) not in Trusted(["unix"])


# -- listeners -------------------------------------------------------------------------------------------------------

LOCAL = ("127.0.0.0/8",)
LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("data", [LINE, v2(0x21, 0x11, INET.ljust(20_000, b"\x04"))], ids=["1", "2"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_the_peer_is_the_client_whose_connection_it_is(serve, certificate, client_tls, data, tls):
    asked = []

    def app(environ, start_response):
        asked.append((environ["REMOTE_ADDR"], environ["REMOTE_PORT"]))
        start_response("200 OK", [("Content-Length", "0")])
        return []

    server = serve(Conns(), proxy_protocol=LOCAL, http_app=app, certificate=certificate if tls else None)
    client = server.client(handshake=False)
    for part in (data[:10], data[10:-1], data[-1:]):
        client.send(part)
        gevent.sleep(0.01)  # so that it comes in parts
    if tls:
        client.sock = client_tls.wrap_socket(client.sock, server_hostname="localhost")
    client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.read_head().startswith(b"HTTP/1.1 200 ")
    assert asked == [("192.0.2.1", "56324")]
    client.send(client.request())
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert echoes(client)
    assert server.handler.conns[0].peer == ("192.0.2.1", 56324)
    assert server.handler.conns[0].local == (server.host, server.port)


@pytest.mark.usefixtures("clean")
def test_a_header_and_a_request_and_a_frame_may_come_at_once(serve):
    server = serve(Conns(), proxy_protocol=LOCAL)
    for header, peer in (
        (LINE, ("192.0.2.1", 56324)),
        (v2(0x20, 0), None),
        (v2(0x21, 0x31, UNIX), ("", 0)),
        (v2(0x21, 0x21, INET6), ("2001:db8::1", 56324)),
    ):
        client = server.client(handshake=False)
        client.send(header + client.request())
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert echoes(client)
        assert server.handler.conns[-1].peer == (peer or client.sock.getsockname())


@pytest.mark.usefixtures("clean")
def test_a_unix_socket_may_carry_it(serve, tmp_path):
    server = serve(Conns(), proxy_protocol=["unix"], port=f"unix:{tmp_path}/socket")
    client = server.client(handshake=False)
    client.send(LINE + client.request())
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert server.handler.conns[0].peer == ("192.0.2.1", 56324)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_who_does_not_send_it_is_told_and_the_log_says_what_came(serve, informed, certificate, tls):
    server = serve(proxy_protocol=LOCAL, certificate=certificate if tls else None)
    client = server.client(handshake=False)
    client.send(client.request())
    answer = client.read_to_end()
    if tls:
        assert answer == b""
    else:
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"PROXY protocol" in answer
    wait_until(
        lambda: any("no header of the PROXY protocol: it begins with b'GET / HTTP" in line for line in informed())
    )
    assert server.context.Stats().refusals == {"proxy_protocol": 1}
    assert server.context.Stats().rejected == 0


@pytest.mark.usefixtures("clean")
def test_who_is_not_trusted_may_not_connect_whatever_it_sends(serve, informed):
    server = serve(proxy_protocol=("192.0.2.0/24", "unix"))
    for data in (LINE, b""):
        client = server.client(handshake=False)
        try:
            client.send(data + client.request())
        except OSError:  # refused already
            pass
        assert client.read_to_end() == b""
    wait_until(lambda: server.context.Stats().refusals == {"proxy_protocol": 2})
    said = [line for line in informed() if "it is none of the proxies that are named there" in line]
    assert len(said) == 2
    assert said[0].startswith("refused 127.0.0.1:")


@pytest.mark.usefixtures("clean")
def test_who_ends_in_the_middle_is_refused_and_who_only_looks_is_not(serve, informed):
    server = serve(proxy_protocol=LOCAL)
    for data in (b"", LINE[:-1]):
        client = server.client(handshake=False)
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        client.read_to_end()
    wait_until(lambda: server.context.Stats().refusals == {"proxy_protocol": 1})
    (said,) = [line for line in informed() if "PROXY" in line]
    assert said.endswith("it ended in the middle")


@pytest.mark.usefixtures("clean")
def test_who_resets_in_the_middle_is_refused(serve):
    server = serve(proxy_protocol=LOCAL)
    client = server.client(handshake=False)
    client.send(LINE[:-1])
    before = len(descriptors())
    gevent.sleep(0.02)
    client.reset()
    wait_until(lambda: server.context.Stats().refusals == {"proxy_protocol": 1})
    wait_until(lambda: len(descriptors()) < before)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("data", [b"", LINE[:-1], LINE], ids=["nothing", "a part", "the header alone"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_who_falls_silent_is_given_up(serve, informed, certificate, data, tls):
    server = serve(proxy_protocol=LOCAL, handshake_timeout=0.3, certificate=certificate if tls else None)
    client = server.client(handshake=False)
    client.send(data)
    assert client.read_to_end() == b""
    wait_until(lambda: any("no request from" in line for line in informed()))
    assert server.context.Stats().refusals == {"handshake_timeout": 1}


@pytest.mark.usefixtures("clean")
def test_a_port_that_does_not_expect_it_names_the_option(serve, informed):
    server = serve()
    client = server.client(handshake=False)
    client.send(LINE + client.request())
    assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
    assert any("see proxy_protocol of gowsev.Options" in line for line in informed())
    assert server.context.Stats().refusals == {"http": 1}


@needs_haproxy
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_haproxy_names_its_client(serve, tmp_path, send):
    server, port = serve(Conns(), proxy_protocol=LOCAL), free_port()
    with running_haproxy(tmp_path, port, passing_on(port, server.port, f"{send} check check-send-proxy inter 100")):
        client = RawClient("127.0.0.1", port)
        assert echoes(client)
        assert server.handler.conns[0].peer == client.sock.getsockname()
        client.close()
