"""The WebSockets of the app: which connection gets what, and who is there. One of it in each worker.

A page says once, when it has connected, up to which position it has each channel, `{"user:1": "POSITION", ...}`, and is
sent objects in JSON from then on:

    {"channel", "position", "notice"}                   a notice
    {"channel", "position", "joined", "recovered"}      subscribed; whether all that was missed came before this
    {"channel", "position", "gap"}                      notices are lost: load anew
    {"channel", "members"}                              who is in a room, over all workers
    {"beat"}                                            every few seconds, so that a page notices a dead connection
"""

import json
import os
from functools import partial

import gevent
import store
from gevent.event import AsyncResult

import gowsev
from gowsev.channels import Channels, Gap

#: The close code that tells a page that its user has logged out; 4000 to 4999 are a program's own.
LOGGED_OUT = 4401
#: Seconds between two looks at who is there, and between two beats.
BEAT = 3.0
#: Seconds that a view waits to hear what became of a publish; where Redis is away that takes up to 15.
PATIENCE = 16.0


class Live(gowsev.Handler):
    """The connections of this worker.

    Args:
        url: of the Redis that joins the workers.
        login_of: the id of the login in the headers of a handshake.
    """

    def __init__(self, url, login_of):
        self._login_of = login_of
        self._logins = {}  # by id
        self._joined = set()  # ids whose page has said what it has
        self._present = {}  # by room, the ids that are in it
        self.context = gowsev.MakeContext(self, gowsev.Options(max_message_bytes=16384))
        self.channels = Channels(self.context, url, deliver=self.deliver)

    def start(self):
        """Drive the loop in a greenlet."""
        self.beat(self.context)
        gevent.spawn(self.context.EventLoop)

    # -- for views, which may wait -------------------------------------------------------------------------------

    def publish(self, channel, message):
        """Publish an object; return an error, or `None` once it is stored."""
        answered = AsyncResult()
        error = self.channels.Publish(channel, json.dumps(message), lambda context, _, error: answered.set(error))
        if error is None:
            answered.wait(PATIENCE)
            error = answered.value if answered.ready() else TimeoutError("this worker ends, and does not know")
        return error

    # -- callbacks -----------------------------------------------------------------------------------------------

    def ConnAccepted(self, context, id):
        self._logins[id] = self._login_of(context.MustConn(id).headers)

    def ConnClosed(self, context, id):
        del self._logins[id]
        self._joined.discard(id)
        for ids in self._present.values():
            ids.discard(id)

    def TextReceived(self, context, id, text):
        positions = json.loads(text)
        if id in self._joined or not isinstance(positions, dict):
            context.Close(id, 1008, "say once which positions you have")
            return
        self._joined.add(id)
        gevent.spawn(self._subscribe, id, positions)  # the database is asked, which takes its time

    def _subscribe(self, id, positions):
        """Subscribe a connection to what its user may read. What the page asks for has no say in that."""
        user = store.user_of(self._logins.get(id))
        for channel in store.channels_of(user["id"]) if user else ():
            after = positions.get(channel)
            member = user["name"] if channel.startswith("room:") else None
            done = partial(self._subscribed, id)
            self.channels.Subscribe(id, channel, after if isinstance(after, str) else None, member, done)

    def _check(self, id):
        """Close a connection whose login has ended."""
        login = self._logins.get(id)
        if login is not None and store.user_of(login) is None:
            self.context.Close(id, LOGGED_OUT, "logged out")

    def _subscribed(self, id, context, subscription):
        channel = subscription.channel
        if subscription.error is not None:
            context.Close(id, 1013, "not now")  # it comes back, with its positions
            return
        if channel.startswith("user:"):
            # From here on a logout arrives as a message. One that came before is noticed now.
            gevent.spawn(self._check, id)
        else:
            self._present.setdefault(channel, set()).add(id)
            self.channels.Members(channel, partial(self._tell_members, channel))
        joined = {"joined": os.getpid(), "recovered": subscription.recovered}
        context.WriteText(id, json.dumps({"channel": channel, "position": subscription.position, **joined}))

    def deliver(self, context, ids, publication):
        """Send what has arrived to those who have subscribed."""
        told = {"channel": publication.channel, "position": publication.position}
        if isinstance(publication, Gap):
            context.Broadcast(ids, json.dumps({**told, "gap": publication.missed}))
            return
        message = json.loads(publication.message)
        if "logout" in message:
            for id in ids:
                if self._logins[id] == message["logout"]:
                    context.Close(id, LOGGED_OUT, "logged out")
            return
        context.Broadcast(ids, json.dumps({**told, "notice": message}))

    def beat(self, context):
        context.AfterFunc(BEAT, self.beat)
        context.Broadcast(self._logins, json.dumps({"beat": os.getpid()}))
        for channel, ids in self._present.items():
            if ids:  # one question for each room, however many of its people are here
                self.channels.Members(channel, partial(self._tell_members, channel))

    def _tell_members(self, channel, context, members, error):
        if error is None:  # else Redis is away, and the page shows who was there
            context.Broadcast(self._present[channel], json.dumps({"channel": channel, "members": members}))
