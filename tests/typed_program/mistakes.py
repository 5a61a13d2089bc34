"""Mistakes that gowsev's types find: each line that says so must be an error to that checker. It is read, never run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gowsev

if TYPE_CHECKING:
    from gowsev.testing import Recorder

context = gowsev.MakeContext(gowsev.Handler())

# -- listening ---------------------------------------------------------------------------------------------------------

context.ListenAndServeTLS(9001)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
context.ListenAndServeTLS(9001, "cert.pem")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]

# -- handlers ----------------------------------------------------------------------------------------------------------


class ThreeOfFour:
    def ConnAccepted(self, context: gowsev.Context, id: int) -> None: ...
    def ConnClosed(self, context: gowsev.Context, id: int) -> None: ...
    def MessageReceived(self, context: gowsev.Context, id: int, message: bytes) -> None: ...


class TextIsNoMessage(ThreeOfFour):
    def EventLoopTimeout(self, context: gowsev.Context) -> None: ...
    def MessageReceived(self, context: gowsev.Context, id: int, message: str) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


gowsev.MakeContext(ThreeOfFour())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gowsev.MakeContext(TextIsNoMessage())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gowsev.MakeContext(gowsev.Handler)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gowsev.MakeContext(gowsev.Handler(), {"backlog": 5})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class WithoutContext(gowsev.Handler):
    def MessageReceived(self, id: int, message: bytes) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


class OptionalOnesToo(gowsev.Handler):
    def TextReceived(self, context: gowsev.Context, id: int, text: bytes) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
    def ConnRequested(self, context: gowsev.Context, request: gowsev.Request) -> bool: ...  # type: ignore[override,empty-body]  # pyright: ignore[reportIncompatibleMethodOverride]


# -- writing -----------------------------------------------------------------------------------------------------------

context.Write(1, "text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.WriteText(1, b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.WriteStream(1, ["text"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
context.WriteTextStream(1, [b"bytes"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
context.Write("1", b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.Broadcast(1, b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.Write(1, b"bytes").id  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue, reportUnknownMemberType]
context.Conn(1).path  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]

# -- calls and timers --------------------------------------------------------------------------------------------------


def publish(context: gowsev.Context, channel: str, body: bytes) -> None: ...


context.Post(publish, "weather")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.Post(publish, "weather", "rain")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.Post(publish, "weather", b"rain", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.Post(publish(context, "weather", b"rain"))  # type: ignore[func-returns-value,arg-type]  # pyright: ignore[reportArgumentType]
context.AfterFunc(1.5, publish, b"weather", b"rain")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
context.AfterFunc(None, publish, "weather", b"rain")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# -- the rest ----------------------------------------------------------------------------------------------------------

gowsev.Options(slow_consumer="disconnect")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gowsev.Options(maximum_connections=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gowsev.Options().backlog = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
gowsev.Dial("ws://localhost/", 10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gowsev.Dial("ws://localhost/").WriteMessage("hello")  # type: ignore[call-arg,arg-type]  # pyright: ignore[reportCallIssue]
gowsev.Dial("ws://localhost/", proxy=False)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def failed(context: gowsev.Context, error: str, pause: float) -> None: ...


gowsev.Redial(context, "ws://localhost/", failed=failed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def misspelt(door: Recorder[gowsev.Handler]) -> None:
    door.wait_for("ConnectionAccepted")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    door.handler.welcome  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
