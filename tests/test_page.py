"""The relay's page as a person uses it, in headless Chromium: by keyboard, by click, and with the server going away."""

from __future__ import annotations

import pytest
from browser import needs_chromium
from conftest import PATIENCE, RELAY
from programs import websockets_client
from redis_server import needs_redis

from gowsev.channels import Remote

pytestmark = needs_chromium

FIRST, LAST = 500, 15000  # milliseconds, of page.js


@pytest.fixture
def page_of(run):
    """A function that starts the relay on a given port; returns it and the page's address."""

    def start(*options, port=0):
        options = ["--host", "127.0.0.1", "--port", port, "--tls-port", "none", *options]
        program = run(RELAY / "relay.py", *options)
        return program, program.url().replace("ws:", "http:")

    return start


def connected(tab):
    return tab.wait_for("document.body.dataset.state === 'open'")


def subscribed(tab, number):
    return tab.wait_for(f"document.querySelectorAll('.channel[data-state=open]').length === {number}")


def shows(tab, number):
    return tab.wait_for(f"document.querySelectorAll('.message').length === {number}")


def messages(tab):
    """What the page shows: pairs of channel and body."""
    return list(zip(tab.texts(".message .tag"), tab.texts(".message .body"), strict=True))


def test_two_pages_talk_to_each_other_by_keyboard_and_by_click(page_of, browser):
    program, url = page_of()
    ann, bob = browser.open(url), browser.open(url, 390, 844)
    for tab in (ann, bob):
        assert connected(tab)
        assert tab.text("#state-text") == "Connected"
    # Ann has a keyboard: from the top of the page, Tab leads to everything in its order.
    ann.press("Tab")
    assert ann.look("document.activeElement.className") == "skip"
    for id in ("connect", "subscribe-channel"):
        ann.press("Tab")
        assert ann.focus() == id
    for channel in ("weather", "zürich"):
        ann.type(channel)
        ann.press("Enter")
    subscribed(ann, 2)
    # Bob has a finger.
    bob.click("#subscribe-channel")
    bob.type("weather")
    bob.click("#subscribe-form button")
    subscribed(bob, 1)

    ann.look("document.getElementById('publish-channel').select()")
    ann.type("weather")
    ann.press("Tab")
    assert ann.focus() == "body"
    ann.type("rain: all day")
    ann.press("Enter")
    shows(bob, 1)
    bob.click("#body")
    bob.type("grüße 😀 <b>")
    bob.click("#send")
    for tab in (ann, bob):
        shows(tab, 2)
        assert messages(tab) == [("weather", "rain: all day"), ("weather", "grüße 😀 <b>")]
    bob.wait_for("document.getElementById('answer').textContent === 'Published to weather.'")
    assert ann.texts(".channel .count") == ["2", "0"]

    # Ann no longer, and what comes is for Bob's page alone.
    ann.click(".channel button")
    ann.wait_for("document.querySelectorAll('.channel').length === 1")
    bob.click("#body")
    bob.type("only Bob")
    bob.press("Enter")
    shows(bob, 3)
    assert len(messages(ann)) == 2
    for tab in (ann, bob):
        assert tab.complaints == []
        assert tab.look("document.documentElement.scrollWidth <= innerWidth")
    assert program.end() == 0


def test_pages_come_back_when_the_server_does(page_of, browser):
    program, url = page_of()
    port = int(url.rsplit(":", 1)[1].strip("/"))
    ann, bob = (browser.open(f"{url}#weather,news") for _ in range(2))
    for tab in (ann, bob):
        subscribed(tab, 2)
    for _ in range(2):
        assert program.end() == 0
        for tab in (ann, bob):
            tab.wait_for("document.body.dataset.state === 'waiting' || document.body.dataset.state === 'opening'")
            assert tab.look("document.getElementById('send').disabled")
            assert tab.texts(".channel .note")[0]
        program, _ = page_of(port=port)
        for tab in (ann, bob):  # by themselves
            assert connected(tab)
            subscribed(tab, 2)
    ann.look("document.getElementById('publish-channel').value = 'news'")
    ann.click("#body")
    ann.type("back again")
    ann.press("Enter")
    for tab in (ann, bob):
        shows(tab, 1)
        assert messages(tab) == [("news", "back again")]
    ann.wait_for("document.getElementById('answer').textContent === 'Published to news.'")
    ann.click("#connect")
    ann.wait_for("document.body.dataset.state === 'closed'")
    assert ann.text("#answer") == ""
    assert ann.text("#state-text") == "Disconnected"
    assert ann.texts(".channel .note") == ["Not connected."] * 2


