"""Which proxy is chosen, and what its URL says."""

import pytest

from gowsev.opening.proxy import choose_proxy
from gowsev.opening.url import parse_url

WS = parse_url("ws://server.example/chat").uri
WSS = parse_url("wss://server.example/chat").uri


@pytest.fixture
def environment(monkeypatch):
    """A function that sets the variables about proxies, and no others of them."""
    for name in ("ws", "wss", "http", "https", "socks", "all", "no"):
        for variable in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.delenv(variable, raising=False)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy:3128", ("http", "proxy", 3128, None, "")),
        ("http://proxy", ("http", "proxy", 80, None, "")),
        ("HTTP://Proxy/", ("http", "proxy", 80, None, "")),
        ("http://[::1]:3128", ("http", "::1", 3128, None, "")),
        ("http://alice:p%40ss%2F@proxy", ("http", "proxy", 80, "alice", "p@ss/")),
        ("http://alice@proxy", ("http", "proxy", 80, "alice", "")),
        ("socks5://proxy", ("socks5", "proxy", 1080, None, "")),
        ("socks5h://alice:secret@proxy:1081", ("socks5h", "proxy", 1081, "alice", "secret")),
    ],
)
def test_the_url_of_a_proxy(url, expected):
    assert tuple(choose_proxy(url, WS)) == expected


def test_a_proxy_is_shown_without_its_credentials():
    assert str(choose_proxy("http://alice:secret@proxy:3128", WS)) == "http://proxy:3128"
    assert str(choose_proxy("socks5h://[::1]", WS)) == "socks5h://[::1]:1080"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "its scheme is none of these"),
        ("proxy:3128", "its scheme"),
        ("https://proxy", "its scheme"),
        ("socks4://proxy", "its scheme"),
        ("http://", "it has no host"),
        ("http://:3128", "it has no host"),
        ("http://proxy:port", "wrong host or port"),
        ("http://proxy:65536", "wrong host or port"),
        ("http://" + "a" * 64, "wrong host or port"),
        ("http://proxy/path", "nothing may stand behind"),
        ("http://proxy?query", "nothing may stand behind"),
        ("http://proxy#fragment", "nothing may stand behind"),
        ("http://alice:se/secret@proxy", "wrong host or port, or a user or password"),
        ("http://alice:%ff@proxy", "not percent-encoded"),
        ("http://al%3Aice:secret@proxy", "cannot hold a colon"),
        ("http://pro xy", "blank or control character"),
        ("http://proxy\r\nX: y", "blank or control character"),
        ("socks5://alice@proxy", "both user and password are of 1 to 255 bytes"),
        ("socks5://:secret@proxy", "both user and password"),
        ("socks5://alice:" + "secret" * 50 + "@proxy", "both user and password"),
    ],
)
def test_a_url_of_no_proxy_is_a_value_error_without_the_password(url, why):
    with pytest.raises(ValueError, match=r"^proxy must be like http://host:port, socks5:") as caught:
        choose_proxy(url, WS)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "alice" not in str(caught.value)


@pytest.mark.parametrize("proxy", [False, 1, b"http://proxy", ("http", "proxy")])
def test_a_proxy_of_another_type_is_a_type_error(proxy):
    with pytest.raises(TypeError, match=r"^proxy must be a URL, None for none, or True"):
        choose_proxy(proxy, WS)


@pytest.mark.parametrize(
    ("variables", "uri", "expected"),
    [
        ({}, WS, None),
        ({"http_proxy": "http://one"}, WS, "http://one:80"),
        ({"HTTP_PROXY": "http://one"}, WS, "http://one:80"),
        ({"HTTP_PROXY": "http://one", "REQUEST_METHOD": "GET"}, WS, None),  # a CGI's header Proxy
        ({"http_proxy": "http://one"}, WSS, None),
        ({"https_proxy": "http://one"}, WSS, "http://one:80"),
        ({"https_proxy": "http://one", "http_proxy": "http://two"}, WS, "http://one:80"),
        ({"wss_proxy": "http://one", "https_proxy": "http://two"}, WSS, "http://one:80"),
        ({"ws_proxy": "http://one", "https_proxy": "http://two"}, WS, "http://one:80"),
        ({"all_proxy": "socks5h://one", "https_proxy": "http://two"}, WSS, "http://two:80"),
        ({"all_proxy": "socks5h://one"}, WS, "socks5h://one:1080"),
        ({"ALL_PROXY": "socks5h://one"}, WSS, "socks5h://one:1080"),
        ({"http_proxy": "one:3128"}, WS, "http://one:3128"),
        ({"all_proxy": "http://one", "no_proxy": "server.example"}, WS, None),
        ({"all_proxy": "http://one", "no_proxy": "other.example, .example"}, WS, None),
        ({"http_proxy": "http://one", "no_proxy": "*"}, WS, None),
        ({"http_proxy": "http://one", "NO_PROXY": "other.example"}, WS, "http://one:80"),
    ],
)
def test_the_proxy_of_the_environment(environment, variables, uri, expected):
    environment(**variables)
    proxy = choose_proxy(True, uri)
    assert (proxy and str(proxy)) == expected


def test_none_looks_at_no_environment(environment):
    environment(all_proxy="http://one")
    assert choose_proxy(None, WS) is None


def test_a_wrong_url_in_the_environment_is_named_as_that(environment):
    environment(all_proxy="ftp://alice:secret@proxy")
    with pytest.raises(ValueError, match=r"^the proxy of the environment must be .*, not 'ftp://proxy'"):
        choose_proxy(True, WS)
