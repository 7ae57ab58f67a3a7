"""balance-gates: the rows of an up projection and the columns of the down projection behind it get equal ranges.

In down(act(gate(x)) * up(x)) a channel's scale can be moved from `up` to `down` without changing anything: divide row i
of `up` by s_i and multiply column i of `down` by s_i. A quantiser that shares one scale among many elements of a row
gains when the ranges are even. This is cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1),
s_i = sqrt(max|up_i| / max|down_i|), across a gate instead of across a ReLU, and with s_i rounded to a power of two:
floating point scales by those exactly, so the function stays the same to the last bit. It needs no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from drawplate.errors import Refusal
from drawplate.facts import CACHE_INSERTED, HEAD_LAST_POSITION, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Fact, Invariant, Pass
from drawplate.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class BalanceGates(Pass):
    """Balance the channels of every product that is read by linears only and has a linear of its own on one side.

    limit: largest power of two, as an exponent, that a channel is scaled by; 8 keeps every weight far from the ends of
    float16.
    """

    name: ClassVar[str] = "balance-gates"
    requires: ClassVar[frozenset[Fact]] = frozenset({WEIGHTS_FLOAT})  # integers cannot be scaled one channel at a time
    preserves: ClassVar[frozenset[Fact]] = frozenset({WEIGHTS_FLOAT, CACHE_INSERTED, HEAD_LAST_POSITION})
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, SAME_FUNCTION)

    limit: int = 8

    def run(self, program: Program, env: Env) -> Program:
        """The same graph over other weights."""
        editor = program.edit()
        for product, up, downs in gates(program):
            why = _obstacle(program, up, downs)
            if why:
                site = product.meta.get("site", product.name)
                env.refuse(Refusal(site, "aten.mul", why, product.meta.get("source", "")))
                continue
            rows = _tensor(program, up, 1)
            columns = {_name(d, 1): _tensor(program, d, 1) for d in downs}
            s = balance(rows, torch.cat(list(columns.values())), self.limit)
            editor.weights[_name(up, 1)] = rows / s[:, None]
            if _has_bias(up):
                editor.weights[_name(up, 2)] = _tensor(program, up, 2) / s
            for name, weight in columns.items():
                editor.weights[name] = weight * s
        return editor.finish()


def gates(program: Program) -> Iterator[tuple[fx.Node, fx.Node, list[fx.Node]]]:
    """(product, the linear on one side of it, the linears that read it), where nothing else reads either."""
    for product in program.nodes(aten.mul.Tensor):
        downs = list(product.users)
        sides = [a for a in product.args if isinstance(a, fx.Node) and a.target is aten.linear.default]
        sides = [a for a in sides if len(a.users) == 1]
        if sides and downs and all(_is_linear_of(d, product) for d in downs):
            yield product, sides[-1], downs


def balance(up: Tensor, down: Tensor, limit: int) -> Tensor:
    """up: [channels, in], down: [out, channels] -> powers of two [channels] that make max|up_i| / s_i and
    max|down_i| * s_i as equal as powers of two can. 1 where a side is all zeros.

    >>> balance(torch.tensor([[8.0], [1.0], [0.0]]), torch.tensor([[0.5, 1.0, 3.0]]), 8).tolist()
    [4.0, 1.0, 1.0]
    """
    ratio = up.abs().amax(1).double() / down.abs().amax(0).double()
    exponent = torch.round(torch.log2(ratio) / 2).clamp(-limit, limit)
    usable = torch.isfinite(ratio) & (ratio > 0)
    return torch.where(usable, torch.exp2(exponent), torch.ones_like(exponent)).to(up.dtype)


def _is_linear_of(node: fx.Node, x: fx.Node) -> bool:
    return node.target is aten.linear.default and node.args[0] is x and node.args[1] is not x


def _has_bias(linear: fx.Node) -> bool:
    return len(linear.args) > 2 and linear.args[2] is not None


def _name(linear: fx.Node, argument: int) -> str:
    """Name of a linear's weight (1) or bias (2)."""
    read = linear.args[argument]
    assert isinstance(read, fx.Node)
    return str(read.target)


def _tensor(program: Program, linear: fx.Node, argument: int) -> Tensor:
    weight = program.weights[_name(linear, argument)]
    assert isinstance(weight, Tensor)
    return weight


def _obstacle(program: Program, up: fx.Node, downs: list[fx.Node]) -> str:
    """Why the weights of these linears cannot be scaled; empty if they can."""
    for name in [_name(up, 1), *([_name(up, 2)] if _has_bias(up) else []), *(_name(d, 1) for d in downs)]:
        if name not in program.weights:
            return f"{name} is computed, not stored"
        if len(program.readers(name)) > 1:
            return f"{name} is read in more than one place"
    return ""
