"""What becomes of messages when Redis is killed, when a client goes and comes back, and in which order they come."""

import time

from channel_clients import DELIVERED, PUBLISHED
from channel_loads import ChannelLoad
from wire import WireError

CHANNEL = "channel.0"
#: Seconds for which Redis is away.
REDIS_AWAY = 1.0
#: Messages a second while Redis is killed.
RATE = 500
#: Nothing more comes after so many seconds of silence; nor after so many seconds in all.
SILENCE, LONGEST = 3.0, 25.0
#: Seconds in which something would come twice, once all has come.
LITTLE = 0.5
#: Seconds between attempts of a client whose connection the server has closed.
AGAIN = 0.2


class Trial(ChannelLoad):
    """Subscribers of one channel and publishers, who note what they are told."""

    def __init__(self, fleet, subscribers, publishers):
        super().__init__(fleet)
        self.stored, self.refused, self.under_way = [], 0, {}
        self.ended, self.try_again, self.last = [], 0.0, time.perf_counter()
        self.subscribers = [self.open(process) for process in self.processes for _ in range(subscribers)]
        self.subscribe({client: [CHANNEL] for client in self.subscribers})
        self.publishers = [self.open(process) for process in self.processes for _ in range(publishers)]

    def publish(self, client, text):
        if client in self.ended:  # it is about to come back
            self.refused += 1
            return
        number = next(self.numbers)
        self.under_way[number] = (client, text)
        self.send(client, client.publish(CHANNEL, text, number))

    def told(self, client, kind, value):
        self.last = time.perf_counter()
        if kind is DELIVERED:
            client.heard.append(value)
        else:
            _, text = self.under_way.pop(value)
            if kind is PUBLISHED:
                self.stored.append(text)
            else:
                self.refused += 1

    def closed(self, client):
        """Note that a client has to come back."""
        self.drop(client)
        self.ended.append(client)

    def come_back(self):
        """Let those come back whose connections have ended."""
        now = time.perf_counter()
        if not self.ended or now < self.try_again:
            return
        self.try_again = now + AGAIN
        ended, self.ended = self.ended, []
        for client in ended:
            try:
                self.return_to(client, client.process)
            except (OSError, WireError):  # the server does not accept it now
                self.ended.append(client)

    def return_to(self, client, process):
        """Let a client come back to a process, and subscribe again where that has to be."""
        returned = self.open(process, client)
        for role in (self.subscribers, self.publishers):
            if client in role:
                role[role.index(client)] = returned
        if returned in self.subscribers and not returned.recovered:
            self.send(returned, returned.subscribe(CHANNEL, next(self.numbers)))
        return returned

    def until_silence(self, seconds=SILENCE):
        """Go on until all that is stored has come, and a bit longer, or until nothing has come for so long."""
        begin = self.last = time.perf_counter()
        while True:
            now = time.perf_counter()
            end = min(self.last + (LITTLE if self.complete() else seconds), begin + LONGEST)
            if now >= end:
                return
            self.come_back()
            self.turn(min(0.1, end - now))

    def complete(self):
        """Whether all publishes are answered, and every subscriber has what is stored."""
        return not self.under_way and all(set(self.stored) <= set(client.heard) for client in self.subscribers)

    def doubled(self):
        return sum(len(client.heard) - len(set(client.heard)) for client in self.subscribers)


def kill(fleet, arguments):
    """Publish at a fixed rate, and kill Redis in the middle of it."""
    trial = Trial(fleet, subscribers=2, publishers=1)
    begin = time.perf_counter()
    kill_at = begin + arguments.messages / RATE / 3
    steps = [(kill_at, fleet.redis.kill), (kill_at + REDIS_AWAY, fleet.redis.start)]

    def until(due):
        while (now := time.perf_counter()) < due:
            trial.turn(due - now)
        trial.come_back()
        while steps and now >= steps[0][0]:
            steps.pop(0)[1]()

    for i in range(arguments.messages):
        until(begin + i / RATE)
        trial.publish(trial.publishers[i % len(trial.publishers)], f"{i:06}".ljust(64, "x"))
    until(kill_at + REDIS_AWAY)
    fleet.redis.wait()
    trial.until_silence()
    lost = {text for client in trial.subscribers for text in set(trial.stored) - set(client.heard)}
    return {
        "lost": len(lost),
        "acknowledged": len(trial.stored),
        "refused": trial.refused,
        "unanswered": len(trial.under_way),
        "doubled": trial.doubled(),
    }


def back(fleet, arguments):
    """Let a client go and come back, twice without a message between."""
    trial = Trial(fleet, subscribers=1, publishers=1)
    away, publisher = trial.subscribers[0], trial.publishers[-1]
    got = []
    for i in range(5):
        trial.publish(publisher, f"before {i}")
    trial.until_silence(0.5)
    for times in range(2):
        trial.drop(away)
        back_at = time.perf_counter() + arguments.away
        missed = [f"missed {times} {i}" for i in range(arguments.messages)]
        for text in missed:
            trial.publish(publisher, text)
        trial.wait(lambda back_at=back_at: time.perf_counter() > back_at, arguments.away + 1)
        away = trial.return_to(away, away.process + 1)
        trial.until_silence(1.0)
        got.append(len(set(missed) & set(away.heard)) / len(missed))
    return {"first": got[0], "second": got[1], "doubled": trial.doubled()}


def order(fleet, arguments):
    """Let clients of all processes publish to one channel, a few messages at a time each."""
    trial = Trial(fleet, subscribers=4, publishers=4)
    texts = iter([f"{i:06}".ljust(64, "x") for i in range(arguments.messages)])
    while trial.last > time.perf_counter() - SILENCE:
        under_way = [client for client, _ in trial.under_way.values()]
        batch = [client for client in trial.publishers for _ in range(8 - under_way.count(client))]
        for client, text in zip(batch, texts, strict=False):
            trial.publish(client, text)
        if len(batch) == 8 * len(trial.publishers) and not trial.under_way:
            break
        trial.turn(0.5)
    trial.until_silence(1.5)
    sequences = {tuple(client.heard) for client in trial.subscribers}
    missing = sum(len(set(trial.stored) - set(client.heard)) for client in trial.subscribers)
    return {"orders": len(sequences), "missing": missing, "doubled": trial.doubled()}
