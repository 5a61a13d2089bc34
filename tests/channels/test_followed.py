"""One channel as a process follows it: every way in which notifications and looks may come, without a server."""

from __future__ import annotations

import pytest

from gowsev.channels.backend import Joining
from gowsev.channels.followed import Followed
from gowsev.channels.publication import Message, Position
from gowsev.channels.timeline import Timeline


class Receiver:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def arrived(self, channel, message):
        self.told.append(message.position.offset)

    def lost(self, channel, position, missed):
        self.told.append(("lost", position.offset, missed))

    def joined(self, joining, position, continuation):
        self.told.append((joining.id, position.offset, continuation.complete, offsets(continuation.messages)))


def offsets(messages):
    return [message.position.offset for message in messages]


def place(offset, epoch="e", branch=""):
    return Position(epoch, offset, f"{branch}{offset}" if offset else epoch)


def message(offset, epoch="e", branch="", payload=b"x", before=None):
    before = before or place(offset - 1, epoch, branch if offset > 1 else "").id
    return Message(place(offset, epoch, branch), before, True, payload)


def stretch(first, last, epoch="e"):
    return Timeline(place(last, epoch), [message(offset, epoch) for offset in range(first, last + 1)])


def joining(id=1, after=None, recovers=None):
    return Joining(id, "news", after, after is not None if recovers is None else recovers, None, None)


@pytest.fixture
def receiver():
    return Receiver()


@pytest.fixture
def followed(receiver):
    return Followed("news", receiver, 100)


def test_what_is_notified_of_beyond_the_bound_is_not_kept(followed, receiver):
    followed.confirmed()
    followed.join(joining())
    followed.begin_look()
    for offset in range(1, 5):
        followed.notified(message(offset, payload=bytes(60)))
    followed.looked(stretch(1, 1))
    assert followed.wants_look  # what came behind is read
    followed.begin_look()
    followed.looked(stretch(1, 4))
    assert receiver.told == [(1, 1, False, []), 2, 3, 4]


@pytest.fixture
def sure(followed, receiver):
    """Followed up to 5, with one subscriber."""
    followed.confirmed()
    followed.join(joining())
    assert followed.begin_look() == (False, {})
    followed.looked(Timeline(place(5), []))
    assert receiver.told == [(1, 5, False, [])]
    receiver.told.clear()
    return followed


def test_nobody_joins_before_notifications_are_confirmed(followed, receiver):
    followed.join(joining())
    followed.notified(message(6))
    assert not followed.wants_look
    followed.confirmed()
    assert followed.wants_look
    assert not receiver.told


def test_notifications_while_the_first_look_is_under_way(followed, receiver):
    followed.confirmed()
    followed.join(joining())
    followed.begin_look()
    assert not followed.wants_look
    for offset in (5, 6, 7):  # the look sees 5 and 6, or not
        followed.notified(message(offset))
    followed.looked(Timeline(place(6), []))
    assert receiver.told == [(1, 7, False, [])]
    followed.notified(message(8))
    assert receiver.told[1:] == [8]


def test_what_follows_is_passed_on_at_once(sure, receiver):
    for offset in (6, 7, 7, 8):
        sure.notified(message(offset))
    assert receiver.told == [6, 7, 8]
    assert not sure.wants_look


def test_a_hole_is_filled(sure, receiver):
    sure.notified(message(8))
    assert sure.wants_look
    assert sure.begin_look() == (True, {"e": 5})
    sure.notified(message(9))
    sure.notified(message(10))
    sure.looked(stretch(6, 9))
    assert receiver.told == [6, 7, 8, 9, 10]
    assert not sure.wants_look


def test_a_hole_that_a_look_does_not_reach_is_looked_up_again(sure, receiver):
    sure.notified(message(8))
    sure.begin_look()
    sure.notified(message(11))
    sure.looked(stretch(6, 8))
    assert receiver.told == [6, 7, 8]
    assert sure.wants_look
    assert sure.begin_look() == (True, {"e": 8})
    sure.looked(stretch(9, 11))
    assert receiver.told == [6, 7, 8, 9, 10, 11]
    assert not sure.wants_look


def test_a_false_alarm(sure, receiver):
    sure.notified(message(4))
    sure.begin_look()
    sure.looked(Timeline(place(5), []))
    assert not receiver.told
    assert not sure.wants_look


@pytest.mark.parametrize(
    ("look", "told"),
    [
        (stretch(9, 11), [("lost", 8, 3), 9, 10, 11]),  # trimmed
        (Timeline(place(9), []), [("lost", 9, 4)]),  # all of it is gone
        (stretch(1, 2, "f"), [("lost", 0, None), 1, 2]),  # begun anew
        (stretch(4, 5, "f"), [("lost", 3, None), 4, 5]),  # begun anew, and trimmed
        (Timeline(place(0, "f"), []), [("lost", 0, None)]),  # begun anew, and empty
        (Timeline(place(3), []), [("lost", 3, None)]),  # rolled back
        (Timeline(place(5, branch="x"), []), [("lost", 5, None)]),  # rolled back, and gone on as far
        (Timeline(place(6, branch="x"), [message(6, branch="x", before="x5")]), [("lost", 5, None), 6]),
    ],
)
def test_gaps(sure, receiver, look, told):
    sure.cut_off()
    sure.confirmed()
    assert sure.begin_look() == (True, {"e": 5})
    sure.looked(look)
    assert receiver.told == told
    assert not sure.wants_look


