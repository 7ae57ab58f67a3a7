"""Text -> Program. Types are inferred from the operators; a type that is written must be the inferred one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from drawplate.encoding import Encoding
from drawplate.errors import DrawplateError, TextError
from drawplate.program import Dim, Program, Spec, Weight, infer_types
from drawplate.textual import contents
from drawplate.textual.cursor import Cursor, first_line, nearest
from drawplate.textual.lexer import Source, Token
from drawplate.textual.printer import Types
from drawplate.textual.words import DTYPE_NAMED, VERSION, find_operator, nearest_operators, other_forms


def parse_program(text: str, *, seedable: bool = True) -> Program:
    """The program that a text says.

    seedable: give the weights the contents that the text names; False leaves each a shape (a meta tensor).
    Raises TextError with the line, the column and what was expected.
    """
    return _Parser(Source(text), seedable).program()


class _Parser(Cursor):
    """Reads one program, line by line, into a graph."""

    def __init__(self, source: Source, seedable: bool) -> None:
        super().__init__(source)
        self.seedable = seedable
        self.graph = fx.Graph()
        self.weights: dict[str, Weight] = {}
        self.state: list[Spec] = []
        self.declared: dict[str, Token] = {}  # weights and state, by name
        self.readers: dict[str, fx.Node] = {}  # their get_attr nodes, made when first read
        self.values: dict[str, fx.Node] = {}
        self.origin: dict[fx.Node, Token] = {}
        self.written: list[tuple[fx.Node, str, Token]] = []

    def program(self) -> Program:
        """The whole text."""
        if self.source.text.lstrip().split("\n", 1)[0].rstrip() != VERSION:
            raise self.source.error(0, f"expected the line '{VERSION}'", fix="write it at the top of the text")
        self.expect("program")
        name = self.name("the program's name")
        self.expect("(")
        drafts = self.listed(")", self._input)
        facts = frozenset(self._facts())
        dims = tuple(self._dims())
        inputs = tuple(self._spec(*draft, dims) for draft in drafts)
        self.expect("{")
        while self.sees("weight", "state"):
            if self.take().text == "weight":
                self._weight()
            else:
                self.state.append(self._spec(*self._draft(self._declaration()), dims))
        while not self.sees("return"):
            self._value()
        self.take()
        self.graph.output(self.constant())
        self.expect("}")
        if self.token.kind != "end":
            raise self.expected("the end of the text")
        weights = MappingProxyType(self.weights)
        program = Program(name, self.graph, inputs, weights, tuple(self.state), dims, facts)
        self._infer(program)
        return program

    # the header

    def _input(self) -> tuple[Token, torch.dtype, list[str]]:
        token = self.expect_kind("an input such as %x", "value")
        if token.text in self.values:
            raise self.error(f"a second input is called {token}", token)
        argument = token.text if token.text.isidentifier() else f"input_{len(self.values)}"
        self.values[token.text] = node = self.graph.placeholder(argument)
        self.origin[node] = token
        return self._draft(token)

    def _draft(self, token: Token) -> tuple[Token, torch.dtype, list[str]]:
        """`: f32[b, 64]` after a name; its lengths are checked when the dims are known."""
        self.expect(":")
        return token, self.dtype(), self.shape()

    def _spec(self, token: Token, dtype: torch.dtype, lengths: list[str], dims: tuple[Dim, ...]) -> Spec:
        names = [d.name for d in dims]
        shape: list[int | str] = []
        for length in lengths:
            if not length.isdecimal() and length not in names:
                example = length if length.isidentifier() else "s"
                raise self.error(
                    f"{token} has the length '{length}', which is not declared",
                    token,
                    why="the lengths of inputs and state are numbers and names of the 'where' clause",
                    fix=nearest(length, names) or f"write for example 'where 1 <= {example} <= 64'",
                )
            shape.append(int(length) if length.isdecimal() else length)
        return Spec(token.text, dtype, tuple(shape))

    def _facts(self) -> list[str]:
        if not self.accept("facts"):
            return []
        self.expect("{")
        return self.listed("}", lambda: self.name("a fact"))

    def _dims(self) -> list[Dim]:
        dims: list[Dim] = []
        while self.accept("," if dims else "where"):
            low = self.integer("the lower bound of a length")
            self.expect("<=")
            token = self.expect_kind("the name of a length", "name")
            self.expect("<=")
            high = self.integer("the upper bound of a length")
            if not 1 <= low <= high < 1 << 62:
                raise self.error(f"no length {token} is between {low} and {high}", token, why="lengths start at 1")
            if token.text in (d.name for d in dims):
                raise self.error(f"{token} has bounds twice", token)
            dims.append(Dim(token.text, low, high))
        return dims

    # weights and state

    def _declaration(self) -> Token:
        token = self.expect_kind("a name such as @up.weight", "weight")
        if token.text in self.declared:
            raise self.error(f"{token} is declared twice", token)
        self.declared[token.text] = token
        return token

    def _weight(self) -> None:
        """`@up.weight : i4[128, 64] block 1x32 sym scale bf16 packed = seed(3)`"""
        token = self._declaration()
        self.expect(":")
        word = self.expect_kind("a dtype such as f32 or i4", "name")
        kind_at = self.place - 1
        lengths = self.shape()
        if wrong := [n for n in lengths if not n.isdecimal()]:
            raise self.error(f"{token} has a length '{wrong[0]}'", token, why="the lengths of a weight are numbers")
        shape = tuple(int(n) for n in lengths)
        kind: torch.dtype | Encoding
        if self.sees("block") or (_CODES.fullmatch(word.text) and word.text not in DTYPE_NAMED):
            kind = self._encoding(word)
            packed = self.accept("packed")
        else:
            after, self.place = self.place, kind_at
            kind, packed = self.dtype(), False
            self.place = after
        try:
            if isinstance(kind, Encoding):
                kind.scale_shape(shape)
            weight = self._contents(shape, kind, packed)
        except TextError:
            raise
        except DrawplateError as error:
            raise self.error(error.what, token, why=error.why, fix=error.fix) from None
        except (RuntimeError, ValueError, OverflowError) as error:
            raise self.error(f"{token} cannot be made", token, why=first_line(error)) from None
        self.weights[token.text] = weight

    def _encoding(self, word: Token) -> Encoding:
        """` block 1x32 sym scale bf16 dynamic` after the shape; `word` is the `i4` in front of it."""
        self.expect("block")
        words = ["-"] if self.accept("-") else []
        words.append(self.expect_kind("a block such as 1x32", "number", "block").text)
        block = "".join(words)
        if not self.sees("sym", "asym"):
            raise self.expected("'sym' or 'asym'")
        symmetry = self.take().text
        self.expect("scale")
        scale = self.expect_kind("a dtype such as f32", "name").text
        dynamic = " dynamic" if self.accept("dynamic") else ""
        try:
            return Encoding.parse(f"{word.text} block {block} {symmetry} scale {scale}{dynamic}")
        except (DrawplateError, ValueError) as error:
            what = error.what if isinstance(error, DrawplateError) else f"not an encoding: {first_line(error)}"
            fix = error.fix if isinstance(error, DrawplateError) else ""
            raise self.error(what, word, fix=fix) from None

    def _contents(self, shape: tuple[int, ...], kind: torch.dtype | Encoding, packed: bool) -> Weight:
        """`= seed(3)`, `= [[1, -1], [1, 1]]` or nothing."""
        if not self.accept("="):
            return contents.shape_only(shape, kind, packed=packed)
        if self.accept("seed"):
            self.expect("(")
            seed = self.integer("a seed")
            self.expect(")")
            if self.seedable:
                return contents.seeded(shape, kind, seed, packed=packed)
        else:
            values = self.constant()
            if self.seedable:
                return contents.literal(values, shape, kind, packed=packed)
        return contents.shape_only(shape, kind, packed=packed)

    # values

    def _value(self) -> None:
        """`%3 : f32[b, 64] = aten.add.Tensor(%x, %2, alpha=2)  // site`"""
        if self.token.kind != "value":
            raise self.expected("a value, or 'return'", ["weight", "state", "return"])
        token = self.take()
        if token.text in self.values:
            raise self.error(f"{token} is there already", token, why="every value has a name of its own")
        typed = (self.token, self.type_text()) if self.accept(":") else None
        self.expect("=")
        target = self._operator()
        self.expect("(")
        kwargs: dict[str, Any] = {}
        args = [a for a in self.listed(")", lambda: self._argument(kwargs)) if a is not _KEYWORD]
        node = self.graph.call_function(target, tuple(args), kwargs)
        site = self.source.comments.get(self.source.line(self.source.tokens[self.place - 1].at))
        node.meta["site"] = site or ""
        self.values[token.text] = node
        self.origin[node] = token
        if typed is not None:
            self.written.append((node, typed[1], typed[0]))

    def _operator(self) -> Any:
        token = self.expect_kind("an operator such as aten.linear", "name")
        target = find_operator(token.text)
        if target is None:
            near = nearest_operators(token.text)
            raise self.error(
                f"no operator is called {token}",
                token,
                fix=f"did you mean {' or '.join(near)}?" if near else "",
            )
        return target

    def _argument(self, kwargs: dict[str, Any]) -> Any:
        token, after = self.token, self.source.tokens[min(self.place + 1, len(self.source.tokens) - 1)]
        if token.kind != "name" or after.text != "=":
            if kwargs:
                raise self.error("a positional argument after a named one")
            return self.constant()
        if token.text in kwargs:
            raise self.error(f"a second argument {token}", token)
        self.place += 2
        kwargs[token.text] = self.constant()
        return _KEYWORD

    def reference(self, token: Token) -> fx.Node:
        """The node of a %value, or the one that reads a @weight."""
        if token.kind == "value":
            if token.text not in self.values:
                raise self.unknown(token, "value", self.values)
            return self.values[token.text]
        if token.text not in self.declared:
            raise self.unknown(token, "weight or state", self.declared)
        if token.text not in self.readers:
            self.readers[token.text] = node = self.graph.get_attr(token.text)
            self.origin[node] = self.declared[token.text]
        return self.readers[token.text]

    def unknown(self, token: Token, kind: str, known: Mapping[str, Any]) -> TextError:
        """`no value is called %7 here`."""
        sign = "%" if token.kind == "value" else "@"
        fix = nearest(sign + token.text, [sign + name for name in known])
        return self.error(f"no {kind} is called {token} here", token, fix=fix)

    # types

    def _infer(self, program: Program) -> None:
        """Types for every node, compared with those that are written."""
        try:
            with _quiet():
                infer_types(program)
        except Exception as error:  # noqa: BLE001  (an operator's own checks raise whatever they like)
            node = next((n for n in self.graph.nodes if "val" not in n.meta), None)
            token = self.origin[node] if node in self.origin else self.source.tokens[0]
            forms = other_forms(node.target) if node else []
            fix = f"other forms of it are {', '.join(forms)}" if forms else ""
            why = self._with_dims(first_line(error), program)
            raise self.error(f"{token} cannot be computed", token, why=why, fix=fix) from None
        types = Types(program)
        texts = {node: types.text(node.meta["val"]) for node in self.graph.nodes if node.op == "call_function"}
        for node, written, token in self.written:
            if texts[node] != written:
                raise self.error(f"this value is {texts[node]}, not {written}", token, fix=f"write {texts[node]}")

    def _with_dims(self, message: str, program: Program) -> str:
        """torch's message with the dims' names for its symbols."""
        nodes = [n for n in self.graph.nodes if n.op == "placeholder" and "val" in n.meta]
        for node, spec in zip(nodes, program.inputs, strict=False):
            for length, declared in zip(node.meta["val"].shape, spec.shape, strict=True):
                message = re.sub(rf"\b{re.escape(str(length))}\b", str(declared), message)
        return message


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback when an operator refuses its fake arguments; the TextError says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


_CODES = re.compile(r"[iu][0-9]+")
_KEYWORD: Any = object()  # stands where a keyword argument was, which is kept aside
