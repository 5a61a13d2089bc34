import gevent.socket
import pytest
from conftest import in_thread

from gowsev.connection.sockets import ServedSocket, accept, missing


def test_what_a_version_of_gevent_lacks_is_named():
    def function(sock):
        return sock._here

    assert missing({"_here": function, "_gone": function, "_lost": function}) == ["_gone", "_lost"]


def test_accepting_never_waits():
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert accept(listening) is None
        with gevent.socket.create_connection(listening.getsockname()) as client:
            sock, address = accept(listening)
            with sock:
                assert not isinstance(sock, gevent.socket.socket)
                assert address == client.getsockname()
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
        assert accept(listening) is None


@pytest.mark.parametrize("send", ["send", "sendall"])
def test_a_served_socket_remembers_that_sending_failed(send):
    ours, theirs = gevent.socket.socketpair()
    with ServedSocket(ours.family, ours.type, ours.proto, ours.detach()) as served:
        getattr(served, send)(b"hello")
        assert in_thread(theirs.recv, 100) == b"hello"
        assert not served.failed
        theirs.close()
        with pytest.raises(OSError, match="pipe"):
            getattr(served, send)(b"hello")
        assert served.failed