def test_rolled_back_under_notifications(sure, receiver):
    sure.notified(message(4, branch="x", before="3"))
    sure.begin_look()
    sure.notified(message(5, branch="x"))
    sure.looked(Timeline(place(5, branch="x"), []))
    assert receiver.told == [("lost", 3, None), 4, 5]
    sure.notified(message(6, branch="x"))
    assert receiver.told[3:] == [6]


def test_rolled_back_as_a_look_finds_that_was_not_for_that(sure, receiver):
    sure.join(joining(2, place(3)))
    sure.begin_look()
    sure.looked(Timeline(place(4), [message(4)]))
    assert receiver.told == [("lost", 4, None), (2, 4, True, [4])]


def test_joining_a_channel_that_is_sure_needs_no_look(sure, receiver):
    sure.join(joining(2))
    sure.join(joining(3, place(5)))
    assert not sure.wants_look
    assert receiver.told == [(2, 5, False, []), (3, 5, True, [])]


def test_many_who_come_back_share_a_look(sure, receiver):
    sure.join(joining(2, place(3)))
    assert sure.begin_look() == (True, {"e": 3})
    sure.join(joining(3, place(2)))
    sure.join(joining(4, place(1)))
    sure.join(joining(5, place(9, "other")))
    sure.notified(message(6))
    assert not sure.wants_look
    sure.looked(stretch(4, 5))
    assert receiver.told == [6, (2, 6, True, [4, 5, 6])]
    receiver.told.clear()
    assert sure.begin_look() == (True, {"e": 1, "other": 9})
    sure.looked(stretch(2, 7))  # 7 was stored, and the notification of it is on its way
    assert receiver.told == [7, (3, 7, True, [3, 4, 5, 6, 7]), (4, 7, True, [2, 3, 4, 5, 6, 7]), (5, 7, False, [])]
    sure.notified(message(7))
    assert receiver.told[4:] == []
    assert not sure.wants_look or sure.begin_look() == (True, {"e": 7})


@pytest.mark.parametrize("after", [place(7), place(9, "other"), None])
def test_what_is_on_its_way_when_somebody_comes_back_is_not_lost_to_the_others(sure, receiver, after):
    # 6 and 7 are stored; the notifications of them have not come yet. Another process may have had them already, and
    # with it whoever comes from there.
    sure.join(joining(2, after, recovers=True))
    assert sure.begin_look() == (True, {"e": 5} if after is None or after.epoch == "e" else {"e": 5, "other": 9})
    sure.looked(stretch(6, 7))
    assert receiver.told == [6, 7, (2, 7, after == place(7), [])]
    sure.notified(message(7))
    sure.notified(message(8))
    assert receiver.told[3:] == [8]


def test_who_has_left_does_not_join(sure, receiver):
    one, two = joining(2, place(3)), joining(3, place(3))
    sure.join(one)
    sure.join(two)
    one.cancelled = True
    sure.begin_look()
    two.cancelled = True
    sure.looked(stretch(4, 5))
    assert not receiver.told


def test_what_is_kept_is_bounded(sure, receiver):
    sure.join(joining(2, place(5), recovers=True))
    sure.join(joining(3, place(4)))
    sure.begin_look()
    for offset in range(6, 10):
        sure.notified(message(offset, payload=b"x" * 40))
    receiver.told.clear()
    sure.looked(stretch(5, 6))  # nobody can join behind 9 by that
    assert not receiver.told
    assert sure.wants_look
    sure.begin_look()
    sure.looked(stretch(5, 9))
    assert receiver.told == [(3, 9, True, [5, 6, 7, 8, 9])]


def test_what_is_kept_is_bounded_while_unsure(sure, receiver):
    sure.cut_off()
    sure.confirmed()
    for offset in range(7, 11):
        sure.notified(message(offset, payload=b"x" * 40))
    sure.begin_look()
    for offset in range(11, 15):
        sure.notified(message(offset, payload=b"x" * 40))
    sure.looked(stretch(6, 12))
    assert receiver.told == [6, 7, 8, 9, 10, 11, 12]
    assert sure.wants_look
    sure.begin_look()
    sure.looked(stretch(13, 14))
    assert receiver.told[7:] == [13, 14]
    assert not sure.wants_look


def test_who_waits_for_a_look_that_failed_waits_for_the_next(sure, receiver):
    one = joining(2, place(4))
    sure.join(one)
    sure.begin_look()
    number = sure.look_number
    assert sure.look_failed() == [one]
    assert sure.look_number != number
    sure.begin_look()
    sure.looked(stretch(5, 5))
    assert receiver.told == [(2, 5, True, [5])]


def test_a_notification_that_nobody_understands(sure, receiver):
    sure.doubt()
    assert sure.begin_look() == (True, {"e": 5})
    sure.looked(stretch(6, 6))
    assert receiver.told == [6]
