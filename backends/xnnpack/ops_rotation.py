"""An orthogonal rotation that is computed when the model runs, inside the delegate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from drawplate import hadamard
from drawplate.backends.xnnpack.rules import Rule, Weights, Writer, is_fixed, lengths, only_float32, varies
from drawplate.backends.xnnpack.serialise import Value
from drawplate.canonical.match import argument, value


def block_of(node: fx.Node) -> int:
    """How many channels it mixes."""
    return int(node.args[1])  # type: ignore[arg-type]


def is_inverse(node: fx.Node) -> bool:
    """Is it the way back?"""
    return bool(argument(node, 2, "transpose", False))


def stored_piece(order: int, inverse: bool) -> tuple[str, Tensor]:
    """The name and the contents of a piece's matrix as the file has it, for x -> x H / sqrt(order): f32 [order, order].
    One that is its own inverse is there once for both ways."""
    matrix = hadamard.hadamard(order, torch.float32) * order**-0.5
    if inverse and not torch.equal(matrix, matrix.T):
        return f"hadamard.{order}.inverse", matrix.T
    return f"hadamard.{order}", matrix


def impossible(node: fx.Node) -> str | None:
    """The reason why nothing computes this rotation, or None: its channels must be blocks that have a matrix."""
    n, block = value(node).shape[-1], block_of(node)
    if not is_fixed(n):
        return "the number of its channels varies"
    if not hadamard.known(block):
        return f"no Hadamard matrix of order {block} is known"
    return f"blocks of {block} do not divide {n} channels" if n % block else None


def why_not(node: fx.Node, weights: Weights) -> str | None:
    """float32, and XNNPACK can tell the shape of the result."""
    two = "two of its lengths vary; XNNPACK can work out one" if sum(varies(node)) > 1 else None
    return impossible(node) or only_float32(node, weights) or two


def write(w: Writer, node: fx.Node) -> Value:
    """Blocks of channels times H / sqrt(block), piece by piece: rows times the innermost, then the others from the
    left, so that nothing is transposed. Each piece's matrix is in the file once.

    ExecuTorch's llama.fast_hadamard_transform would end the delegate in each layer, runs on one thread, and for orders
    other than 2^k gives other numbers or none. Added to a 4-bit MLP, in us (x86, medians, calls interleaved):

                                              this    that    the MLP
        576 -> 1536, 1 token, 1 thread           4       6         50
                     64 tokens, 1 thread       160     160        870
                     64 tokens, 2 threads       80     125        450
        2048 -> 8192, 64 tokens, 1 thread     1010     590      15500
                      64 tokens, 2 threads     470     830       7900

    One token of 8192 channels is a matter of 20 us in 900 either way, which is within what memory does to the 900.
    """
    n, x, done = lengths(node)[-1], w.value(node.args[0]), 1
    rows = math.prod(lengths(node)[:-1])
    for order in reversed(hadamard.pieces(block_of(node))):
        name, matrix = stored_piece(order, is_inverse(node))
        rest = n // (order * done)
        if done == 1:
            x = w.graph.reshape(x, (rows, rest, order), (True, False, False))
            x = w.graph.linear(x, w.graph.constant(name, matrix.T))
        else:
            x = w.graph.reshape(x, (rows, rest, order, done), (True, False, False, False))
            x = w.graph.matmul(w.graph.constant(name, matrix.T[None, None]), x)
        done *= order
    return w.graph.reshape(x, lengths(node), varies(node))


ROTATION: dict[Any, Rule] = {torch.ops.drawplate.hadamard.default: Rule(why_not, write)}
