"""Where a redirect leads, and what may go there."""

import pytest
from websockets.http11 import Response

from gowsev.opening.redirect import kept_headers, location_of, same_host
from gowsev.opening.url import parse_url
from gowsev.request import Headers


def response(status, *places):
    return Response(status, "", Headers([("Location", place) for place in places]))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("ws://other.example/", "ws://other.example/"),
        ("https://other.example/live?a=b", "wss://other.example/live?a=b"),
        ("HTTP://other.example/", "ws://other.example/"),
        ("/live", "ws://server.example:8080/live"),
        ("live", "ws://server.example:8080/one/live"),
        ("?a=b", "ws://server.example:8080/one/two?a=b"),
        ("//other.example/", "ws://other.example/"),
        ("/live#part", "ws://server.example:8080/live"),
        ("ftp://other.example/", "ftp://other.example/"),
        ("http://[::1/", "http://[::1/"),
    ],
)
def test_a_location_is_made_whole(place, expected):
    assert location_of(response(302, place), "ws://server.example:8080/one/two") == expected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_redirects(status):
    assert location_of(response(status, "/a", "/b"), "ws://server.example/") == "ws://server.example/a"


@pytest.mark.parametrize("answer", [response(200, "/"), response(300, "/"), response(304, "/"), response(302)])
def test_what_is_no_redirect(answer):
    assert location_of(answer, "ws://server.example/") is None


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("ws://a.example/", "ws://a.example/b", True),
        ("ws://a.example/", "ws://A.example:80/", True),
        ("ws://a.example/", "wss://a.example/", True),
        ("ws://a.example:8080/", "wss://a.example:8080/", True),
        ("ws://a.example/", "ws://b.example/", False),
        ("ws://a.example/", "ws://sub.a.example/", False),
        ("ws://a.example/", "ws://a.example:8080/", False),
        ("ws://a.example:8080/", "wss://a.example/", False),
        ("wss://a.example:8080/", "ws://a.example:8080/", False),
    ],
)
def test_who_may_get_what_was_meant_for_another_url(old, new, same):
    assert same_host(parse_url(old).uri, parse_url(new).uri) is same


def test_credentials_and_the_name_stay_behind():
    headers = [("AUTHORIZATION", "a"), ("cookie", "b"), ("Proxy-Authorization", "c"), ("Host", "d"), ("X-One", "e")]
    assert kept_headers(headers) == (("X-One", "e"),)
