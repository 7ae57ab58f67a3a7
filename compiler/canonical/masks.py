"""A mask that is built from positions -> causal, or a window: decided by evaluating it on concrete positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, fx

from drawplate.canonical.evaluate import Evaluator, allowed, ancestors, dim_of, value_inputs
from drawplate.canonical.grouped import SDPA
from drawplate.canonical.match import value
from drawplate.program import Editor

POSITIONS = "position_ids"  # our own name for the input of consecutive positions
_SHORT = 24  # length that masks are evaluated at; a window is read off directly if it is shorter
_CASES = ((2, 7, 0), (1, _SHORT, 0), (2, _SHORT, 5))  # batch, length, first position


@dataclass(frozen=True)
class Window:
    """Position j may be read from i: i - size < j <= i. size None: all earlier positions."""

    size: int | None


def masks(editor: Editor) -> None:
    """Attention whose mask is causal on consecutive positions says so, and the mask's sub-graph goes."""
    known: dict[fx.Node, Window | None] = {}
    longest = max((d.high for d in editor.dims), default=0)
    for node in editor.nodes(SDPA):
        q, k, v, mask, dropout, causal = node.args
        if not isinstance(mask, fx.Node) or causal or mask.target is torch.ops.drawplate.window_mask.default:
            continue
        if mask not in known:
            known[mask] = window_of(editor, mask)
        window = known[mask]
        if window is None:
            continue
        if window.size is None or window.size >= longest:
            node.args = (q, k, v, None, dropout, True)
            continue
        with editor.graph.inserting_before(node):
            new = editor.call(torch.ops.drawplate.window_mask.default, q, window.size, like=node)
        node.args = (q, k, v, new, dropout, False)


def window_of(editor: Editor, mask: fx.Node) -> Window | None:
    """What the mask is for positions that count up by one, or None if it is neither causal nor a window.

    A window longer than the evaluated length shows in no value there, so the one large constant of the sub-graph is
    replaced by small ones: if windows of these sizes come out, the constant is the window.
    """
    nodes = ancestors(mask)
    if not from_positions(nodes):
        return None
    along = dim_of(editor, value(mask).shape[-1])
    if along is None:
        return None
    run = Evaluator(editor, mask, nodes)
    probe = _Probe(run, value_inputs(nodes), tuple(d.name for d in editor.dims), along)
    large = run.large_constants(_SHORT)
    direct = _agreed(probe)
    if direct is None or not large:
        return direct
    if direct.size is not None or len(large) != 1:
        return None
    (big,) = large
    small = [_agreed(partial(probe, constants={big: n, -big: -n})) for n in (5, 8)]
    if all(w is not None and w.size is None for w in small):
        return direct
    sizes = [w.size for w in small if w is not None and w.size is not None]
    offset = sizes[0] - 5 if len(sizes) == 2 else 0
    return Window(big + offset) if len(sizes) == 2 and sizes[1] - 8 == offset else None


def from_positions(nodes: set[fx.Node]) -> bool:
    """Does no input but the positions give a value to these nodes?"""
    return all(n.target == POSITIONS for n in value_inputs(nodes))


@dataclass(frozen=True)
class _Probe:
    """Evaluates one mask on positions that count up by one."""

    run: Evaluator
    inputs: list[fx.Node]
    dims: tuple[str, ...]
    along: str

    def __call__(
        self, batch: int, length: int, first: int, constants: Mapping[int, int] = MappingProxyType({})
    ) -> Tensor | None:
        """The mask, bool [..., length, length], for positions from `first` on."""
        lengths = {**dict.fromkeys(self.dims, batch), self.along: length}
        positions = torch.arange(first, first + length)
        inputs = {n: positions.expand(self.run.shape(n, lengths)) for n in self.inputs}
        mask = self.run(inputs, lengths, constants)
        return None if mask is None else allowed(mask)


def read_window(mask: Tensor) -> Window | None:
    """What a bool mask [..., s, s] is, if all its leading axes agree."""
    square = mask.reshape(-1, *mask.shape[-2:])
    n = square.shape[-1]
    if square.shape[-2] != n or not bool((square == square[:1]).all()):
        return None
    i = torch.arange(n)
    distance = i[:, None] - i[None, :]
    reach = int(square[0, -1].sum())
    if bool((square[0] == ((distance >= 0) & (distance < reach))).all()):
        return Window(reach if reach < n else None)
    return None


def _agreed(evaluate: Callable[[int, int, int], Tensor | None]) -> Window | None:
    """The window that all cases show; a case that is too short for it shows a causal mask."""
    found = []
    for batch, length, first in _CASES:
        mask = evaluate(batch, length, first)
        window = None if mask is None else read_window(mask)
        if window is None:
            return None
        found.append((length, window))
    sizes = {w.size for length, w in found if length == _SHORT}
    if len(sizes) != 1:
        return None
    (size,) = sizes
    expected = [None if size is None or size >= length else size for length, _ in found]
    return Window(size) if [w.size for _, w in found] == expected else None
