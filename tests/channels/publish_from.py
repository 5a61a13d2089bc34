"""Publishes to the channel `news` with one `Remote`, in the way that its arguments say: `publish_from.py URL WAY`."""

import sys

if "patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import asyncio
import multiprocessing
import threading

from gowsev.channels import Remote

URL, WAY = sys.argv[1:] if __name__ == "__main__" else ("", "")
NUMBER = 5


def publish(remote, name):
    for number in range(NUMBER):
        remote.Publish("news", f"{name} {number}")


def publish_anew(url, name):
    with Remote(url) as remote:
        publish(remote, name)


def from_threads():
    """Several threads share one; in a patched process they are greenlets."""
    with Remote(URL) as remote:
        threads = [threading.Thread(target=publish, args=(remote, f"thread {number}")) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def from_children(method):
    """Children inherit the parent's where they are forked, and make one where they are spawned."""
    context = multiprocessing.get_context(method)
    with Remote(URL) as remote:
        publish(remote, "parent")
        children = [
            context.Process(target=publish, args=(remote, f"child {number}"))
            if method == "fork"
            else context.Process(target=publish_anew, args=(URL, f"child {number}"))
            for number in range(2)
        ]
        for child in children:
            child.start()
        publish(remote, "parent again")
        for child in children:
            child.join()
            assert child.exitcode == 0


async def from_asyncio():
    """Each call waits in a thread, and the event loop goes on."""
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with Remote(URL) as remote:
        await asyncio.gather(*(asyncio.to_thread(publish, remote, f"task {number}") for number in range(4)))
    ticking.cancel()
    assert ticks


if __name__ == "__main__":
    if WAY in ("threads", "patched"):
        from_threads()
    elif WAY == "asyncio":
        asyncio.run(from_asyncio())
    else:
        from_children(WAY)
