"""Who may connect, and what they may do: tokens, by connection."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokens import Token
    from websockets.datastructures import Headers

logger = logging.getLogger("relay")

#: A browser can't send a header of its own with a WebSocket. So it offers, besides the subprotocol that it speaks, the
#: token behind this in base64url without padding.
TOKEN_PREFIX = "token."  # noqa: S105
GONE = "the token is no longer valid"


class Access:
    """The tokens, and who came in with which.

    Args:
        tokens: those that let a client in; empty for anyone.
    """

    def __init__(self, tokens: tuple[Token, ...] = ()) -> None:
        self.tokens = tokens
        self._token_of: dict[int, Token] = {}
        self._said: set[tuple[int, str]] = set()
        """Connections and commands of which the log has it that they are not allowed."""

    def token(self, secret: bytes) -> Token | None:
        """Return the token that this is, if it is one."""
        # Compared in constant time, with every token there is, so that time tells nothing of any.
        found = [token for token in self.tokens if hmac.compare_digest(secret, token.secret)]
        return found[0] if found else None

    def lets_in(self, headers: Headers) -> bool:
        """Tell whether a request with these headers is let in."""
        return not self.tokens or self.token(presented(headers)) is not None

    def began(self, id: int, headers: Headers) -> str | None:
        """Note a connection; return its token's name: empty if it needs none, `None` if it is gone meanwhile."""
        if not self.tokens:
            return ""
        token = self.token(presented(headers))
        if token is None:
            return None
        self._token_of[id] = token
        return token.name

    def ended(self, id: int) -> None:
        """Forget a connection."""
        self._token_of.pop(id, None)
        self._said -= {(id, "subscribe"), (id, "publish")}

    def objection(self, id: int, command: str, name: str) -> str:
        """Why a connection may not do something with a channel; empty if it may."""
        token = self._token_of.get(id)
        if token is None or token.may(command, name):
            return ""
        if (id, command) not in self._said:  # once, or a client could fill the log
            self._said.add((id, command))
            about = {"connection": id, "token": token.name, "command": command, "channel": name[:100]}
            text = "Refused: connection %d with the token %r may not %s: %r"
            logger.warning(text, id, token.name, command, name[:100], extra=about)
        return f"this token may not {command} there"

    def replace(self, tokens: tuple[Token, ...], channels_of: dict[int, set[bytes]]) -> Iterable[tuple[int, str]]:
        """Take other tokens, with other rules; return connections to be closed, and why.

        They came in with one that is gone, or have subscribed to what they may no longer have. A token is taken away
        because it must not be used any more, and a connection may last for weeks.
        """
        self.tokens = tokens
        now = {token.secret: token for token in tokens}
        closed = []
        for id, old in self._token_of.items():
            token = now.get(old.secret)
            names = (channel.decode("utf-8", "surrogateescape") for channel in channels_of.get(id, ()))
            if token is None:
                closed.append((id, GONE))
                continue
            self._token_of[id] = token
            if not all(token.may("subscribe", name) for name in names):
                closed.append((id, "the token may no longer subscribe there"))
        return closed


def presented(headers: Headers) -> bytes:
    """The token that a request's headers present; empty if there is none."""
    for value in headers.get_all("Authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip().encode("utf-8", "surrogateescape")
    offered = ",".join(headers.get_all("Sec-WebSocket-Protocol")).split(",")
    for name in map(str.strip, offered):
        if name.startswith(TOKEN_PREFIX):
            text = name.removeprefix(TOKEN_PREFIX)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (binascii.Error, ValueError):  # no base64: such a token is nobody's
                return b""
    return b""
