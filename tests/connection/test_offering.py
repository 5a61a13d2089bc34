"""How many bytes are offered to the kernel at once, and what is left of them then. The rest is in `test_outbox`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gowsev.connection.gathering import MOST_JOINED
from gowsev.connection.offering import drop, send_part


class Kernel:
    """A socket that takes what it is offered, and remembers it."""

    def __init__(self):
        self.offered = []

    def send(self, data):
        self.offered.append(bytes(data))
        return len(data)

    def sendmsg(self, chunks):
        self.offered.append([bytes(chunk) for chunk in chunks])
        return sum(map(len, chunks))


def offered(tls, chunks):
    kernel = Kernel()
    sent = send_part(kernel, tls, chunks)
    (what,) = kernel.offered
    assert sent == sum(map(len, what)) if isinstance(what, list) else sent == len(what)
    return what


A, B = b"a" * MOST_JOINED, b"b" * 100


@pytest.mark.parametrize(
    ("tls", "chunks", "expected"),
    [
        (False, [A + B], A + B),
        (False, [B, A], [B, A]),
        (False, [b"x"] * 1500, [b"x"] * 1024),  # as many buffers as `sendmsg` takes
        (True, [A + B], A),  # TLS is offered no more at once
        (True, [A, B], A),
        (True, [B, A], (B + A)[:MOST_JOINED]),
        (True, [B, B, A, B], (B + B + A)[:MOST_JOINED]),
    ],
    ids=lambda value: None if isinstance(value, bool) else "",
)
def test_how_much_is_offered_at_once(tls, chunks, expected):
    before = list(chunks)
    assert offered(tls, chunks) == expected
    assert chunks == before


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1), st.data())
def test_what_has_left_is_taken_off(chunks, data):
    whole = b"".join(chunks)
    sent = data.draw(st.integers(0, len(whole) - 1))
    drop(chunks, sent)
    assert b"".join(chunks) == whole[sent:]
    assert all(chunks), "no empty chunk stays"
