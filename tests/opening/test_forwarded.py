"""Who the client is, by headers that proxies set, and that clients make up."""

from __future__ import annotations

import pytest

import gowsev

PROXY = ("10.0.0.1", 7)


def client_of(proxies, peer, *headers):
    request = gowsev.Request("/", "", gowsev.Headers(headers), peer, ("127.0.0.1", 9000), False)
    return proxies.client(request)


@pytest.mark.parametrize(
    ("peer", "header", "values", "client"),
    [
        (("192.0.2.1", 7), "X-Forwarded-For", ["198.51.100.1"], ("192.0.2.1", 7)),  # nobody that is trusted
        (PROXY, "X-Forwarded-For", [], PROXY),
        (PROXY, "X-Forwarded-For", [""], PROXY),
        (PROXY, "X-Forwarded-For", ["198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "x-forwarded-for", ["198.51.100.1"], ("198.51.100.1", 0)),
        (("::ffff:10.0.0.1", 7), "X-Forwarded-For", ["198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "X-Forwarded-For", ["203.0.113.9, 198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "X-Forwarded-For", ["203.0.113.9", "198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "X-Forwarded-For", ["a lie", "203.0.113.9, 198.51.100.1:80, 10.9.9.9"], ("198.51.100.1", 0)),
        (PROXY, "X-Forwarded-For", ["10.0.0.2, 10.0.0.3"], ("10.0.0.2", 0)),
        (PROXY, "X-Forwarded-For", ["198.51.100.1, unknown"], PROXY),
        (PROXY, "X-Forwarded-For", ["198.51.100.1, "], PROXY),
        (PROXY, "X-Forwarded-For", ["2001:db8::1"], ("2001:db8::1", 0)),
        (PROXY, "X-Forwarded-For", ["203.0.113.9, ::ffff:10.0.0.3, 10.0.0.2"], ("203.0.113.9", 0)),
        (PROXY, "X-Forwarded-For", ["::ffff:198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "CF-Connecting-IP", ["198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "Forwarded", ['for="[2001:db8::1]:4711";proto=https'], ("2001:db8::1", 0)),
        (PROXY, "Forwarded", ["for=203.0.113.9, by=10.1.1.1;For=198.51.100.1"], ("198.51.100.1", 0)),
        (PROXY, "Forwarded", ["by=10.1.1.1"], PROXY),
        (PROXY, "Forwarded", ["for=_hidden"], PROXY),
        (PROXY, "Forwarded", ['for=""'], PROXY),
        (("", 0), "X-Forwarded-For", ["198.51.100.1"], ("198.51.100.1", 0)),
        (("", 0), "X-Forwarded-For", [], ("", 0)),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy_of_ours(peer, header, values, client):
    proxies = gowsev.TrustedProxies(["10.0.0.0/8", "unix"], header)
    other = "X-Forwarded-For" if header == "Forwarded" else "Forwarded"
    headers = [*((header, value) for value in values), (other, "for=203.0.113.1")]
    assert client_of(proxies, peer, *headers) == client


def test_a_unix_socket_is_trusted_only_if_it_is_named():
    proxies = gowsev.TrustedProxies({"10.0.0.0/8"})
    assert client_of(proxies, ("", 0), ("X-Forwarded-For", "198.51.100.1")) == ("", 0)


@pytest.mark.parametrize(
    ("trusted", "header", "error"),
    [
        ((), "Forwarded", ValueError),
        (("localhost",), "Forwarded", ValueError),
        (("10.0.0.1/8",), "Forwarded", ValueError),
        ("10.0.0.1", "Forwarded", TypeError),
        ((None,), "Forwarded", TypeError),
        (("10.0.0.1",), None, TypeError),
        (("10.0.0.1",), "", ValueError),
        (("10.0.0.1",), "two words", ValueError),
    ],
)
def test_what_is_no_proxy_or_header_is_an_error(trusted, header, error):
    with pytest.raises(error, match=r"^(trusted|header) must "):
        gowsev.TrustedProxies(trusted, header)
