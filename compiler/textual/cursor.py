"""The parser's lower half: walking the tokens, and what stands inside a line: lengths, types, constants."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import sympy
import torch

from drawplate.errors import TextError
from drawplate.textual.lengths import FUNCTIONS, expression_text, symbol
from drawplate.textual.lexer import Kind, Source, Token
from drawplate.textual.words import CONSTANTS, DTYPE_NAMED

T = TypeVar("T")

DEPTH = 50  # brackets in brackets; deeper is a mistake, and Python's stack is finite
_SCALARS = ("int", "float", "bool", "None")


class Cursor:
    """A place in the tokens. Every method reads what it is named after and leaves the cursor behind it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.place = 0
        self._depth = 0

    @property
    def token(self) -> Token:
        """The next token."""
        return self.source.tokens[self.place]

    def error(self, what: str, at: Token | None = None, *, why: str = "", fix: str = "") -> TextError:
        """An error at a token, by default the next one."""
        return self.source.error((at or self.token).at, what, why=why, fix=fix)

    def expected(self, what: str, known: Iterable[str] = ()) -> TextError:
        """`expected a value, found ')'`, with the nearest of the known words."""
        return self.error(f"expected {what}, found {self.token}", fix=nearest(self.token.text, known))

    def sees(self, *marks: str) -> bool:
        """Is the next token one of these marks or words?"""
        return self.token.kind in ("mark", "name") and self.token.text in marks

    def accept(self, mark: str) -> bool:
        """Take the next token if it is this mark or word."""
        found = self.sees(mark)
        self.place += found
        return found

    def expect(self, mark: str) -> Token:
        """This mark or word."""
        if not self.sees(mark):
            raise self.expected(f"'{mark}'", [mark])
        return self.take()

    def expect_kind(self, what: str, *kinds: Kind) -> Token:
        """A token of one of these kinds."""
        if self.token.kind not in kinds:
            raise self.expected(what)
        return self.take()

    def take(self) -> Token:
        """The next token, whatever it is; the end stays where it is."""
        token = self.token
        self.place += token.kind != "end"
        return token

    def listed(self, closing: str, item: Callable[[], T]) -> list[T]:
        """`item, item, item` up to and with the closing mark. A trailing comma is allowed."""
        self._depth += 1
        if self._depth > DEPTH:
            raise self.error(f"more than {DEPTH} brackets inside each other")
        items: list[T] = []
        while not self.accept(closing):
            items.append(item())
            if not self.sees(closing) and not self.accept(","):
                raise self.expected(f"',' or '{closing}'")
        self._depth -= 1
        return items

    def name(self, what: str) -> str:
        """A bare or quoted name."""
        token = self.expect_kind(what, "name", "string")
        return token.text

    def integer(self, what: str = "a whole number") -> int:
        """`12`, `-1`."""
        sign = -1 if self.accept("-") else 1
        token = self.expect_kind(what, "number")
        try:
            return sign * int(token.text)
        except ValueError:
            raise self.error(f"expected {what}, found {token}", token) from None

    # lengths and types

    def length(self) -> sympy.Expr:
        """`64`, `s + 1`, `b*floordiv(s, 2)`: an expression over dim names."""
        total = -self.product() if self.accept("-") else self.product()
        while self.sees("+", "-"):
            total = total + self.product() if self.take().text == "+" else total - self.product()
        return total

    def product(self) -> sympy.Expr:
        """`2*s`, `s/2`, `s**2`."""
        value = self.power()
        while self.sees("*", "/"):
            at = self.take()
            right = self.power()
            if at.text == "/" and right == 0:
                raise self.error("a length divided by zero", at)
            value = value * right if at.text == "*" else value / right
        return value

    def power(self) -> sympy.Expr:
        """A number, a dim, a function of lengths, or an expression in brackets; to a small power."""
        value = self._atom()
        if self.accept("**"):
            at = self.token
            exponent = self.integer("a power")
            if not 0 <= exponent <= 8:
                raise self.error("expected a power of 0 to 8", at)
            value = value**exponent
        return value

    def _atom(self) -> sympy.Expr:
        if self.token.kind == "number":
            return sympy.Integer(self.integer())
        if self.accept("("):
            (value,) = self._bracketed(1)
            return value
        token = self.expect_kind("a length", "name")
        if not self.accept("("):
            return symbol(token.text)
        if token.text not in FUNCTIONS:
            raise self.error(f"no function of lengths is called {token}", token, fix=nearest(token.text, FUNCTIONS))
        arguments = self._bracketed(None)
        try:
            return FUNCTIONS[token.text](*arguments)
        except (TypeError, ValueError, ArithmeticError, AssertionError, AttributeError) as error:
            raise self.error(f"{token.text} cannot take these lengths", token, why=first_line(error)) from None

    def _bracketed(self, count: int | None) -> list[sympy.Expr]:
        at = self.token
        lengths = self.listed(")", self.length)
        if count not in (None, len(lengths)):
            raise self.error("expected one length in these brackets", at)
        return lengths

    def shape(self) -> list[str]:
        """`[b, s + 1, 64]`, each length in its one spelling."""
        self.expect("[")
        return [expression_text(n) for n in self.listed("]", self.length)]

    def dtype(self) -> torch.dtype:
        """`f32`"""
        if self.token.text not in DTYPE_NAMED:
            raise self.expected("a dtype such as f32", DTYPE_NAMED)
        return DTYPE_NAMED[self.take().text]

    def type_text(self) -> str:
        """A value's type in its one spelling: `f32[b, 64]`, `int`, `(f32[b], i64[b])`, `[f32[b], f32[b]]`."""
        if self.accept("("):
            items = self.listed(")", self.type_text)
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        if self.accept("["):
            return f"[{', '.join(self.listed(']', self.type_text))}]"
        word = self.token
        if word.text in _SCALARS and self.source.tokens[self.place + 1].text != "[":
            return self.take().text
        if word.text not in DTYPE_NAMED:
            raise self.expected("a type such as f32[b, 64] or int", [*DTYPE_NAMED, *_SCALARS])
        return f"{self.take().text}[{', '.join(self.shape())}]"

    # constants

    def constant(self) -> Any:
        """A value, a weight, a number, a word, a string, or a list, tuple or dictionary of them."""
        token = self.token
        match token.kind:
            case "value" | "weight":
                return self.reference(self.take())
            case "string":
                return self.take().text
            case "number":
                return self._number(1)
        if self.accept("-"):
            return -self._word() if self.sees("inf") else self._number(-1)
        if self.accept("["):
            return self.listed("]", self.constant)
        if self.accept("{"):
            return dict(self.listed("}", self._entry))
        if self.accept("("):
            items = self.listed(")", self.constant)
            if len(items) == 1 and self.source.tokens[self.place - 2].text != ",":
                raise self.error("expected ',' before ')'", self.source.tokens[self.place - 1], why="(x,) is a tuple")
            return tuple(items)
        return self._word()

    def reference(self, token: Token) -> Any:
        """What a %value or @weight stands for."""
        raise self.error(f"expected a constant, found {token}", token)

    def _word(self) -> Any:
        if self.token.kind != "name" or self.token.text not in CONSTANTS:
            raise self.expected("a value or a constant", CONSTANTS if self.token.kind == "name" else ())
        return CONSTANTS[self.take().text]

    def _entry(self) -> tuple[str, Any]:
        key = self.expect_kind("a key in quotes", "string").text
        self.expect(":")
        return key, self.constant()

    def _number(self, sign: int) -> int | float:
        if re.search(r"[.eE]", self.token.text) and self.token.kind == "number":
            return sign * float(self.take().text)
        return sign * self.integer("a number")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'where'?` or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{close[0]}'?" if close else ""


def first_line(error: BaseException) -> str:
    """What another library says went wrong, without its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
