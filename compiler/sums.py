"""Linears whose results are added up: what one got wrong while it was stored, those after it make up for.

Bands of a weight are such linears, and so are attention and MLP where both read one norm. With Q_0 given,
||(W_0 - Q_0) x_0 + (W_1 - Q_1) x_1||^2 is least where Q_1 is near W_1 + (W_0 - Q_0) E[x_0 x_1^T] E[x_1 x_1^T]^-1: the
step that GPTQ takes from column to column (Frantar et al. 2022, arXiv:2210.17323, eq. 3), from linear to linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical.match import aten, is_call

DAMPING = 0.01  # of the moments' diagonal, as a share of its mean: what GPTQ adds

Pieces = Sequence[Tensor]  # [.., n], one for each piece of the text


class Sums:
    """The sums among these linears, and what was wrong in each so far."""

    def __init__(self, linears: Iterable[fx.Node], hold: Callable[[Any], Any]) -> None:
        """hold: where activations are kept; see streaming.Room."""
        self._hold = hold
        self._left: dict[fx.Node, list[fx.Node]] = {}
        self._wrong: dict[fx.Node, list[Tensor]] = {}
        for linear in linears:
            self._left.setdefault(total(linear), []).append(linear)

    def wanted(self, linear: fx.Node, weight: Tensor, given: Pieces, moments: Tensor) -> Tensor:
        """The weight [out, in] that would make up for what is wrong; the weight itself if nothing is. given: what the
        linear reads; moments: f64 [in, in] of it."""
        wrong = self._wrong.get(total(linear))
        if wrong is None:
            return weight
        across = sum(_rows(e).T.double() @ _rows(x).double() for e, x in zip(wrong, given, strict=True))
        damped = moments.double().clone()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp(min=torch.finfo(damped.dtype).tiny))
        shift = torch.linalg.solve(damped, across, left=False)
        return weight + shift.to(weight.dtype)

    def add(self, linear: fx.Node, moved: Tensor, given: Pieces) -> None:
        """Take note of what a stored linear gets wrong. moved: [out, in], its weight less what was stored."""
        end = total(linear)
        self._left[end].remove(linear)
        before = self._wrong.pop(end, None)
        if not self._left[end]:
            return
        wrong = [x @ moved.T for x in given]
        if before is not None:
            wrong = [a + b for a, b in zip(wrong, before, strict=True)]
        self._wrong[end] = [self._hold(e) for e in wrong]


def total(linear: fx.Node) -> fx.Node:
    """The value that sums up results of linears alone, this one's among them; the linear itself if it is none."""
    end = linear
    while len(end.users) == 1 and _adds_linears(user := next(iter(end.users))):
        end = user
    return end


def _adds_linears(node: Any) -> bool:
    plain = is_call(node, aten.add.Tensor) and not node.kwargs and len(node.args) == 2
    return plain and all(is_call(a, aten.linear.default) or _adds_linears(a) for a in node.args)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
