"""What can be true of a whole program, each with a cheap checker that gives the reasons why it is not.

A pass names facts in `requires`, `provides` and `preserves`; the runner checks those that it claims.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import sites
from drawplate.encoding import QTensor
from drawplate.ops import CACHED_ATTENTION
from drawplate.passbase import Fact
from drawplate.program import Program

aten = torch.ops.aten
ops = torch.ops.drawplate


def fact(name: str) -> Callable[[Callable[[Program], list[str]]], Fact]:
    """Makes a Fact of its checker."""
    return lambda holds: Fact(name, holds)


def known(program: Program) -> frozenset[str]:
    """The names of all facts of this module that hold of the program."""
    return frozenset(f.name for f in FACTS if not f.holds(program))


def stored_weight(linear: fx.Node, program: Program) -> QTensor | None:
    """The weight of a linear, if it is stored as integers."""
    weight = linear.args[1]
    found = program.weights.get(str(weight.target)) if isinstance(weight, fx.Node) else None
    return found if isinstance(found, QTensor) else None


@fact("weights.float")
def WEIGHTS_FLOAT(program: Program) -> list[str]:
    """No weight is stored as integers."""
    return [f"{name} is stored as '{encoding}'" for name, encoding in program.encodings.items()]


@fact("weights.quantised")
def WEIGHTS_QUANTISED(program: Program) -> list[str]:
    """Some weight is stored as integers."""
    return [] if program.encodings else ["no weight is stored as integers"]


@fact("weights.packed")
def WEIGHTS_PACKED(program: Program) -> list[str]:
    """Some weight is stored as integers, and all of those are bit-packed."""
    stored = {n: w for n, w in program.weights.items() if isinstance(w, QTensor)}
    loose = [f"the codes of {name} are not packed" for name, w in stored.items() if not w.packed]
    return loose if stored else ["no weight is stored as integers"]


@fact("linears.quantised")
def LINEARS_QUANTISED(program: Program) -> list[str]:
    """Some linear reads a weight that is stored as integers."""
    found = any(stored_weight(n, program) for n in program.nodes(aten.linear.default))
    return [] if found else ["no linear reads a weight that is stored as integers"]


@fact("activations.quantised")
def ACTIVATIONS_QUANTISED(program: Program) -> list[str]:
    """Some linear with a stored weight reads an encoded value, and no value is encoded twice."""
    encodes = list(program.nodes(ops.encode.default))
    twice = [f"{n.name} encodes a value that is encoded" for n in encodes if _is(n.args[0], ops.encode.default)]
    linears = program.nodes(aten.linear.default)
    found = any(stored_weight(n, program) and _is(n.args[0], ops.encode.default) for n in linears)
    return twice if found else [*twice, "no linear with a stored weight reads an encoded value"]


@fact("embedding.quantised")
def EMBEDDING_QUANTISED(program: Program) -> list[str]:
    """Every table that token ids look up is stored as integers."""
    tables = [s.name for s in sites(program) if s.role in ("embedding", "tied")]
    plain = [f"{t} is not stored as integers" for t in tables if not isinstance(program.weights[t], QTensor)]
    return plain if tables else ["no table is looked up by token ids"]


@fact("attention.plain")
def ATTENTION_PLAIN(program: Program) -> list[str]:
    """No attention reads a cache, or encoded values."""
    cached = [f"{n.meta.get('site') or n.name} reads a cache" for n in program.nodes(*CACHED_ATTENTION)]
    plain = program.nodes(aten.scaled_dot_product_attention.default)
    encoded = [n for n in plain if any(_is(x, ops.encode.default) for x in n.args[:3])]
    return [*cached, *(f"{n.meta.get('site') or n.name} reads encoded values" for n in encoded)]


@fact("cache.inserted")
def CACHE_INSERTED(program: Program) -> list[str]:
    """There is a cache, it is read, and no attention goes past it."""
    plain = program.nodes(aten.scaled_dot_product_attention.default)
    past = [f"{n.meta.get('site') or n.name} attends without a cache" for n in plain]
    cached = any(True for _ in program.nodes(*CACHED_ATTENTION))
    return past if cached and program.state else [*past, "no attention reads a cache"]


@fact("head.last_position")
def HEAD_LAST_POSITION(program: Program) -> list[str]:
    """The output is of one position."""
    kept = any(True for _ in program.nodes(ops.last_position.default))
    (output,) = (n.args[0] for n in program.graph.nodes if n.op == "output")
    value = output.meta["val"] if isinstance(output, fx.Node) else None
    single = isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == 1
    return [] if kept and single else ["the output is not of one position"]


FACTS = (
    WEIGHTS_FLOAT,
    WEIGHTS_QUANTISED,
    WEIGHTS_PACKED,
    LINEARS_QUANTISED,
    ACTIVATIONS_QUANTISED,
    EMBEDDING_QUANTISED,
    ATTENTION_PLAIN,
    CACHE_INSERTED,
    HEAD_LAST_POSITION,
)

# For `preserves`. Each names its members, since a pass answers for every one of them: a new fact is in none of these
# sets until somebody has looked at the passes that use it.

INTERFACE = frozenset({ATTENTION_PLAIN, CACHE_INSERTED, HEAD_LAST_POSITION})
"""How the program is fed and what it keeps between calls, and for which positions it answers."""

STORED = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED, EMBEDDING_QUANTISED})
"""Which weights are stored as integers."""

NUMBERS = frozenset(
    {
        WEIGHTS_FLOAT,
        WEIGHTS_QUANTISED,
        WEIGHTS_PACKED,
        LINEARS_QUANTISED,
        ACTIVATIONS_QUANTISED,
        EMBEDDING_QUANTISED,
    }
)
"""How weights are stored, whichever way that is, and what is rounded on the way."""


def _is(value: object, target: Callable[..., object]) -> bool:
    return isinstance(value, fx.Node) and value.target is target
