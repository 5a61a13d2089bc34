"""The file of tokens: read at the start, and again when it changes, so that a token can be added or taken away.

A file that is gone or spoilt changes nothing: the tokens that were read last still hold. It is looked at again and
again until it can be read, and what is wrong with it is said once.
"""

from __future__ import annotations

import codecs
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("relay")

#: Seconds between two looks at the file. It is read when two looks have seen the same: nobody is writing it then.
INTERVAL = 1.0


@dataclass(frozen=True)
class Token:
    """What lets a client in, and what it may do."""

    secret: bytes
    name: str
    """For the log, which never has the secret."""
    subscribe: tuple[str, ...] | None = None
    """What the channels that it may subscribe to begin with; `None` for any."""
    publish: tuple[str, ...] | None = None
    """The same of those that it may publish to."""

    def may(self, command: str, channel: str) -> bool:
        """Tell whether it may "subscribe" or "publish"; other commands need no permission."""
        beginnings = {"subscribe": self.subscribe, "publish": self.publish}.get(command)
        return beginnings is None or channel.startswith(beginnings)


def parse_tokens(content: bytes) -> tuple[Token, ...]:
    """Return the tokens in a file: its lines, but for empty ones and comments, which begin with `#`.

    Raises:
        ValueError: there is none, or it is no text in UTF-8 (a byte order mark may stand before it), or a line is not
            understood; the text names its number, and nothing that may be a part of a token.
    """
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None  # whose text would repeat a part of a token
    if "\0" in text:  # of UTF-16, most likely
        raise ValueError("it is no text in UTF-8")
    tokens: dict[bytes, Token] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            token = _token(number, words)
            if token.secret in tokens:
                raise ValueError(f"line {number} repeats a token")
            tokens[token.secret] = token
    if not tokens:
        raise ValueError("there is no token in it")
    return tuple(tokens.values())


def _token(number: int, words: list[str]) -> Token:
    rules: dict[str, str] = {}
    for place, word in enumerate(words[1:], 2):
        what, _, value = word.partition("=")
        if what not in ("name", "subscribe", "publish") or what in rules:
            grammar = "behind a token stand name=, subscribe= and publish=, each once at most"
            text = f"word {place} is not understood; {grammar}, with no blank behind a comma"
            raise ValueError(f"line {number}: {text}")
        rules[what] = value

    def beginnings(what: str) -> tuple[str, ...] | None:
        return tuple(filter(None, rules[what].split(","))) if what in rules else None

    name = rules.get("name") or f"line {number}"
    return Token(words[0].encode(), name, beginnings("subscribe"), beginnings("publish"))


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens in a file.

    Raises:
        ValueError: it cannot be read, or holds none; the text names it.
    """
    try:
        return parse_tokens(path.read_bytes())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the tokens in {str(path)!r}: {why}") from error


def authorization(path: Path | None) -> dict[str, str]:
    """Return the headers with which a client presents the first token of a file; none without a file.

    Raises:
        ValueError: as for `read_tokens`.
    """
    return {} if path is None else {"Authorization": f"Bearer {read_tokens(path)[0].secret.decode()}"}


class TokenFile:
    """The tokens of a file, and what there is to know to read it again.

    Raises:
        ValueError: it cannot be read, or holds none; the text names it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._seen = self._state()
        self._said = ""
        self.tokens = read_tokens(path)
        self._warn()

    def follow(self) -> bool:
        """Read the file again if it has changed since, and is not being changed; return whether the tokens are others.

        To be called every `INTERVAL` seconds.
        """
        state = self._state()
        still, self._seen = state == self._seen, state
        return still and state != self._read and self._read_again()

    def reload(self) -> bool:
        """Read the file again, and say how it went; return whether the tokens are others."""
        self._said = ""
        return self._read_again()

    def _read_again(self) -> bool:
        state = self._state()
        try:
            if state is None and self._path.exists():  # a pipe would hold up the loop
                raise ValueError(f"cannot read the tokens in {str(self._path)!r}: it is no regular file")
            tokens = read_tokens(self._path)
        except ValueError as error:
            # Whoever writes it may not be done, or have made a mistake: that must neither shut everybody out nor let
            # everybody in.
            if str(error) != self._said:
                logger.error("%s; the %d read before still hold", error, len(self.tokens))
                self._said = str(error)
            return False
        self._read, self._said = state, ""
        changed = tokens != self.tokens
        self.tokens = tokens
        logger.info("Read the tokens in %r again: %d", str(self._path), len(tokens))
        self._warn()
        return changed

    def _warn(self) -> None:
        """Say which rules allow less than they seem to."""
        for token in self.tokens:
            for beginning in (token.subscribe or ()) + (token.publish or ()):
                if "*" in beginning:
                    text = "The rule %r of the token %r allows only names that begin so, * included"
                    logger.warning(text, beginning, token.name)

    def _state(self) -> tuple[int, int, int] | None:
        """What is another after each change; `None` if there is no regular file."""
        try:
            status = os.stat(self._path)
        except OSError:  # it is gone, or out of reach: reading it tells why
            return None
        # The time of the last change, permissions included, and not the one of the content, which can be set.
        return (status.st_ctime_ns, status.st_ino, status.st_size) if stat.S_ISREG(status.st_mode) else None
