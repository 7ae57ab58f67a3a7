"""Why a program cannot become a .pte: every reason, with the place and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from drawplate.backends.xnnpack.ops_linear import encode_why_not, known, linear_why_not
from drawplate.backends.xnnpack.ops_rotation import impossible
from drawplate.backends.xnnpack.target import EMBEDDING, HEADS, LINEAR
from drawplate.canonical.match import aten, value
from drawplate.encoding import Encoding, QTensor
from drawplate.errors import Refusal
from drawplate.ops import CACHED_ATTENTION
from drawplate.program import Program
from drawplate.textual.words import operator_name

ours = torch.ops.drawplate


def refusals(program: Program) -> list[Refusal]:
    """Asked of shapes and encodings only, never of contents."""
    return [
        *_linears(program),
        *_tables(program),
        *_other_readers(program),
        *_encodes(program),
        *_attentions(program),
        *_rotations(program),
    ]


def about(node: fx.Node, why: str, fix: str) -> Refusal:
    """A refusal of one node, by its module and the model's own line."""
    site = str(node.meta.get("site") or node.name)
    return Refusal(site, operator_name(node.target), why, str(node.meta.get("source") or ""), fix)


def _weight(program: Program, x: Any) -> Any:
    return program.weights.get(str(x.target)) if isinstance(x, fx.Node) and x.op == "get_attr" else None


def _linears(program: Program) -> Iterator[Refusal]:
    menu = ", ".join(f"'{c.weight}'" for c in LINEAR if c.weight)
    for node in program.nodes(aten.linear.default):
        weight = _weight(program, node.args[1])
        if isinstance(weight, QTensor):
            why = linear_why_not(node, program.weights)
            fix = (
                "add quantize-activations{bits=8}"
                if known(weight.encoding)
                else f"store it as one of {menu}, or as float"
            )
            if why:
                yield about(node, why, fix)


def _tables(program: Program) -> Iterator[Refusal]:
    menu = ", ".join(f"'{c.weight}'" for c in EMBEDDING if c.weight)
    for node in program.nodes(aten.embedding.default):
        table = _weight(program, node.args[0])
        if isinstance(table, QTensor) and not any(c.admits(table.encoding, None) for c in EMBEDDING):
            yield about(
                node, f"there is no embedding kernel for '{table.encoding}'", f"store it as one of {menu}, or as float"
            )
        elif isinstance(table, QTensor) and table.shape[-1] * table.encoding.bits % 8:
            yield about(
                node, f"a row of {table.shape[-1]} codes of {table.encoding.bits} bits is not whole bytes", "use 8 bits"
            )


def _other_readers(program: Program) -> Iterator[Refusal]:
    """Weights stored as integers that neither a linear nor an embedding reads."""
    for node in program.nodes():
        for i, x in enumerate(node.args):
            if not isinstance(_weight(program, x), QTensor):
                continue
            linear = node.target is aten.linear.default and i == 1
            if not linear and not (node.target is aten.embedding.default and i == 0):
                name = x.target if isinstance(x, fx.Node) else ""
                yield about(
                    node,
                    f"'{name}' is stored as integers, which only linear and embedding read",
                    "leave it floating point",
                )


def _encodes(program: Program) -> Iterator[Refusal]:
    for node in program.nodes(ours.encode.default):
        readers = {u.target for u in node.users}
        if readers == {ours.cached_attention.encoded}:
            continue
        if aten.scaled_dot_product_attention.default in readers:
            over_a_cache = "attention reads the rounded value, and there is a kernel for that only over a cache"
            yield about(node, over_a_cache, "put add-kv-cache into the recipe, or leave out quantize-cache")
            continue
        why = encode_why_not(node, program.weights)
        explained = any(
            _weight(program, u.args[1]) is not None and _is_refused(u, program) for u in node.users if len(u.args) > 1
        )
        if why and not explained:
            encoding = Encoding.parse(str(node.args[1]))
            fix = "round activations with quantize-activations{bits=8}, in front of linears with stored weights"
            yield about(node, f"{why} (here '{encoding}')" if "as '" in why else why, fix)


def _is_refused(node: fx.Node, program: Program) -> bool:
    stored = isinstance(_weight(program, node.args[1]), QTensor)
    return stored and node.target is aten.linear.default and linear_why_not(node, program.weights) is not None


def _rotations(program: Program) -> Iterator[Refusal]:
    """Blocks without a matrix: the runtime's own operator would answer with what was in memory."""
    for node in program.nodes(ours.hadamard.default):
        if why := impossible(node):
            yield about(node, why, "turn blocks of a size that is known and divides the channels")


def _attentions(program: Program) -> Iterator[Refusal]:
    """What the kernels take: one width for queries, keys and values, key heads that divide the query heads, and either
    everything in floating point or everything as HEADS."""
    for node in program.nodes(*CACHED_ATTENTION):
        q, k, v = (value(x) for x in node.args[:3])  # type: ignore[arg-type]
        if not q.shape[-1] == k.shape[-1] == v.shape[-1]:
            widths = f"{q.shape[-1]}, {k.shape[-1]} and {v.shape[-1]}"
            yield about(
                node, f"queries, keys and values have widths {widths}; the kernel takes one", "leave out add-kv-cache"
            )
        if q.shape[1] % k.shape[1]:
            yield about(
                node, f"{k.shape[1]} key heads do not divide {q.shape[1]} query heads", "leave out add-kv-cache"
            )
        if node.target is ours.cached_attention.encoded:
            yield from _integers(node)


def _integers(node: fx.Node) -> Iterator[Refusal]:
    """A cache of integers: in the one encoding that there is a kernel for, and queries too."""
    query: Any = node.args[0]
    encoding = Encoding.parse(str(node.args[12]))
    if encoding != HEADS:
        yield about(node, f"its cache is '{encoding}'; the kernel reads '{HEADS}'", "use quantize-cache{bits=8}")
    elif query.target is not ours.encode.default or query.args[1] != node.args[12]:
        why = "its keys are integers and its queries are not; the kernel multiplies integers with integers"
        yield about(node, why, "use quantize-cache{queries=true}")
    if value(query).dtype != torch.float32:
        dtype = str(value(query).dtype).removeprefix("torch.")
        yield about(
            node, f"its queries are {dtype}; the kernel that rounds them reads float32", "leave out quantize-cache"
        )
