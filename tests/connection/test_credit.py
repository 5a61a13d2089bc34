from __future__ import annotations

import pytest

from gowsev.connection.credit import Credit


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "messages", "size", "stop"),
    [
        (3, 100, 2, 99, False),
        (3, 100, 3, 0, True),
        (3, 100, 1, 100, True),
        (None, 100, 1000, 99, False),
        (None, 100, 1, 100, True),
        (3, None, 2, 1 << 40, False),
        (3, None, 3, 0, True),
        (None, None, 1 << 40, 1 << 40, False),
    ],
)
def test_a_reader_must_stop_at_either_limit(max_messages, max_bytes, messages, size, stop):
    credit = Credit(max_messages, max_bytes, pytest.fail)
    credit.spend(messages, size)
    assert credit.exhausted is stop
    assert (credit.messages, credit.bytes) == (messages, size)


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(3, None), (None, 30), (3, 1000), (1000, 30)])
def test_what_is_read_bit_by_bit_adds_up(max_messages, max_bytes):
    credit = Credit(max_messages, max_bytes, pytest.fail)
    seen = [credit.exhausted]
    for _ in range(4):
        credit.spend(1, 10)
        seen.append(credit.exhausted)
    assert seen == [False, False, False, True, True]
    assert (credit.messages, credit.bytes) == (4, 40)


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "sizes", "resumes_after"),
    [
        (4, None, [9, 9, 9, 9], 2),
        (5, None, [9, 9, 9, 9, 9], 3),
        (1, None, [9], 1),
        (1, None, [9, 9, 9], 3),
        (None, 100, [50, 25, 25], 1),
        (None, 100, [25, 25, 50], 2),
        (None, 1, [1], 1),
        (4, 100, [1, 1, 1, 97], 4),
        (4, 100, [97, 1, 1, 1], 2),
    ],
)
def test_it_goes_on_once_half_of_what_it_was_stopped_for_is_free(max_messages, max_bytes, sizes, resumes_after):
    delivered, resumed = [], []
    credit = Credit(max_messages, max_bytes, lambda: resumed.append(len(delivered)))
    credit.spend(len(sizes), sum(sizes))
    assert credit.exhausted
    for size in sizes:
        delivered.append(size)
        credit.refund(size)
    assert resumed == [resumes_after], "once, and at the right one"
    assert credit.exhausted is False
    assert (credit.messages, credit.bytes) == (0, 0)


def test_deliveries_resume_nothing_that_was_not_stopped():
    credit = Credit(4, 100, pytest.fail)
    credit.spend(3, 30)
    for _ in range(3):
        credit.refund(10)
    assert (credit.messages, credit.bytes) == (0, 0)