def test_the_waits_before_reconnecting_grow_and_are_random(page_of, browser):
    program, url = page_of()
    tab = browser.open(url)
    assert connected(tab)
    # All waits are noted, and cut short.
    tab.look(
        "window.delays = []; const wait = setTimeout; window.setTimeout = (f, ms, ...more) => {"
        " if (ms >= 100) delays.push(ms); return wait(f, ms >= 100 ? 10 : ms, ...more); }; true"
    )
    program.end()
    tab.wait_for("delays.length >= 12")
    longest = [min(FIRST * 2**attempt, LAST) for attempt in range(12)]
    delays = tab.look("delays.slice(0, 12)")
    assert all(most / 2 <= delay <= most for most, delay in zip(longest, delays, strict=True))
    assert len({delay / most for most, delay in zip(longest, delays, strict=True)}) > 6


def test_the_page_asks_for_a_token_and_says_when_it_is_wrong(page_of, browser, tmp_path):
    (tmp_path / "tokens").write_text("sésame\n")
    _, url = page_of("--token-file", tmp_path / "tokens")
    tab = browser.open(url)
    assert tab.text("#state-text") == "A token is needed"
    tab.click("#token")
    tab.type("wrong")
    tab.press("Enter")
    tab.wait_for("document.getElementById('state-text').textContent === 'Refused: is the token right?'")
    assert tab.focus() == "token"
    tab.look("document.getElementById('token').select()")
    tab.type("sésame")
    tab.press("Enter")
    assert connected(tab)
    assert tab.look("document.getElementById('token-form').hidden")


def test_the_page_shows_errors_and_bytes_as_they_are(page_of, browser):
    program, url = page_of("--max-channel-bytes", 4)
    tab = browser.open(f"{url}#news,too-long")
    subscribed(tab, 1)
    error = "Not subscribed: a channel's name has at most 4 bytes."
    tab.wait_for(f'[...document.querySelectorAll(".note")].some((note) => note.textContent.startsWith("{error}"))')
    tab.look("document.getElementById('publish-channel').value = 'longer'")
    tab.click("#body")
    tab.type("kept")
    tab.press("Enter")
    tab.wait_for("document.getElementById('answer').dataset.kind === 'bad'")
    assert tab.text("#answer") == "Not published: a channel's name has at most 4 bytes."
    assert tab.look("document.getElementById('body').value") == "kept"
    with websockets_client(program.url()) as client:
        for body in (b"\x00\xff", b""):
            client.send(b"publish:news:" + body)
            assert client.recv() == b"OK"
    shows(tab, 2)
    assert messages(tab) == [("news", "2 bytes: 00 ff"), ("news", "empty")]


@needs_redis
def test_a_page_that_comes_back_has_missed_nothing_and_has_one_socket(page_of, browser, redis_server):
    program, url = page_of("--backplane", redis_server.url)
    tab = browser.open(f"{url}#news,weather,zürich tram")
    subscribed(tab, 3)
    assert program.end() == 0
    assert program.output.count("Connection accepted") == 1
    with Remote(redis_server.url, prefix="relay") as remote:
        for number in range(20):
            remote.Publish("news", f"while away {number}")
        program, _ = page_of("--backplane", redis_server.url, port=int(url.rsplit(":", 1)[1].strip("/")))
        subscribed(tab, 3)
        shows(tab, 20)
        assert messages(tab) == [("news", f"while away {number}") for number in range(20)]
        assert tab.texts(".gap") == []
        redis_server.cli("flushall")
        remote.Publish("news", "anew")
        shows(tab, 21)
    assert tab.texts("#messages li")[-2].startswith("Messages of news may be missing here.")


def test_channels_have_colours_of_their_own_and_leave_the_messages_in_sight(page_of, browser):
    _, url = page_of()
    tab = browser.open(url + "#" + ",".join(map(str, range(40))), 390, 844)
    subscribed(tab, 40)
    assert tab.look("document.getElementById('messages-title').getBoundingClientRect().top < innerHeight")
    colours = "[...document.querySelectorAll('.swatch')].map((item) => getComputedStyle(item).backgroundColor)"
    assert len(set(tab.look(colours))) == 40
    # Where there is room beside the messages, the list scrolls, and the form above it stays.
    wide = browser.open(url + "#" + ",".join(map(str, range(40))))
    subscribed(wide, 40)
    wide.look("document.getElementById('channels').lastChild.scrollIntoView()")
    assert wide.look("document.getElementById('channels').scrollTop > 0")
    assert wide.look("document.getElementById('subscribe-form').getBoundingClientRect().top > 0")
    assert wide.look("document.querySelector('.channels').getBoundingClientRect().bottom <= innerHeight")


