"""Linears whose results are added up: what one got wrong while it was stored, those after it make up for.

Bands of a weight are such linears, and so are attention and MLP where both read one norm. Together they are one wide
linear, y = W_0 x_0 + W_1 x_1 + .., and from linear to linear is done what GPTQ does from column to column (Frantar et
al. 2022, arXiv:2210.17323, eq. 3): block elimination. What is wrong with y so far is made up for by the next one, and
what those after it can put right by themselves, from what they read, does not count for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical.match import aten, is_call
from drawplate.ranks import add_up

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

    def own(self, linear: fx.Node, values: Mapping[fx.Node, Pieces], moments: Tensor) -> tuple[Pieces, Tensor]:
        """What the linear reads less what is best said of it by what those after it read, as far as that is there; and
        the moments of that, f64 [in, in], from those of all that it reads: their Schur complement."""
        given = values[linear.all_input_nodes[0]]
        others = [n.all_input_nodes[0] for n in self._left[total(linear)] if n is not linear]
        later = [values[n] for n in others if n in values]
        if not later:
            return given, moments
        beside = [torch.cat(parts, -1) for parts in zip(*later, strict=True)]
        within: Any = sum(_rows(b).T.double() @ _rows(b).double() for b in beside)
        across: Any = sum(_rows(b).T.double() @ _rows(x).double() for b, x in zip(beside, given, strict=True))
        add_up(within, across)
        damping = DAMPING * torch.cat([within.diagonal(), moments.diagonal()]).mean()
        within.diagonal().add_(damping)
        said = torch.linalg.solve(within, across)
        left = moments - across.T @ said
        left.diagonal().add_(damping)
        own = [x - b @ said.to(x.dtype) for b, x in zip(beside, given, strict=True)]
        return own, (left + left.T) / 2

    def wanted(self, linear: fx.Node, weight: Tensor, own: Pieces, moments: Tensor) -> Tensor:
        """The weight [out, in] that would make up for what is wrong; the weight itself if nothing is. moments: f64
        [in, in]; both are of what is its `own`."""
        wrong = self._wrong.get(total(linear))
        if wrong is None:
            return weight
        across: Any = sum(_rows(e).T.double() @ _rows(x).double() for e, x in zip(wrong, own, strict=True))
        add_up(across)
        return weight + torch.linalg.solve(_damped(moments), across, left=False).to(weight.dtype)

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


def _damped(moments: Tensor) -> Tensor:
    """With its diagonal made larger, so that it can be inverted."""
    damped = moments.double().clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp(min=torch.finfo(damped.dtype).tiny))
    return damped


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
