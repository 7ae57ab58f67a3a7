"""The grammar of a recipe's text form, without knowing any pass.

    recipe  = [ element { "," element } ] [ "->" element ] [ "with" options ]
    element = name [ options ]
    options = "{" [ key "=" value { "," key "=" value } ] "}"

A value runs to the next comma or brace that is outside quotes and brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from drawplate.errors import RecipeError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*?(?=->|[^A-Za-z0-9_.-]|$)")
_KEY = re.compile(r"[A-Za-z_]\w*")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Value:
    """An option's text and where it stands."""

    text: str
    where: str


@dataclass(frozen=True)
class Element:
    """One name with its options, not yet understood. where: for messages, with a caret under it."""

    name: str
    where: str
    options: dict[str, Value] = field(default_factory=dict)


def parse_elements(text: str) -> tuple[list[Element], Element | None, Element | None]:
    """The passes, the backend, and the settings of `with`, as they are written. Raises RecipeError."""
    reader = _Reader(text)
    passes: list[Element] = []
    backend = settings = None
    if not reader.at("->") and not reader.at("with{") and not reader.done():
        passes.append(reader.element("a pass"))
        while reader.take(","):
            passes.append(reader.element("a pass"))
    if reader.take("->"):
        backend = reader.element("a backend")
    if reader.at("with"):
        settings = reader.element("settings")
    if not reader.done():
        expected = "nothing more" if settings else "'with{..}'" if backend else "',' or '->'"
        raise reader.error(f"expected {expected}")
    return passes, backend, settings


class _Reader:
    """A place in the text that moves forward; whitespace between tokens does not count."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip()

    def at(self, token: str) -> bool:
        return self._text.startswith(token, self._at)

    def done(self) -> bool:
        return self._at == len(self._text)

    def take(self, token: str) -> bool:
        """Step over the token if it stands here."""
        if not self.at(token):
            return False
        self._at += len(token)
        self._skip()
        return True

    def element(self, what: str) -> Element:
        where, name = self._where(), self._match(_NAME, f"the name of {what}")
        options: dict[str, Value] = {}
        if self.take("{") and not self.take("}"):
            self._option(options)
            while self.take(","):
                self._option(options)
            if not self.take("}"):
                raise self.error("expected ',' or '}'")
        return Element(name, where, options)

    def error(self, what: str) -> RecipeError:
        return RecipeError("the recipe could not be read", where=self._where(), why=what)

    def _option(self, options: dict[str, Value]) -> None:
        where = self._where()
        key = self._match(_KEY, "an option's name")
        if key in options:
            raise RecipeError(f"option {key!r} is given twice", where=where)
        if not self.take("="):
            raise self.error(f"expected '=' behind {key!r}")
        options[key] = Value(self._value(), where)

    def _value(self) -> str:
        start, depth, quoted, escaped = self._at, 0, False, False
        while self._at < len(self._text):
            c = self._text[self._at]
            if quoted:
                quoted, escaped = c != '"' or escaped, c == "\\" and not escaped
            elif c == '"':
                quoted = True
            elif depth == 0 and c in ",}":
                break
            else:
                depth += (c == "[") - (c == "]")
            self._at += 1
        value = self._text[start : self._at].strip()
        if not value:
            raise self.error("expected a value")
        return value

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if not found:
            raise self.error(f"expected {what}")
        self._at = found.end()
        self._skip()
        return found.group()

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _where(self) -> str:
        """`column 12`, and the text with a caret below that column; a line break in it shows as a space."""
        line = re.sub(r"\s", " ", self._text)
        return f"column {self._at + 1}\n    {line}\n    {' ' * self._at}^"
