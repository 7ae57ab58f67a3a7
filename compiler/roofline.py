"""How long a program takes on a device: the larger of what it moves and what it computes, operator by operator.

The roofline model (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785). A language model decodes as
fast as its weights come from memory, and reads a prompt as fast as they are multiplied with: a device is two rates for
each kind of kernel. A call reads weights whole and once; of tables that tokens look up it reads a row per token. The
operators between products and attention are left out: what they read has just been written, and is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import Site
from drawplate.canonical.match import argument, aten, is_call, value, weight_behind
from drawplate.device import Device
from drawplate.encoding import QTensor
from drawplate.hadamard import pieces
from drawplate.ops import CACHED_ATTENTION
from drawplate.program import Program, Weight, symbols_of

Size = Callable[[Tensor], list[int]]
"""A tensor's lengths as numbers."""

EMBEDDING = aten.embedding.default
PRODUCTS = (aten.linear.default, aten.matmul.default, aten.bmm.default, aten.mm.default, aten.addmm.default)
CONVOLUTIONS = (aten.convolution.default, aten.conv2d.default, aten.conv1d.default)
HADAMARD = torch.ops.drawplate.hadamard.default
SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Work:
    """What one operator does in one call. bytes: that it moves from memory. multiply_adds: that it computes. integer:
    in the kernels for weights that are stored as integers?"""

    bytes: int
    multiply_adds: int
    integer: bool = False


@dataclass(frozen=True)
class Estimate:
    """How long a program takes on a device. decode_seconds: per token, the cache full. prompt_seconds: for a prompt of
    `prompt` tokens at the beginning."""

    device: str
    context: int
    decode_seconds: float
    prompt: int
    prompt_seconds: float

    def __str__(self) -> str:
        decode = f"{1e3 * self.decode_seconds:.3g} ms per token ({1 / self.decode_seconds:.3g} tokens/s)"
        rate = self.prompt / self.prompt_seconds
        prompt = f"{1e3 * self.prompt_seconds:.3g} ms for a prompt of {self.prompt} ({rate:.3g} tokens/s)"
        return f"on {self.device}: {decode} at {self.context} tokens, {prompt}"


def estimate(program: Program, device: Device, prompt: int = 64) -> Estimate:
    """What a device is expected to take for decoding and for a prompt."""
    decode, first = seconds(program, device), seconds(program, device, tokens=prompt, context=prompt)
    return Estimate(device.name, max(1, cache_length(program)), decode, prompt, first)


def seconds(program: Program, device: Device, *, tokens: int = 1, context: int | None = None) -> float:
    """Of one call with so many tokens, in seconds; one token is decoding. context: positions that the last token
    attends to, those of this call included, and so never less than `tokens`; None: as many as the cache has."""
    return sum(shares(program, device, tokens=tokens, context=context).values())


def shares(program: Program, device: Device, *, tokens: int = 1, context: int | None = None) -> dict[str, float]:
    """seconds() by the name of the weight that an operator reads, else by its module. Arguments as seconds'."""
    found: dict[str, float] = {}
    for node, work in works(program, tokens=tokens, context=context):
        weight = node.args[0 if node.target is EMBEDDING else 1] if node.target in (*PRODUCTS, EMBEDDING) else None
        stored = weight_behind(weight)
        name = str(stored.target if stored else node.meta.get("site") or node.name)
        found[name] = found.get(name, 0.0) + device.seconds(work.bytes, work.multiply_adds, integer=work.integer)
    return found


def bytes_moved(program: Program, *, tokens: int = 1, context: int | None = None) -> int:
    """Bytes of weights and of cached rows that one call reads. Arguments as seconds'."""
    return sum(work.bytes for _, work in works(program, tokens=tokens, context=context))


