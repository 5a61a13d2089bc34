"""Addresses of Redis: those that would be misread are refused, and nothing of them is repeated."""

from __future__ import annotations

import pytest

import gowsev
from gowsev.channels import Channels, Remote
from gowsev.channels.url import parse

SECRET = "sesame"


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "db"),
    [
        ("redis://", "localhost", 6379, "", 0),
        ("redis://localhost", "localhost", 6379, "", 0),
        ("redis://10.0.0.1:7000/3", "10.0.0.1", 7000, "", 3),
        ("redis://[::1]:7000/?db=4", "::1", 7000, "", 4),
        ("redis://ann:p%40ss@redis", "redis", 6379, "", 0),
        ("unix:///run/redis.sock?db=2", "localhost", 6379, "/run/redis.sock", 2),
        ("rediss://redis:7000?ssl_cert_reqs=none", "redis", 7000, "", 0),
    ],
)
def test_addresses(url, host, port, path, db):
    address = parse(url)
    assert (address.host, address.port, address.path, address.options["db"]) == (host, port, path, db)
    assert (address.tls is not None) == url.startswith("rediss")


def test_name_and_password():
    address = parse("redis://ann:p%40ss@redis/1")
    assert (address.options["username"], address.options["password"]) == ("ann", "p@ss")
    assert address.shown == "redis://redis/1"
    assert address.hide("WRONGPASS p@ss") == "WRONGPASS ..."


def test_addresses_of_sentinels():
    query = "sentinel_password=open&client_name=me&ssl_cert_reqs=none"
    address = parse(f"rediss+sentinel://ann:p%40ss@one,two:7000,[::1]/my%20service/2?{query}")
    assert (address.service, address.options["db"], address.options["password"]) == ("my service", 2, "p@ss")
    places = [(sentinel.host, sentinel.port) for sentinel in address.sentinels]
    assert places == [("one", 26379), ("two", 7000), ("::1", 26379)]
    for sentinel in address.sentinels:
        assert sentinel.options == {"db": 0, "password": "open"}
        assert sentinel.tls == address.tls == {"cert_reqs": "none"}
    assert address.shown == "rediss+sentinel://one,two:7000,[::1]/my%20service"
    assert address.hide("p@ss open") == "... ..."
    master = address.at("ten", 6380)
    assert (master.host, master.port, master.sentinels, master.options) == ("ten", 6380, (), address.options)


def test_addresses_of_a_cluster():
    address = parse("redis+cluster://:secret@one:7000,two?client_name=me")
    assert [(member.host, member.port) for member in address.members] == [("one", 7000), ("two", 6379)]
    assert address.shown == "redis+cluster://one:7000,two"
    assert address.at("ten", 1).options == {"db": 0, "password": "secret", "client_name": "me"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis+sentinel://localhost",
        "redis+sentinel://localhost/",
        "redis+sentinel:///service",
        "redis+sentinel://one,,two/service",
        "redis+sentinel://one:port/service",
        "redis+sentinel://one/service/zero",
        "redis+sentinel://one/service?socket_timeout=1",
        "redis+sentinel://one/service#2",
        f"redis+sentinel://:{SECRET}/x@one/service",
        f"redis+sentinel://:x{SECRET},two/service",
        "redis+cluster://",
        "redis+cluster://one/1",
        "redis+cluster://one,/",
        "redis+cluster://one?sentinel_password=x",
        f"redis+cluster://:{SECRET}?x@one",
        "unix+cluster:///run/redis.sock",
        "localhost:6379",
        "http://localhost",
        f"redis://:{SECRET}#x@localhost",
        f"redis://:{SECRET}/x@localhost",
        f"redis://:{SECRET}?x@localhost",
        f"redis://:{SECRET}@:6379",
        f"redis://:{SECRET}@",
        f"redis://:{SECRET}@localhost:port",
        f"redis://:{SECRET}%40localhost",
        f"redis://{SECRET}%40localhost",
        "redis://localhost/one",
        "redis://localhost/²",
        "redis://localhost/1#2",
        "redis://localhost?db=x",
        "redis://localhost?decode_responses=1",
        "redis://localhost?socket_timeout=",
        "redis://localhost?ssl_cert_reqs=none",
        "rediss://localhost?ssl_validate_ocsp=1",
        "rediss://localhost?ssl_cert_reqs=perhaps",
        "redis://localhost\ud800",
        "unix://relative",
        "unix://",
        f"unix://:{SECRET}/x@/run/redis.sock",
    ],
)
def test_addresses_that_are_refused(url):
    with pytest.raises(ValueError, match=r"^url") as raised:
        Channels(gowsev.MakeContext(gowsev.Handler()), url)
    assert SECRET not in str(raised.value)
    with pytest.raises(ValueError, match=r"^url"):
        Remote(url)


def test_what_is_no_text():
    with pytest.raises(TypeError, match="url must be str, not bytes"):
        Remote(b"redis://localhost")
    with pytest.raises(TypeError, match="prefix must be str, not None"):
        Remote("redis://", prefix=None)


@pytest.mark.parametrize("prefix", ["", "a b", "{a", "a}", "\n"])
def test_prefixes_that_are_refused(prefix):
    with pytest.raises(ValueError, match="prefix must be a word without braces"):
        Remote("redis://", prefix=prefix)
