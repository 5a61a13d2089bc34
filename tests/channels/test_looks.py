"""Which channels are looked up, and when."""

import weakref
from types import SimpleNamespace

from gowsev.channels.looks import LIGHT, MOST, Looks


class Asked:
    """What was asked for, and how to end it."""

    def __init__(self):
        self.room = True
        self.begun = []
        self.looks = Looks(lambda followed, done: self.begun.append((followed, done)), lambda: self.room)

    @property
    def channels(self):
        return [followed.number for followed, _ in self.begun]


def hashable(**attributes):
    """A channel as `Looks` sees one."""
    return type("Channel", (), {"number": object(), **attributes})()


def wanting(id=1, wants=True, messages=True):
    return hashable(wants_look=wants, wants_messages=messages, joining=[SimpleNamespace(id=id)] if id else [])


def test_no_more_are_under_way_than_that():
    asked = Asked()
    channels = [wanting() for _ in range(MOST + 2)]
    for one in channels:
        asked.looks.want(one)
    assert asked.channels == [one.number for one in channels[:MOST]]
    asked.begun[0][1]()
    assert asked.channels == [one.number for one in channels[: MOST + 1]]


def test_more_are_under_way_where_they_bring_no_messages():
    asked = Asked()
    for _ in range(2 * MOST * LIGHT):
        asked.looks.want(wanting(messages=False))
    assert len(asked.begun) == MOST * LIGHT
    for _, done in asked.begun[: 2 * LIGHT]:
        done()
    assert len(asked.begun) == (MOST + 2) * LIGHT


def test_thousands_that_are_left_take_no_room_and_no_time():
    asked = Asked()
    asked.room = False
    kept = wanting()
    asked.looks.want(kept)
    checked = []
    for _ in range(10_000):
        one = wanting()
        alive = weakref.ref(one)
        asked.looks.want(one)
        asked.looks.leave(one)
        del one
        checked.append(alive)
    assert sum(alive() is not None for alive in checked) < 200
    asked.room = True
    asked.looks.go_on()
    assert asked.channels == [kept.number]


def test_the_channels_of_one_connection_wait_behind_each_other():
    asked = Asked()
    asked.room = False
    greedy = [wanting(1) for _ in range(3)]
    polite, nobody = wanting(2), wanting(0)
    for one in [*greedy, polite, nobody, wanting(0, wants=False)]:
        asked.looks.want(one)
    assert asked.begun == []
    asked.room = True
    asked.looks.go_on()
    assert set(asked.channels[:3]) == {greedy[0].number, polite.number, nobody.number}
    assert asked.channels[3:] == [greedy[1].number, greedy[2].number]


def test_a_channel_is_asked_for_once_and_only_if_it_still_wants_it():
    asked = Asked()
    asked.room = False
    twice, sure, left = wanting(), wanting(), wanting()
    for one in (twice, twice, sure, left):
        asked.looks.want(one)
    sure.wants_look = False
    asked.looks.leave(left)
    asked.looks.leave(left)
    asked.room = True
    asked.looks.go_on()
    assert asked.channels == [twice.number]
