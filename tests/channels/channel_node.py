"""A process with channels, for tests to talk to, fork and kill: `channel_node.py URL [patched] [preload]`."""

import sys

if "patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import json
import os
import warnings

import gowsev
from gowsev.channels import Channels, Gap

# gevent looks names up in threads, of which Python 3.12 and newer warn at a fork; its pool begins anew in the child.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


class Node(gowsev.Handler):
    """Each message is a command in JSON: ["subscribe", channel, after, member], ["publish", channel, message]."""

    def TextReceived(self, context, id, text):
        command, channel, *arguments = json.loads(text)

        def answer(context, *results):
            context.WriteText(id, json.dumps([command, *map(str, results)]))

        if command == "subscribe":
            after, member = arguments

            def subscribed(context, subscription):
                answer(context, subscription.position, subscription.recovered)

            channels.Subscribe(id, channel, after, member, subscribed)
        elif command == "publish":
            channels.Publish(channel, arguments[0], answer)
        else:  # a child that is forked here does what it can, and ends
            child = os.fork()
            if not child:
                error = channels.Publish(channel, "from the child")
                os._exit(0 if type(error).__name__ == "ChannelsAway" else 1)
            answer(context, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def deliver(context, ids, publication):
    for id in ids:
        text = "gap" if isinstance(publication, Gap) else f"{publication.message}"
        context.WriteText(id, text if len(text) < 10_000 else f"{len(text)} characters")


context = gowsev.MakeContext(Node())
channels = Channels(context, sys.argv[1], deliver=deliver)
_, port = context.ListenAndServe("127.0.0.1:0")
if "preload" in sys.argv:
    # As a server does that loads the program before it forks its workers, and uses it there already.
    import gevent

    results = []
    channels.Publish("news", "from the master", lambda context, *result: results.append(result))
    for _ in range(500):
        if channels.Status().up and not channels.Status().in_flight:
            break
        gevent.sleep(0.02)
    if os.fork():
        os.wait()
        sys.exit()
context.ShutdownOnSignal()
print("listening on port", port, flush=True)
context.EventLoop()
