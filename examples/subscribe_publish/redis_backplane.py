"""What joins any number of relays into one: each channel is a Redis stream, which all of them read in its order.

A publish is appended to its channel's stream, and acknowledged when Redis has answered. What clients get is only ever
what was read back from the stream, so that everybody has the same order. docs/scaling-out.md says what is guaranteed.

Two threads talk to Redis, each over a connection of its own, so that neither waits for the loop and the loop waits for
neither; `Post` is all that leads back into the loop. The *writer* sends what the loop asks for, in batches and in
order. The *reader* reads the channels that are followed, each from the position up to which it has been read.

The file is long because the loop's side and the two threads share what only together is understood.

Invariants: at most one batch is under way. Batches are numbered, and the script that applies one notes its number and
its answers in the same step; so a batch can be sent again after a lost connection, and is applied once. A `Followed`
belongs to one stretch of interest in a channel; what was read for an earlier one is thrown away.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, urlsplit

import redis
from backplane import AWAY, REFUSED, TOO_MANY, UNKNOWN, Position
from redis.backoff import NoBackoff
from redis.retry import Retry

import gowsev

logger = logging.getLogger("relay")

PREFIX = b"gowsev:relay:"

#: Redis waits so long, in seconds, before it answers that there is nothing; that is also how an idle node notices that
#: Redis does not answer any more.
BLOCK = 1.0
#: Seconds for Redis to answer.
ANSWER = 3.0
#: Seconds for which a batch whose connection was lost is sent again, before its publishers are told that nobody knows.
PATIENCE = 5.0
#: Seconds between attempts to connect, at first and at most.
FIRST_RETRY, LAST_RETRY = 0.05, 1.0
#: Seconds after the last publish at which Redis forgets a channel's stream.
EXPIRY = 3600

#: Operations that may wait for Redis, and the bytes of their bodies; beyond, they are refused.
MAX_WAITING, MAX_WAITING_BYTES = 10_000, 16 << 20
#: What one batch holds at most (one body may be longer).
BATCH, BATCH_BYTES = 256, 1 << 20
#: The reader pauses while so many bytes that it has read are still to be delivered: the stream keeps the rest.
AHEAD_BYTES = 16 << 20
#: After a pause, so many channels are read at a time, and so many messages of each: that bounds one answer.
CATCH_UP_CHANNELS, CATCH_UP_MESSAGES = 16, 4

#: Applies one batch. KEYS: the session, the reader's wake-up stream, and a stream for each operation. ARGV: the batch's
#: number, MAXLEN, the expiry, and for each operation "publish", "locate" or "wake", and a body. Its answers: an id for
#: a publish; for a locate, the last id and how many were ever added; after a "!", what went wrong.
SCRIPT = """
local done = redis.call('HMGET', KEYS[1], 'number', 'answers')
if done[1] and tonumber(done[1]) >= tonumber(ARGV[1]) then
  if done[1] == ARGV[1] and done[2] then return cjson.decode(done[2]) end
  return redis.error_reply('STALE batch ' .. ARGV[1])
