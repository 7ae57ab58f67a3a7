"""Where a program's channels may be turned: residual streams, values, queries and keys, and the inputs of linears.

R1 a basis that writers and readers share (analysis.bases), fused into both. R2 the values of each key-value head, fused
into what writes and what reads them. R3 queries and keys in front of their product, online. R4 the input of a linear
behind a pointwise function, online, its inverse fused into the linear. The names are those of SpinQuant (Liu et al.
2024, arXiv:2405.16406, fig. 1); what they apply to is found on the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from drawplate import hadamard
from drawplate.analysis.bases import Barrier, Basis, Diagonal, bases, rotatable
from drawplate.analysis.channels import value_paths
from drawplate.canonical.match import aten, is_call, width
from drawplate.errors import Refusal
from drawplate.ops import CACHED_ATTENTION
from drawplate.program import Program

Kind = Literal["r1", "r2", "r3", "r4"]
_SDPA = aten.scaled_dot_product_attention.default
_ENCODE = torch.ops.drawplate.encode.default
_BEFORE_THE_CACHE = "turn it before add-kv-cache"


@dataclass(frozen=True)
class Turn:
    """One axis of a weight goes over into a turned basis: with that axis last, w -> w R.

    So rows that write y = x W^T write y R, columns that read x R give what they gave, and a table's rows are turned.
    index: int [blocks, d], the positions of the axis block by block; None: all of it, in order. of: int [blocks], which
    of the rotation's matrices turns each block.
    """

    weight: str
    axis: int
    index: Tensor | None = field(default=None, compare=False)
    of: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Rotation:
    """A change of basis that leaves the function as it is: `count` orthogonal matrices [width, width] under one key.

    turns: what is fused into weights. values: where the turned values can be seen: the inputs of linears, or the values
    of an attention.
    """

    key: str
    kind: Kind
    count: int
    width: int
    turns: tuple[Turn, ...]
    values: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Map:
    """An explicit width x width product in the place of a per-channel one that cannot be folded into any weight: two
    fast transforms and that product where both ends are Hadamard matrices (see turning.turn_program).

    before, after: the keys of the rotations at its two ends; None where the basis stays as it is.
    """

    diagonal: Diagonal
    width: int
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Online:
    """A Hadamard transform of a value as the program runs, `block` channels at a time, read by `readers`.

    turns: the weights that take its inverse; none for queries and keys, whose products undo it.
    """

    kind: Kind
    value: fx.Node
    readers: tuple[fx.Node, ...]
    width: int
    block: int
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that will be turned, and every reason why something will not."""

    rotations: tuple[Rotation, ...] = ()
    maps: tuple[Map, ...] = ()
    online: tuple[Online, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def plan(
    program: Program,
    *,
    r1: bool = True,
    r2: bool = True,
    r3: bool = False,
    r4: bool = False,
    maps: int = 1,
    block: int = 0,
) -> Plan:
    """What can be turned. maps: the most explicit products that one residual basis may cost. block: channels that an
    online transform turns together; 0 as many as there are.
    """
    rotations: list[Rotation] = []
    online: list[Online] = []
    refusals: list[Refusal] = []
    placed: tuple[Map, ...] = ()
    found = bases(program) if r1 or r4 else ()
    if r1:
        chosen, refused = _residual(program, found, maps)
        refusals += refused
        rotations += chosen.values()
        placed = tuple(_maps(found, chosen))
    if r2:
        for item in _values(program):
            (refusals if isinstance(item, Refusal) else rotations).append(item)  # type: ignore[arg-type]
    for inserted in (_queries_and_keys(program) if r3 else (), _inner(program, found, block) if r4 else ()):
        for made in inserted:
            (refusals if isinstance(made, Refusal) else online).append(made)  # type: ignore[arg-type]
    return Plan(tuple(rotations), placed, tuple(online), tuple(refusals))


def _residual(program: Program, found: Iterable[Basis], maps: int) -> tuple[dict[int, Rotation], list[Refusal]]:
    """R1: the bases that can be rotated, by their identity, and why a table's basis cannot."""
    chosen: dict[int, Rotation] = {}
    refusals = []
    free = rotatable(found)
    for basis in found:
        if basis in free:
            products = tuple(dict.fromkeys((*basis.entering, *basis.leaving)))
            if len(products) <= maps:
                chosen[id(basis)] = _rotation(basis)
            else:
                refusals.append(_too_many_maps(basis, products))
        elif _holds_table(program, basis):
            refusals.append(_barred(basis))
    return chosen, refusals


def _rotation(basis: Basis) -> Rotation:
    turns = tuple(Turn(port.weight, port.axis) for port in basis.ports)
    read = {port.weight for port in basis.readers}
    values = [v for v in basis.values for u in v.users if is_call(u, aten.linear.default) and u.args[0] is v
              and str(u.all_input_nodes[1].target) in read]  # fmt: skip
    return Rotation(f"r1.{basis.name}", "r1", 1, basis.width, turns, tuple(dict.fromkeys(values)))


def _maps(found: Iterable[Basis], chosen: dict[int, Rotation]) -> Iterator[Map]:
    """The per-channel products that stand between two bases of which at least one turns."""
    before: dict[Diagonal, str] = {}
    after: dict[Diagonal, str] = {}
    widths: dict[Diagonal, int] = {}
    for basis in found:
        rotation = chosen.get(id(basis))
        if rotation is not None:
            before.update(dict.fromkeys(basis.leaving, rotation.key))
            after.update(dict.fromkeys(basis.entering, rotation.key))
            widths.update(dict.fromkeys((*basis.leaving, *basis.entering), basis.width))
    for diagonal, size in widths.items():
        yield Map(diagonal, size, before.get(diagonal), after.get(diagonal))


def _values(program: Program) -> Iterator[Rotation | Refusal]:
    """R2, one for each attention."""
    for path in value_paths(program):
        if isinstance(path, Barrier):
            yield _refusal(path.node, "r2", path.why)
            continue
        heads, size = path.rows.shape
        turns = [Turn(str(n.target), 0, path.rows, torch.arange(heads)) for n in path.writer.all_input_nodes[1:]]
        for reader, columns in path.readers:
            of = torch.arange(len(columns)) // (len(columns) // heads)
            turns.append(Turn(str(reader.all_input_nodes[1].target), 1, columns, of))
        value: Any = path.attention.args[2]
        yield Rotation(f"r2.{turns[0].weight}", "r2", heads, size, tuple(turns), (value,))
    for node in program.nodes(*CACHED_ATTENTION):
        yield _refusal(node, "r2", "its values are in a cache already", _BEFORE_THE_CACHE)


def _queries_and_keys(program: Program) -> Iterator[Online | Refusal]:
    """R3: their product does not change if both are turned alike."""
    for node in program.nodes(_SDPA, *CACHED_ATTENTION):
        size = width(node.args[0])  # type: ignore[arg-type]
        if is_call(node, *CACHED_ATTENTION):
            yield _refusal(node, "r3", "its keys are in a cache already", _BEFORE_THE_CACHE)
        elif is_call(node.args[1], _ENCODE):
            yield _refusal(node, "r3", "its keys are rounded already", "put rotate in front of quantize-cache")
        elif size is None or not hadamard.known(size):
            yield _refusal(node, "r3", f"no Hadamard matrix turns its {size} channels")
        else:
            for value in dict.fromkeys(node.args[:2]):
                yield Online("r3", value, (node,), size, size)  # type: ignore[arg-type]


def _inner(program: Program, found: Iterable[Basis], block: int) -> Iterator[Online | Refusal]:
    """R4: the values that a pointwise function makes and only linears read with weights of their own."""
    written = {value for basis in found if basis.writers or not basis.barriers for value in basis.values}
    for value in program.nodes():
        readers = [u for u in value.users if is_call(u, aten.linear.default) and u.args[0] is value]
        pointwise = torch.Tag.pointwise in getattr(value.target, "tags", ())
        if not readers or not pointwise or value in written:
            continue
        size = width(value) or 0
        taken = block or _largest(size)
        weights = [r.args[1] for r in readers]
        if any(w.op != "get_attr" or len(program.readers(str(w.target))) != 1 for w in weights):  # type: ignore[union-attr]
            yield _refusal(value, "r4", "a weight that reads it is computed, or read elsewhere too")
        elif taken < 2 or size % taken or not hadamard.known(taken):
            yield _refusal(value, "r4", f"its {size} channels cannot be turned {taken} at a time by a Hadamard matrix")
        else:
            turns = tuple(Turn(str(w.target), 1) for w in weights)  # type: ignore[union-attr]
            yield Online("r4", value, tuple(readers), size, taken, turns)


def _largest(size: int) -> int:
    """The most channels that can be turned at a time: all, or the largest part that a Hadamard matrix is known for."""
    return next((n for n in range(size, 1, -1) if size % n == 0 and hadamard.known(n)), 1)


def _holds_table(program: Program, basis: Basis) -> bool:
    tables = {str(n.args[0].target) for n in program.nodes(aten.embedding.default)}  # type: ignore[union-attr]
    return any(port.axis == 1 and port.weight in tables for port in basis.writers)


def _barred(basis: Basis) -> Refusal:
    reasons = list(dict.fromkeys(map(str, basis.barriers)))
    if not reasons:
        product = (*basis.leaving, *basis.entering)
        reasons = ["no linear reads it" + (f" but behind the weight {product[0].weight}" if product else "")]
        fix = "run fold-norms first"
    else:
        fix = "fold-norms turns a layer norm into an RMS norm where it can" if "layer_norm" in reasons[0] else ""
    return Refusal(basis.name, "r1", "; ".join(reasons), fix=fix)


def _too_many_maps(basis: Basis, products: tuple[Diagonal, ...]) -> Refusal:
    cost = len(products)
    listed = products[0].weight + (f", .. {products[-1].weight}" if cost > 1 else "")
    several = f"{cost} per-channel products are not folded and would each"
    why = (
        f"{several if cost > 1 else 'a per-channel product is not folded and would'} become a "
        f"{basis.width} x {basis.width} product, {cost * basis.width**2 / 1e6:.3g} M multiply-adds per token, "
        f"fewer by Hadamard matrices: {listed}"
    )
    return Refusal(basis.name, "r1", why, fix=f"fold-norms in front folds what can be; maps={cost} allows the rest")


def _refusal(node: fx.Node, kind: str, why: str, fix: str = "") -> Refusal:
    return Refusal(str(node.meta.get("site") or node.name), kind, why, str(node.meta.get("source") or ""), fix)
