"""Symbolic lengths: torch's hashed symbols in, expressions over the program's dims out, and back.

The operations are + - * ** /, and functions by name: `floordiv(s, 2)`, since `//` starts a comment.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch
from torch.utils._sympy import functions

_NAMED = ("FloorDiv", "Mod", "PythonMod", "ModularIndexing", "Max", "Min", "Where", "Identity", "IntTrueDiv")
FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {name.lower(): getattr(functions, name) for name in _NAMED}
_COMMUTATIVE = ("max", "min")


def symbol(name: str) -> sympy.Symbol:
    """The symbol that stands for the dim of this name, in the printer and the parser alike."""
    return sympy.Symbol(name, integer=True, positive=True)


class Lengths:
    """Writes lengths under one naming of torch's symbols. A symbol without a name (a length that depends on
    data) gets `u0`, `u1`, .. in the order of appearance."""

    def __init__(self, names: dict[sympy.Symbol, str]) -> None:
        self._symbols = {s: symbol(name) for s, name in names.items()}
        self._taken = set(names.values())
        self._texts: dict[sympy.Expr, str] = {}

    def text(self, length: int | torch.SymInt) -> str:
        """One length, as in `64`, `s + 1`, `b*s`."""
        if not isinstance(length, torch.SymInt):
            return str(length)
        expr = length.node.expr
        if expr not in self._texts:
            for free in sorted(expr.free_symbols - self._symbols.keys(), key=str):
                self._symbols[free] = symbol(self._fresh())
            self._texts[expr] = expression_text(expr.xreplace(self._symbols))
        return self._texts[expr]

    def _fresh(self) -> str:
        name = next(name for i in range(len(self._taken) + 1) if (name := f"u{i}") not in self._taken)
        self._taken.add(name)
        return name


def expression_text(expr: sympy.Expr) -> str:
    """One spelling per expression, whatever order sympy keeps its terms in.

    >>> s, b = symbol("s"), symbol("b")
    >>> expression_text(functions.FloorDiv(s + 1, 2) * b - 1)
    'b*floordiv(s + 1, 2) - 1'
    """
    if expr.is_Add:
        first, *rest = (expression_text(term) for term in expr.as_ordered_terms())
        return first + "".join(f" - {t[1:]}" if t.startswith("-") else f" + {t}" for t in rest)
    if expr.is_Mul:
        factors = [_factor(f) for f in expr.as_ordered_factors() if f != -1]
        return ("-" if expr.args[0] == -1 else "") + "*".join(factors)
    if expr.is_Pow:
        return f"{_factor(expr.base)}**{_factor(expr.exp)}"
    if expr.is_Function or type(expr).__name__ in _NAMED:
        name = type(expr).__name__.lower()
        args = [expression_text(a) for a in expr.args]
        return f"{name}({', '.join(sorted(args) if name in _COMMUTATIVE else args)})"
    return str(expr)


def _factor(expr: sympy.Expr) -> str:
    text = expression_text(expr)
    return f"({text})" if expr.is_Add or expr.is_Mul or (expr.is_Rational and not expr.is_Integer) else text
