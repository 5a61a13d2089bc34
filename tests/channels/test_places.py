"""Which member of a cluster has a key, from its answer to `CLUSTER SLOTS`."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from gowsev.channels.places import Slots

ONE, TWO = ("one", 7000), ("two", 7001)
#: A whole cluster but for the slots 10 to 12,181; "foo" is in slot 12,182, "bar" in 5,061.
ANSWER = [
    [12182, 16383, [b"two", 7001, b"id"], [None, 7002, b"id"]],
    [0, 9, [b"one", 7000, b"id"]],
]


def test_members_and_masters():
    slots = Slots(ANSWER, "asked")
    assert slots.members == [TWO, ("asked", 7002), ONE]
    assert slots.masters == {ONE, TWO}


@pytest.mark.parametrize(("key", "place"), [(b"foo", TWO), (b"{foo}:x", TWO), (b"bar", None)])
def test_the_member_of_a_key(key, place):
    assert Slots(ANSWER, "asked").place(key) == place


def test_no_member_has_what_lies_before_the_first_range():
    assert key_slot(b"bar") < 12182
    assert Slots(ANSWER[:1], "asked").place(b"bar") is None
