"""gowsev with channels, as docs/channels.md has it. usage: PORT URL, or PORT memory"""

import json
import sys

import gowsev
from gowsev.channels import Channels, Gap


class Live(gowsev.Handler):
    def TextReceived(self, context, id, text):
        words = json.loads(text)
        if "publish" in words:
            self.publish(context, id, words["number"], words["publish"], words["text"])
        else:
            self.subscribe(context, id, words["subscribe"], words.get("after"))

    def publish(self, context, id, number, channel, text):
        def done(context, position, error):
            context.WriteText(id, json.dumps({"refused" if error else "published": number}))

        error = channels.Publish(channel, text, done, id=id)
        if error is not None:
            done(context, None, error)

    def subscribe(self, context, id, channel, after):
        def done(context, subscription):
            if subscription.error is not None:
                context.Close(id, 1013, "not now")  # the client comes back
                return
            answer = {"subscribed": channel, "position": subscription.position, "recovered": subscription.recovered}
            context.WriteText(id, json.dumps(answer))

        channels.Subscribe(id, channel, after=after, done=done)


def deliver(context, ids, publication):
    if isinstance(publication, Gap):
        message = {"position": publication.position, "gap": True}
    else:
        message = {"position": publication.position, "text": publication.message}
    context.Broadcast(ids, json.dumps(message))


port, url = sys.argv[1:]
context = gowsev.MakeContext(Live())
channels = Channels(context, None if url == "memory" else url, deliver=deliver)
context.ListenAndServe(f"127.0.0.1:{port}")
context.EventLoop()