def works(program: Program, *, tokens: int = 1, context: int | None = None) -> Iterator[tuple[fx.Node, Work]]:
    """What every product, lookup and attention does, in order. Arguments as seconds'."""
    size, context = sizes(program, tokens), max(tokens, cache_length(program) if context is None else context)
    for node in program.nodes():
        if node.target in (SDPA, *CACHED_ATTENTION):
            yield node, _attention(node, size, tokens, context)
        elif node.target is EMBEDDING:
            yield node, _lookup(node, size, program.weights)
        elif macs := products(node, size):
            behind = [str(x.target) for x in map(weight_behind, node.all_input_nodes) if x is not None]
            read = [program.weights[name] for name in behind if name in program.weights]
            yield node, Work(sum(w.nbytes for w in read), macs, any(isinstance(w, QTensor) for w in read))


def cache_length(program: Program) -> int:
    """Positions that the longest cache holds; 0 without one."""
    return max((int(value(n.args[3]).shape[1]) for n in program.nodes(*CACHED_ATTENTION)), default=0)  # type: ignore[arg-type]


def sizes(program: Program, tokens: int) -> Size:
    """Lengths where the text is so many tokens long (the last length of the first input that varies) and all else that
    varies is 1."""
    varies = [n for n in program.inputs[0].shape if isinstance(n, str)] if program.inputs else []
    values = {s: tokens if [name] == varies[-1:] else 1 for s, name in symbols_of(program).items()}
    known: dict[Any, int] = {}

    def length(n: Any) -> int:
        if isinstance(n, int):
            return n
        expression = n.node.expr
        if expression not in known:
            known[expression] = int(expression.subs(values))
        return known[expression]

    return lambda tensor: [length(n) for n in tensor.shape]


def weight_seconds(site: Site, nbytes: int, device: Device, *, integer: bool) -> float:
    """Of one token, in all that read this weight: if it is stored in so many bytes, as integers or not."""
    lookups = sum(n.target is EMBEDDING for n in site.nodes)
    product = device.seconds(nbytes, math.prod(site.shape), integer=integer)
    row = device.seconds(-(-nbytes // site.shape[0]), 0, integer=False)
    return (len(site.nodes) - lookups) * product + lookups * row


def products(node: fx.Node, size: Size) -> int:
    """Multiply-adds of a product of matrices, a convolution or a Hadamard transform; 0 of anything else."""
    if node.target is HADAMARD:
        return math.prod(size(value(node))) * sum(pieces(int(node.args[1])))  # type: ignore[arg-type]
    if node.target in PRODUCTS:
        left: Any = node.args[1 if node.target is aten.addmm.default else 0]
        return math.prod(size(value(node))) * size(value(left))[-1]
    if node.target in CONVOLUTIONS:
        kernel: Any = node.args[1]
        return math.prod(size(value(node))) * math.prod(size(value(kernel))[1:])
    return 0


def _attention(node: fx.Node, size: Size, tokens: int, context: int) -> Work:
    """Rows of keys and values once, and two products with them; a causal one leaves out what is in the future."""
    q, k, v = (value(x) for x in node.args[:3])  # type: ignore[arg-type]
    cached = node.target in CACHED_ATTENTION
    mask: Any = argument(node, 3, "attn_mask") if node.target is SDPA else None
    window = argument(node, 7, "window", 0) if cached else 0
    if is_call(mask, torch.ops.drawplate.window_mask.default):
        window = mask.args[1]
    causal = cached or window or argument(node, 5, "is_causal", False)
    rows = context if causal else size(k)[-2]
    rows = min(rows, window + tokens - 1) if window else rows
    seen = min(rows, window) if window else rows - (tokens - 1) / 2 if causal else rows
    stored = [value(x) for x in node.all_input_nodes if x.op == "get_attr"] if cached else []
    row_bytes = sum(t[0, 0].nbytes for t in stored) or sum(t.shape[1] * t.shape[3] * t.dtype.itemsize for t in (k, v))
    heads, width = q.shape[1], q.shape[3] + v.shape[3]
    return Work(rows * int(row_bytes), int(heads * width * size(q)[2] * seen))


def _lookup(node: fx.Node, size: Size, weights: Mapping[str, Weight]) -> Work:
    table: Any = node.args[0]
    weight, rows = weights.get(str(table.target)), math.prod(size(value(node))[:-1])
    return Work(rows * -(-weight.nbytes // weight.shape[0]) if weight is not None else 0, 0)
