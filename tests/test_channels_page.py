"""The programs of docs/channels.md run."""

from __future__ import annotations

from conftest import PATIENCE
from programs import snippets, websockets_client
from redis_server import needs_redis

from gowsev.channels import Remote


@needs_redis
@snippets("docs/channels.md")
def test_programs(page, redis_server):
    program = page.start("rooms.py")
    url = f"ws://127.0.0.1:{program.port()}/"
    with websockets_client(url) as ann, websockets_client(url) as bob:
        for client in (ann, bob):
            client.send("news")
            assert client.recv(timeout=PATIENCE) == "in news"
        ann.send("news:hello: all")
        assert [client.recv(timeout=PATIENCE) for client in (ann, bob)] == ["hello: all"] * 2
    for _ in range(2):
        task = page.start("task.py", replace=[("redis://localhost:6379/0", redis_server.url)])
        assert task.wait() == 0, task.output
    with Remote(redis_server.url) as remote:
        assert [publication.message for publication in remote.History("news")] == ["the report is ready"]