end
redis.call('HSET', KEYS[1], 'number', ARGV[1])
redis.call('HDEL', KEYS[1], 'answers')
redis.call('EXPIRE', KEYS[1], ARGV[3])
local answers = {}
for i = 3, #KEYS do
  local operation, body, answer = ARGV[2 * i - 2], ARGV[2 * i - 1], ''
  if operation == 'publish' then
    answer = redis.pcall('XADD', KEYS[i], 'MAXLEN', '~', ARGV[2], '*', 'b', body)
    if type(answer) == 'table' then answer = '!' .. answer['err']
    else redis.call('EXPIRE', KEYS[i], ARGV[3]) end
  elseif operation == 'locate' then
    answer = '0-0 0'
    if redis.call('EXISTS', KEYS[i]) == 1 then
      local about = redis.pcall('XINFO', 'STREAM', KEYS[i])
      if about['err'] then answer = '!' .. about['err']
      else
        local fields = {}
        for j = 1, #about, 2 do fields[about[j]] = about[j + 1] end
        answer = fields['last-generated-id'] .. ' ' .. string.format('%d', fields['entries-added'])
      end
    end
  else
    redis.call('XADD', KEYS[2], 'MAXLEN', '1', '*', 'w', '')
    redis.call('EXPIRE', KEYS[2], ARGV[3])
  end
  answers[#answers + 1] = answer
end
redis.call('HSET', KEYS[1], 'answers', cjson.encode(answers))
return answers
"""

#: Options of a URL that would change what is read here.
OURS = {"decode_responses", "protocol", "socket_connect_timeout", "socket_timeout"}
#: What a URL that is not understood may lack. Errors repeat nothing of it: any part could be one of a password.
ENCODE = "in a name and a password, @ / ? # % [ ] are percent-encoded, such as %2F for /"
#: What a call of Redis fails with; `redis` does not wrap everything that a socket raises.
FAILED = (redis.RedisError, OSError)
#: What a message costs besides its body, in the count of what the reader is ahead.
OVERHEAD = 200


class Followed:
    """A channel that is read, and how far it has been read. The reader's, but for its being there."""

    __slots__ = ("added", "channel", "id", "key")

    def __init__(self, channel: bytes, position: Position) -> None:
        self.channel = channel
        self.key = stream(channel)
        self.id, self.added = position


class Operation(NamedTuple):
    """What the writer is asked to do; `done(answer, error)` is called in the loop, one of the two being `None`."""

    kind: bytes
    channel: bytes
    body: bytes
    done: Callable[[bytes | None, str | None], object]


class _LoopEnded(Exception):
    """The context has been shut down, and nobody is left to talk to."""


class RedisBackplane:
    """The connection of one relay process to all others.

    Its methods are for the loop's greenlet, and do not block.

    Args:
        url: as `redis.Redis.from_url` takes it.
        arrived: called as `arrived(context, channel, body)` in the loop, for each message of a channel followed.
        max_length: entries that a stream keeps, about.

    Raises:
        ValueError: `url` is none that `redis` understands, or would be understood in part only.
    """

    def __init__(
        self, url: str, arrived: Callable[[gowsev.Context, bytes, bytes], object], max_length: int = 10_000
    ) -> None:
        parts = _split(url)
        #: For the log: without name, password and options.
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._arrived = arrived
        self._max_length = max_length
        session = secrets.token_hex(8).encode()
        self._session, self._wake = PREFIX + b"session:" + session, PREFIX + b"wake:" + session
        self._clients = [_client(url, ANSWER), _client(url, BLOCK + ANSWER)]
        self._password = self._clients[0].connection_pool.connection_kwargs.get("password")
        self._script = self._clients[0].register_script(SCRIPT)
        self._context: gowsev.Context | None = None
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

        #: Of the two threads, which have no connection, and why.
        self._down: dict[str, str] = {"writer": "not connected yet", "reader": "not connected yet"}
        self._since = time.monotonic()
        self._told = False
        self.connects = 0
        self.lost = 0
        """Messages that Redis had trimmed before this process read them."""

        # Shared with the writer, under its condition.
        self._waiting: deque[Operation] = deque()
        self._asked = threading.Condition()
        # The writer's own.
        self._refusals: set[str] = set()
        # The loop's own: what waits or is under way.
        self.pending = 0
        self._pending_bytes = 0
        self._waking = False

        # Shared with the reader, under its condition.
        self._followed: dict[bytes, Followed] = {}
        self._ahead = 0
        self._room = threading.Condition()
        # The loop's own: channels being located, and what has arrived for them meanwhile.
        self._locating: Counter[bytes] = Counter()
        self._held: dict[bytes, list[tuple[Followed, bytes]]] = {}

    # -- for the loop --------------------------------------------------------------------------------------------

    def start(self, context: gowsev.Context) -> None:
        """Begin to connect; everything comes back through `context.Post`."""
        self._context = context
        for name, run in (("writer", self._write), ("reader", self._read)):
            thread = threading.Thread(target=self._run, args=(name, run), name=f"backplane-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """End both threads. Blocks until they have ended, for at most as long as Redis may take to answer."""
        self._closing.set()
        for condition in (self._asked, self._room):
            with condition:
                condition.notify_all()
        for thread in self._threads:
            thread.join(BLOCK + ANSWER)
        for client in self._clients:
            client.close()

    @property
    def away(self) -> str:
        """Why there is no connection to Redis; empty if there is one."""
        return next(iter(self._down.values()), "")

    def publish(self, channel: bytes, body: bytes, done: Callable[[str | None], object]) -> str | None:
        """Append a message to a channel.

        Returns:
            Why that is refused at once; else `None`, and `done(error)` follows.
        """
        return self._ask(Operation(b"publish", channel, body, lambda _, error: done(error)))

    def locate(self, channel: bytes, done: Callable[[Position | None, str | None], object]) -> str | None:
        """Find the end of a channel. What is published by whoever is asked to later comes behind it.

        Messages of the channel are held back until `done(position, error)` has returned.

        Returns:
            Why that is refused at once; else `None`, and `done` follows.
        """

        def located(answer: bytes | None, error: str | None) -> None:
            if answer is None:  # a position that is not known is none: nothing was changed by asking
                done(None, AWAY if error == UNKNOWN else error)
                return
            id, added = answer.split()
            done(Position(id, int(added)), None)

        error = self._ask(Operation(b"locate", channel, b"", located))
        if error is None:
            self._locating[channel] += 1
        return error

    def follow(self, channel: bytes, position: Position) -> None:
        """Read a channel from a position on, unless it is followed already."""
        if channel not in self._followed:
            with self._room:
                self._followed[channel] = Followed(channel, position)
            if not self._waking:  # the reader may be waiting for other channels
                self._waking = True
                self._enqueue(Operation(b"wake", b"", b"", self._woken))

    def _woken(self, _answer: bytes | None, _error: str | None) -> None:
        self._waking = False

    def follows(self, channel: bytes) -> bool:
        """Tell whether a channel is being read."""
        return channel in self._followed

    def unfollow(self, channel: bytes) -> None:
        """Read a channel no longer."""
        with self._room:
            self._followed.pop(channel, None)

    # -- the loop's side of the two threads ----------------------------------------------------------------------

    def _ask(self, operation: Operation) -> str | None:
        if self._down:
            return AWAY
        if self.pending >= MAX_WAITING or self._pending_bytes > MAX_WAITING_BYTES:
            return TOO_MANY
        self._enqueue(operation)
        return None

    def _enqueue(self, operation: Operation) -> None:
        self.pending += 1
        self._pending_bytes += len(operation.body)
        with self._asked:
            self._waiting.append(operation)
            self._asked.notify()

    def _settle(self, context: gowsev.Context, batch: list[Operation], answers: Iterable[bytes | str]) -> None:
        """Pass the answers of a batch on: bytes are Redis's, a str is an error."""
        for operation, answer in zip(batch, answers, strict=True):
            self.pending -= 1
            self._pending_bytes -= len(operation.body)
            if isinstance(answer, str):
                operation.done(None, answer)
            else:
                operation.done(answer, None)
            if operation.kind == b"locate":
                self._release(context, operation.channel)

    def _release(self, context: gowsev.Context, channel: bytes) -> None:
        self._locating[channel] -= 1
        if not self._locating[channel]:
            del self._locating[channel]
            for followed, body in self._held.pop(channel, ()):
                self._deliver(context, followed, body)

    def _deliver(self, context: gowsev.Context, followed: Followed, body: bytes) -> None:
        """Pass one message on, which the reader has read."""
        channel = followed.channel
        if channel in self._locating:
            self._held.setdefault(channel, []).append((followed, body))
            return
        with self._room:
            self._ahead -= len(body) + OVERHEAD
            self._room.notify()
        if self._followed.get(channel) is followed:
            self._arrived(context, channel, body)

    def _report(self, _context: gowsev.Context, who: str, error: str | None) -> None:
        """Note how one of the threads fares; say it when that changes how both do."""
        if error is not None:
            if not self._down:
                self._since = time.monotonic()
            self._down[who] = error
            if not self._told:
                self._told = True
                logger.error("The backplane %s is away: %s", self.shown, error, extra={"backplane": "away"})
        elif self._down.pop(who, None) and not self._down:
            self._told = False
            self.connects += 1
            seconds = time.monotonic() - self._since
            logger.info("The backplane %s is there, after %.1f s", self.shown, seconds, extra={"backplane": "up"})

    def _count_lost(self, _context: gowsev.Context, channel: bytes, number: int) -> None:
        self.lost += number
        logger.error(
            "Lost %d messages of channel %r: this process was too far behind, and Redis had trimmed them", number,
            channel[:100], extra={"lost": number},
        )  # fmt: skip

    # -- both threads --------------------------------------------------------------------------------------------

    def _run(self, name: str, run: Callable[[], None]) -> None:
        try:
            try:
                run()
            except _LoopEnded:
                raise
            except Exception:
                # An error of ours. Nobody is told OK any more, and the health page says why.
                logger.exception("The backplane's %s failed", name)
                self._post(self._report, name, f"the {name} failed; see the log")
        except _LoopEnded:
            logger.debug("The backplane's %s ended with the loop", name)

    def _post(self, callback: Callable[..., object], *arguments: Any) -> None:
        assert self._context is not None, "there are no threads before `start`"
        try:
            self._context.Post(callback, *arguments)
        except RuntimeError as error:
            raise _LoopEnded from error

    def _pause(self, attempt: int) -> None:
        """Wait before the next attempt to connect; many processes should not come at once."""
        delay = min(FIRST_RETRY * 2 ** min(attempt, 10), LAST_RETRY)
        self._closing.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311

    def _describe(self, error: Exception) -> str:
        """One line that says what is wrong, without what Redis repeats of a command: a password, or messages."""
        text = " ".join(str(error).partition(", with args")[0].split())
        if self._password:
            text = text.replace(self._password, "...")
        return text or type(error).__name__

    # -- the writer ----------------------------------------------------------------------------------------------

    def _write(self) -> None:
        number, attempt, connected, sent = 0, 0, False, False
        batch: list[Operation] = []
        deadline = 0.0
        while not self._closing.is_set():
            try:
                if not connected:
                    self._clients[0].ping()
                    connected = True
                    attempt = 0
                    self._post(self._report, "writer", None)
                if not batch:
                    batch = self._take()
                    number += 1
                    sent = False
                    deadline = time.monotonic() + PATIENCE
                if batch:
                    sent = True
                    self._post(self._settle, batch, self._apply(number, batch))
                    batch = []
            except FAILED as error:
                connected = False
                # What waits is refused now; what was sent may have been applied, and is sent again as it was.
                self._post(self._report, "writer", self._describe(error))
                if batch and time.monotonic() > deadline:
                    self._post(self._settle, batch, [UNKNOWN if sent else AWAY] * len(batch))
                    batch = []
                waiting = self._take_waiting()
                self._post(self._settle, waiting, [AWAY] * len(waiting))
                self._pause(attempt)
                attempt += 1

    def _take(self) -> list[Operation]:
        """Wait for operations; return as many as go into a batch."""
        batch: list[Operation] = []
        size = 0
        with self._asked:
            self._asked.wait_for(lambda: self._waiting or self._closing.is_set())
            while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size += len(batch[-1].body)
        return batch

    def _take_waiting(self) -> list[Operation]:
        with self._asked:
            waiting = list(self._waiting)
            self._waiting.clear()
        return waiting

    def _apply(self, number: int, batch: list[Operation]) -> list[bytes | str]:
        """Let Redis apply a batch, if it has not yet; return its answers.

        Raises:
            FAILED: it may have been applied, or not.
        """
        keys = [self._session, self._wake, *(stream(operation.channel) for operation in batch)]
        arguments: list[Any] = [number, self._max_length, EXPIRY]
        for operation in batch:
            arguments += [operation.kind, operation.body]
        try:
            answers = self._script(keys, arguments)
        except redis.ResponseError as error:  # nothing was applied: no memory, no permission, a read-only replica
            answers = [b"!" + self._describe(error).encode()] * len(batch)
        refusals = {answer[1:].decode("utf-8", "replace") for answer in answers if answer.startswith(b"!")}
        if refusals - self._refusals:  # each is said once, until Redis takes a whole batch again
            logger.error("Redis refuses: %s", "; ".join(sorted(refusals)))
        self._refusals = (refusals | self._refusals) if refusals else refusals
        return [REFUSED if answer.startswith(b"!") else answer for answer in answers]

    # -- the reader ----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        client = self._clients[1]
        woken, attempt, connected, behind = b"0-0", 0, False, True
        while not self._closing.is_set():
            behind = self._wait_for_room() or behind
            with self._room:
                followed = list(self._followed.values())
            try:
                if not connected:
                    client.ping()
                    connected = True
                    attempt = 0
                    self._post(self._report, "reader", None)
                if behind:
                    behind = self._catch_up(client, followed)
                    continue
                count = max(CATCH_UP_MESSAGES, BATCH // (len(followed) + 1))
                ids = [woken, *(one.id for one in followed)]
                answer = client.execute_command(
                    "XREAD", "COUNT", count, "BLOCK", int(BLOCK * 1000), "STREAMS", self._wake,
                    *(one.key for one in followed), *ids,
                )  # fmt: skip
                answer = dict(answer or ())
                if self._wake in answer:
                    woken = answer[self._wake][-1][0]
                full = [one for one in followed if self._pass_on(one, answer.get(one.key, ())) >= count]
                self._check(client, full)
            except FAILED as error:
                connected, behind = False, True
                self._post(self._report, "reader", self._describe(error))
                self._pause(attempt)
                attempt += 1

    def _wait_for_room(self) -> bool:
        """Wait until the loop has delivered enough; return whether that took a wait."""
        with self._room:
            if self._ahead <= AHEAD_BYTES:
                return False
            self._room.wait_for(lambda: self._ahead <= AHEAD_BYTES // 2 or self._closing.is_set())
        return True

    def _catch_up(self, client: redis.Redis, followed: list[Followed]) -> bool:
        """Read once what there is, a few channels at a time; return whether there may be more."""
        more = False
        for start in range(0, len(followed), CATCH_UP_CHANNELS):
            part = followed[start : start + CATCH_UP_CHANNELS]
            self._wait_for_room()
            self._check(client, part)
            command = ["XREAD", "COUNT", CATCH_UP_MESSAGES, "STREAMS"]
            answer = dict(client.execute_command(*command, *(one.key for one in part), *(one.id for one in part)) or ())
            for one in part:
                more |= self._pass_on(one, answer.get(one.key, ())) >= CATCH_UP_MESSAGES
        return more

    def _pass_on(self, followed: Followed, entries: Iterable[Any]) -> int:
        """Post what was read of one channel; return how many that were."""
        number = 0
        for id, fields in entries:
            body = fields[1]
            with self._room:
                self._ahead += len(body) + OVERHEAD
            self._post(self._deliver, followed, body)
            followed.id = id
            number += 1
        followed.added += number
        return number

    def _check(self, client: redis.Redis, followed: list[Followed]) -> None:
        """Find out whether Redis has trimmed what was not read yet."""
        if not followed:
            return
        pipeline = client.pipeline(transaction=False)
        for one in followed:
            pipeline.execute_command("XINFO STREAM", one.key)
        for one, about in zip(followed, pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(about, redis.ResponseError):  # there is no stream (any more), and so nothing in it
                continue
            if isinstance(about, Exception):
                raise about
            fields = dict(zip(about[::2], about[1::2], strict=True))
            added = int(fields[b"entries-added"])
            trimmed = added - int(fields[b"length"])
            if added < one.added:  # Redis had forgotten the stream, and it began anew
                one.added = 0
            if trimmed > one.added:
                self._post(self._count_lost, one.channel, trimmed - one.added)
                one.added = trimmed


def _client(url: str, timeout: float) -> redis.Redis:
    """Return a client of one connection, which fails at once where `redis` would try again by itself."""
    client = redis.Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=ANSWER, retry=Retry(NoBackoff(), 0), protocol=2
    )
    _check(_split(url), client.connection_pool)
    # The answers as they came.
    for command in ("XREAD", "XINFO STREAM"):
        client.set_response_callback(command, lambda answer, **_options: answer)
    return client


def _split(url: str) -> SplitResult:
    """Take a URL apart.

    Raises:
        ValueError: it is none, or a name or password in it may have been cut; the text repeats nothing of it.
    """
    try:
        url.encode()
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"its host or port is not understood; {ENCODE}") from None  # urllib's texts repeat it
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("it begins with redis://, rediss:// or unix://")
    # What stands before the host's @ ends at the first of these three, and what is left could pass for a path.
    behind = f"{parts.path}?{parts.query}#{parts.fragment}"
    if parts.fragment or ("@" in behind and (parts.scheme != "unix" or parts.netloc)):
        raise ValueError(f"the @ before the host stands too far behind, or there is a #; {ENCODE}")
    if parts.scheme == "unix" and host:
        raise ValueError(f"in unix:// a path follows, or NAME:PASSWORD@ and a path; {ENCODE}")
    if port is not None and not host:
        raise ValueError(f"there is no host before the port; {ENCODE}")
    if "%" in host and ":" not in host:
        raise ValueError(f"its host is not understood: the @ before it is not percent-encoded; {ENCODE}")
    return parts


def _check(parts: SplitResult, pool: redis.ConnectionPool) -> None:
    """Look for what is wrong with a URL, and what `redis` passes over, or finds out only when it connects.

    Raises:
        ValueError: there is something.
    """
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError(f"a database is a number, not {database!r}")
    if ours := OURS.intersection(parse_qs(parts.query)):
        raise ValueError(f"{', '.join(sorted(ours))} cannot be chosen")
    try:
        pool.connection_class(**pool.connection_kwargs)  # does not connect yet
    except (TypeError, redis.RedisError) as error:
        raise ValueError(f"what stands behind the ? is not understood: {error}") from error


def stream(channel: bytes) -> bytes:
    """The key of a channel's stream."""
    return PREFIX + b"channel:" + channel
