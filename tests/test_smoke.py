from conftest import wait_until


def test_echo(serve):
    server = serve()
    client = server.client()
    client.send_binary(b"hello")
    assert client.read_frame() == (2, b"hello")
    client.send_close(1000, "bye")
    assert client.read_close() == (1000, "")
    assert client.read_to_end() == b""
    wait_until(lambda: server.handler.closed)
    assert server.handler.events == [("accepted", 1), ("message", 1, b"hello"), ("closed", 1, 1000, "bye")]
