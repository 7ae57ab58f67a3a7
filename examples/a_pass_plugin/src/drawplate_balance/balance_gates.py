"""balance-gates: the channels that carry most through a gated layer get the larger weights, and so lose least.

In down(act(gate(x)) * up(x)) a channel's scale can be moved from `up` to `down` without changing anything: divide row i
of `up` by s_i and multiply column i of `down` by s_i. Where weights of many channels share a quantisation step, as in
groups along `down`'s rows, a larger column is rounded more finely in proportion. So s_i = m_i ^ strength, where m_i is
how much channel i carries: AWQ's scales (Lin et al. 2023, arXiv:2306.00978, equations 3 to 5), across a gate, where
they cost nothing when the model runs. Each s_i is a power of two: floating point scales by those exactly, so the
function stays the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from drawplate.errors import Refusal
from drawplate.facts import INTERFACE, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Fact, Invariant, Pass
from drawplate.program import Program
from drawplate_balance.measuring import root_mean_squares

aten = torch.ops.aten


@dataclass(frozen=True)
class BalanceGates(Pass):
    """Balance the channels of every product that is read by linears only and has a linear of its own on one side.

    What a channel carries is measured on the calibration text, as the root mean square of the product. strength: 0
    leaves everything as it is, 1 makes all channels carry alike. limit: largest power of two, as an exponent, that a
    channel is scaled by; 8 keeps every weight far from the ends of float16.
    """

    name: ClassVar[str] = "balance-gates"
    requires: ClassVar[frozenset[Fact]] = frozenset({WEIGHTS_FLOAT})  # integers cannot be scaled one channel at a time
    preserves: ClassVar[frozenset[Fact]] = INTERFACE | {WEIGHTS_FLOAT}
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, SAME_FUNCTION)

    strength: float = 0.25
    limit: int = 8

    def __post_init__(self) -> None:
        if self.strength < 0 or self.limit < 0:
            raise ValueError("strength and limit are not negative")

    def run(self, program: Program, env: Env) -> Program:
        """The same graph over other weights."""
        editor = program.edit()
        found = [gate for gate in gates(program) if _allowed(program, *gate, env)]
        if not found or _rehearsed(program):
            return editor.finish()
        if env.calibration is None:
            why = "without a calibration text nothing says what its channels carry"
            env.refuse(Refusal(program.name, "", why, fix="give a text"))
            return editor.finish()
        carried = root_mean_squares(program, [product for product, _, _ in found], env.calibration, env.progress)
        for product, up, downs in found:
            s = scales(carried[product.name], self.strength, self.limit)
            rows = _tensor(program, up, 1)
            editor.weights[_name(up, 1)] = rows / s.to(rows.dtype)[:, None]
            if _has_bias(up):
                bias = _tensor(program, up, 2)
                editor.weights[_name(up, 2)] = bias / s.to(bias.dtype)
            for down in downs:
                columns = _tensor(program, down, 1)
                editor.weights[_name(down, 1)] = columns * s.to(columns.dtype)
        return editor.finish()


Gate = tuple[fx.Node, fx.Node, list[fx.Node]]


def gates(program: Program) -> Iterator[Gate]:
    """(product, the linear on one side of it, the linears that read it), where nothing else reads either."""
    for product in program.nodes(aten.mul.Tensor):
        downs = list(product.users)
        sides = [a for a in product.args if isinstance(a, fx.Node) and a.target is aten.linear.default]
        sides = [a for a in sides if len(a.users) == 1]
        if sides and downs and all(d.target is aten.linear.default and d.args[0] is product for d in downs):
            yield product, sides[-1], downs


def scales(carried: Tensor, strength: float, limit: int) -> Tensor:
    """carried: how much each channel carries, [channels] -> powers of two [channels] in proportion to its power
    `strength`, about 1 in the geometric mean. 1 for a channel that carries nothing.

    >>> scales(torch.tensor([16.0, 1.0, 0.0, 4.0]), 0.5, 8).tolist()
    [2.0, 0.5, 1.0, 1.0]
    """
    logs = torch.log2(carried.double()) * strength
    usable = torch.isfinite(logs)
    middle = torch.where(usable, logs, 0).sum() / usable.sum().clamp(min=1)
    exponents = torch.round(logs - middle).clamp(-limit, limit)
    return torch.where(usable, torch.exp2(exponents), 1.0)


def _rehearsed(program: Program) -> bool:
    """Has the program shapes and no contents? Then this pass changes nothing that anyone could see."""
    return any(isinstance(w, Tensor) and w.is_meta for w in program.weights.values())


def _allowed(program: Program, product: fx.Node, up: fx.Node, downs: list[fx.Node], env: Env) -> bool:
    """May these weights be scaled? If not, the reason is recorded."""
    names = [_name(up, 1), *([_name(up, 2)] if _has_bias(up) else []), *(_name(d, 1) for d in downs)]
    stored = [n for n in names if n in program.weights]
    why = [f"{n} is computed, not stored" for n in names if n not in stored]
    why += [f"{n} is read in more than one place" for n in stored if len(program.readers(n)) > 1]
    if why:
        site = product.meta.get("site", product.name)
        env.refuse(Refusal(site, "aten.mul", "; ".join(why), product.meta.get("source", "")))
    return not why


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
