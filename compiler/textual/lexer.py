"""Text -> tokens, and the place of each for messages."""

from __future__ import annotations

import bisect
import json
import re
from dataclasses import dataclass
from typing import Literal

from drawplate.errors import TextError

Kind = Literal["value", "weight", "string", "block", "number", "name", "mark", "end"]

_QUOTED = r'"(?:[^"\\\n]|\\.)*"'
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    | (?P<comment>//[^\n]*)
    | (?P<value>%(?:[A-Za-z0-9_.]+|{_QUOTED}))
    | (?P<weight>@(?:[A-Za-z0-9_.]+|{_QUOTED}))
    | (?P<string>{_QUOTED})
    | (?P<block>\d+(?:x-?\d+)+)
    | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_.]*)
    | (?P<mark>\*\*|<=|[-+*/()\[\]{{}}:,=])""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True)
class Token:
    """One word. text: as it stands; of strings and of names after % and @ the plain name. at: its offset."""

    kind: Kind
    text: str
    at: int

    def __str__(self) -> str:
        """As messages call it."""
        sign = {"value": "%", "weight": "@"}.get(self.kind, "")
        return "the end of the text" if self.kind == "end" else f"'{sign}{self.text}'"


class Source:
    """A text cut into tokens. comments: the comment that ends a line, by line number (from 1)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.comments: dict[int, str] = {}
        self._starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self.tokens = self._cut()

    def _cut(self) -> list[Token]:
        tokens: list[Token] = []
        at = 0
        while at < len(self.text):
            m = _TOKEN.match(self.text, at)
            if m is None:
                raise self.error(at, f"{self.text[at]!r} does not begin a word of the text", **_stray(self.text[at]))
            match m.lastgroup:
                case "comment":
                    self.comments[self.line(at)] = m[0][2:].strip()
                case "value" | "weight" | "string" as kind:
                    tokens.append(Token(kind, self._plain(m[0].lstrip("%@"), at), at))
                case "block" | "number" | "name" | "mark" as kind:
                    tokens.append(Token(kind, m[0], at))
            at = m.end()
        return [*tokens, Token("end", "", at)]

    def _plain(self, text: str, at: int) -> str:
        """What a bare or quoted name or a string stands for."""
        if not text.startswith('"'):
            return text
        try:
            return str(json.loads(text, strict=False))
        except ValueError:
            raise self.error(at, f"{text} is not a string", why="escapes are JSON's: \\n, \\u00e9") from None

    def line(self, at: int) -> int:
        """The line of an offset, from 1."""
        return bisect.bisect_right(self._starts, at)

    def error(self, at: int, what: str, *, why: str = "", fix: str = "") -> TextError:
        """An error at an offset: line, column, the line itself and a caret below."""
        start = self._starts[self.line(at) - 1]
        line = self.text[start:].split("\n", 1)[0].expandtabs(1)
        column = at - start
        where = f"line {self.line(at)}, column {column + 1}\n    {line}\n    {' ' * column}^"
        return TextError(what, where=where, why=why, fix=fix)


def _stray(character: str) -> dict[str, str]:
    if character == '"':
        return {"why": "the string does not end on its line"}
    if character in "%@":
        return {"fix": f"write a name directly after {character}"}
    return {}
