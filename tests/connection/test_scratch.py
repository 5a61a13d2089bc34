import gevent

from gowsev.connection import scratch


def test_readers_of_one_hub_share_their_receive_buffer_and_those_of_another_have_their_own():
    mine = scratch.receive_buffer()
    assert len(mine) == scratch.SIZE
    assert scratch.receive_buffer() is mine
    assert gevent.get_hub().threadpool.apply(scratch.receive_buffer) is not mine