@pytest.mark.parametrize("width", [1280, 390])
def test_names_are_whole_on_a_tap_and_a_long_notice_moves_nothing(page_of, browser, width):
    program, url = page_of("--max-channel-bytes", 60)
    tab = browser.open(f"{url}#{'long-' * 12}", width, 844)
    subscribed(tab, 1)
    tab.look(f"document.getElementById('publish-channel').value = '{'x' * 61}'")
    before = tab.look("Math.round(document.getElementById('send').getBoundingClientRect().top)")
    tab.click("#body")
    tab.type("refused")
    tab.press("Enter")
    tab.wait_for("document.getElementById('answer').dataset.kind === 'bad'")
    assert tab.look("Math.round(document.getElementById('send').getBoundingClientRect().top)") == before
    with websockets_client(program.url()) as client:
        client.send(f"publish:{'long-' * 12}:body")
        assert client.recv() == b"OK"
    shows(tab, 1)
    cut = "(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth)(document.querySelector('.tag'))"
    assert tab.look(cut)
    tab.click(".tag")
    tab.wait_for(f"!{cut}")
    assert tab.look("document.documentElement.scrollWidth <= innerWidth")


def test_five_thousand_messages_are_shown_and_the_page_goes_on(page_of, browser):
    program, url = page_of()
    tab = browser.open(f"{url}#news")
    subscribed(tab, 1)
    with websockets_client(program.url()) as client:
        for number in range(5000):
            client.send(f"publish:news:{number}")
        for _ in range(5000):
            assert client.recv(timeout=PATIENCE) == b"OK"
    tab.wait_for("document.querySelector('.count').textContent === '5000'")
    assert [body for _, body in messages(tab)] == [str(number) for number in range(4500, 5000)]
    tab.click("#body")
    tab.look("document.getElementById('publish-channel').value = 'news'")
    tab.type("still there")
    tab.press("Enter")
    tab.wait_for("[...document.querySelectorAll('.body')].at(-1).textContent === 'still there'")
    assert tab.complaints == []


LONG = 900_000


def test_a_very_long_message_is_shown_cut_and_the_page_goes_on(page_of, browser):
    program, url = page_of()
    tab = browser.open(f"{url}#news")
    subscribed(tab, 1)
    bodies = ["x" * LONG, "x" * 1999 + "😀" + "x" * LONG, "x" * 2000, "ü" * 2001, "\xff" * LONG]
    with websockets_client(program.url()) as client:
        for body in bodies:
            client.send(b"publish:news:" + body.encode("latin-1" if "\xff" in body else "utf-8"))
            assert client.recv() == b"OK"
    shows(tab, 5)
    cut = "Cut: the first 2000 of {} characters are shown."
    shown = [body for _, body in messages(tab)]
    assert shown[:4] == ["x" * 2000, "x" * 1999, "x" * 2000, "ü" * 2000]
    assert shown[4] == f"{LONG} bytes: {' '.join(['ff'] * 64)} …"
    assert tab.texts(".message .note") == [cut.format(LONG), cut.format(LONG + 2001), cut.format(2001)]
    assert tab.look("document.documentElement.scrollWidth <= innerWidth")
    assert tab.complaints == []


def test_the_page_asks_for_a_token_when_its_own_is_taken_away(page_of, browser, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")
    _, url = page_of("--token-file", tokens)
    tab = browser.open(f"{url}#news")
    tab.click("#token")
    tab.type("first")
    tab.press("Enter")
    subscribed(tab, 1)
    tokens.write_text("second\n")
    tab.wait_for("document.getElementById('state-text').textContent === 'The token is no longer valid'")
    assert tab.focus() == "token"
    tab.look("document.getElementById('token').select()")
    tab.type("second")
    tab.press("Enter")
    assert connected(tab)
    subscribed(tab, 1)


def test_everything_on_the_page_has_a_name_and_room_for_a_finger(page_of, browser):
    _, url = page_of()
    tab = browser.open(f"{url}#news", 390, 844)
    subscribed(tab, 1)
    roles = {"button", "textbox", "combobox", "link", "log", "list"}
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in roles]
    assert len(controls) >= 8
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    heights = tab.look("[...document.querySelectorAll('button')].map((b) => b.offsetHeight).filter(Boolean)")
    assert min(heights) >= 36
