"""The address of a WebSocket server, from tables that cite the RFCs."""

from __future__ import annotations

import pytest

from gowsev.opening.url import parse_url

GOOD = [
    ("RFC 6455 3: a default port", "ws://host/chat?a=b", ("host", "host", 80)),
    ("RFC 6455 3: of TLS", "wss://HOST", ("host", "host", 443)),
    ("IPv6", "ws://[::1]:9000/", ("::1", "::1", 9000)),
    ("RFC 6874: a zone, which is nobody else's business", "ws://[fe80::1%25eth0]/", ("fe80::1", "fe80::1%eth0", 80)),
    ("a zone as people write it", "ws://[fe80::1%eth0]/", ("fe80::1", "fe80::1%eth0", 80)),
]

BAD = [
    ("a scheme", "http://host/", "scheme"),
    ("no host", "ws:///path", "hostname"),
    ("RFC 6455 3: a fragment", "ws://host/#f", "fragment"),
    ("a user without a password", "ws://tok@host/", "username provided without password"),
    ("RFC 7617 2: a colon in the user", "ws://us%3Aer:pw@host/", "colon"),
    ("a blank", "ws://host/a b", "percent-encoded"),
    ("a port", "ws://host:x/", "ort"),
    ("a port behind a user", "ws://user:pw@host:x/", "port"),
    ("a slash in a password", "ws://user:pw/pw@host/", "percent-encoded"),
    ("a question mark in one", "ws://user:pw?pw@host/", "percent-encoded"),
    ("a number sign in one", "ws://user:pw#pw@host/", "fragment"),
    ("a bracket in one", "ws://user:pw[@host/", "percent-encoded"),
    ("what NFKC changes in one", "ws://user:pw\u2100@host/", "percent-encoded"),
    ("a password without a scheme", "user:pw@host/", "scheme"),
]


@pytest.mark.parametrize(("url", "parts"), [pytest.param(*row, id=id) for id, *row in GOOD])
def test_good_urls(url, parts):
    target = parse_url(url)
    assert (target.uri.host, target.host, target.uri.port) == parts
    assert target.safe_url == url


@pytest.mark.parametrize(("url", "fault"), [pytest.param(*row, id=id) for id, *row in BAD])
def test_the_part_at_fault_is_named_and_no_password(url, fault):
    with pytest.raises(ValueError, match=fault) as raised:
        parse_url(url)
    assert "pw" not in str(raised.value)
