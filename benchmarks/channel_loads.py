"""Loads of clients that publish and subscribe, and what comes of them."""

import itertools
import time

from channel_clients import CLOSED, DELIVERED, PUBLISHED, SUBSCRIBED
from driver import WARM_UP, Load
from wire import WireError

#: Subscriptions of a client that are asked for at once.
AT_ONCE = 20
#: Seconds in which all of these must be answered, and a client greeted.
PATIENCE = 60.0
#: Seconds for which what is measured waits at most until each channel has had its first message.
FIRST_MESSAGES = 20.0


class ChannelLoad(Load):
    """Clients of a fleet.

    Args:
        fleet: as in `channel_servers`.
    """

    def __init__(self, fleet):
        super().__init__()
        self.fleet = fleet
        self.processes = range(len(fleet.ports))
        self.numbers = itertools.count(1)

    def open(self, process, earlier=None):
        """Return a new client of a process, once it may subscribe and publish."""
        client = self.fleet.client(process, earlier)
        client.process, client.subscribed = process, set()
        client.heard = earlier.heard if earlier else []
        self.add(client)
        self.received(client, client.events)
        self.wait(lambda: client.ready, PATIENCE, "greeting")
        return client

    def drop(self, client):
        """End a client as a lost network does."""
        del self.connections[client.sock.fileno()]
        self.epoll.unregister(client.sock)
        client.abort()

    def subscribe(self, channels):
        """Subscribe clients; `channels` is a dict from client to a list of them."""
        for first in range(0, max(map(len, channels.values())), AT_ONCE):
            asked = {client: names[first : first + AT_ONCE] for client, names in channels.items()}
            for client, names in asked.items():
                if names:
                    self.send(client, b"".join(client.subscribe(name, next(self.numbers)) for name in names))

            def all_answered(asked=asked):
                return all(name in client.subscribed for client, names in asked.items() for name in names)

            self.wait(all_answered, PATIENCE, "answer to a subscription")

    def wait(self, condition, seconds, what=None):
        """Go on until a condition holds, or for so long; return whether it does.

        Raises:
            WireError: it does not, and there is a name for it.
        """
        deadline = time.perf_counter() + seconds
        while not condition():
            left = deadline - time.perf_counter()
            if left <= 0:
                if what:
                    raise WireError(f"lost: no {what} within {seconds} s")
                return False
            self.turn(min(left, 0.2))
        return True

    def received(self, client, events):
        for kind, value in events:
            if kind is SUBSCRIBED:
                client.subscribed.add(value)
            elif kind is CLOSED:
                self.closed(client)
                return
            else:
                self.told(client, kind, value)

    def told(self, client, kind, value):
        """A message has been delivered, or a publish answered."""
        raise NotImplementedError


class Lane:
    """Publishes of one client, so many at a time; the next follow when all of these are stored and delivered."""

    def __init__(self, client, channels, depth):
        self.client, self.channels, self.depth = client, channels, depth
        self.next = 0  # the number of its next message
        self.first = 0  # that of the first of those that are under way
        self.missing = 0


class Publishing(ChannelLoad):
    """Publishers and subscribers under a load that keeps itself going.

    The subscribers of a channel are spread over the processes, and so are the channels and the publishers.

    Args:
        fleet: the servers.
        channels: how many.
        connections: how many clients of each process share its subscriptions.
        subscribers: of each channel.
        publishers: how many clients publish.
        depth: how many messages each of these has under way.
    """

    def __init__(self, fleet, channels, connections, subscribers, publishers, depth, size=64):
        super().__init__(fleet)
        self.stall = 3.0
        self.lost = self.disorder = self.published = 0
        self.size = size
        names = [f"channel.{i}" for i in range(channels)]
        clients = [[self.open(process) for _ in range(connections)] for process in self.processes]
        wanted = {client: [] for several in clients for client in several}
        for i, name in enumerate(names):
            for j in range(subscribers):
                turn, process = divmod(i + j, len(clients))
                wanted[clients[process][turn % connections]].append(name)
        self.subscribe(wanted)
        self.deliveries = subscribers
        self.channels = channels
        self.lanes = []
        for i in range(publishers):
            first = i * channels // publishers  # so that no two publish to one channel at a time, where there are many
            self.lanes.append(Lane(self.open(i), itertools.cycle(names[first:] + names[:first]), depth))
        self.by_number = {}

    def start(self):
        for number in range(len(self.lanes)):
            self.send_batch(number)

    def send_batch(self, number):
        lane = self.lanes[number]
        lane.begin = time.perf_counter()
        lane.first = lane.next
        lane.missing = lane.depth * (self.deliveries + 1)
        frames = []
        for _ in range(lane.depth):
            text = f"{number:03} {lane.next:08} ".ljust(self.size, "x")
            ticket = next(self.numbers)
            self.by_number[ticket] = number
            frames.append(lane.client.publish(next(lane.channels), text, ticket))
            lane.next += 1
        self.send(lane.client, b"".join(frames))

    def told(self, client, kind, value):
        if kind is DELIVERED:
            number, position = int(value[:3]), int(value[4:12])
            lane = self.lanes[number]
            self.completed += 1
            self.disorder += position <= client.seen.get(number, -1)
            client.seen[number] = position
            late = position < lane.first
        elif kind is PUBLISHED:
            self.published += 1
            number = self.by_number.pop(value)
            lane, late = self.lanes[number], False
        else:
            raise WireError(f"{kind}: a publish of {value}")
        if late or not lane.missing:  # given up meanwhile
            return
        lane.missing -= 1
        if not lane.missing:
            self.times.append(time.perf_counter() - lane.begin)
            if self.sending:
                self.send_batch(number)

    def missing(self):
        return sum(lane.missing for lane in self.lanes)

    def stalled(self):
        """Count what is lost, and go on without it."""
        self.lost += self.missing()
        for number, lane in enumerate(self.lanes):
            lane.missing = 0
            if self.sending:
                self.send_batch(number)


def measure(load, fleet, seconds):
    """Let publishers and subscribers run; return what a delivery and a publish cost, in microseconds."""
    load.start()
    load.pump(max(seconds * WARM_UP, fleet.peer.warm_up))
    # What a channel's first message costs, which may make something in Redis, is not what the others do.
    late = time.perf_counter() + FIRST_MESSAGES
    while load.published < load.channels and time.perf_counter() < late:
        load.pump(seconds * WARM_UP)
    load.times.clear()
    before, begin, completed, published = fleet.cpu(), time.perf_counter(), load.completed, load.published
    load.pump(seconds)
    took = time.perf_counter() - begin
    servers, redis = (now - then for now, then in zip(fleet.cpu(), before, strict=True))
    completed, published = load.completed - completed, load.published - published
    load.finish()
    return {
        "delivery_us": servers * 1e6 / completed,
        "publish_us": servers * 1e6 / published,
        "redis_us": redis * 1e6 / published,
        "both_us": (servers + redis) * 1e6 / published,
        "per_second": published / took,
        "busy": (servers + redis) / took,
        "lost": load.lost,
        "disorder": load.disorder,
    }
