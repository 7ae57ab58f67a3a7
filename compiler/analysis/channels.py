"""Which row of a weight becomes which channel of a value: the views between them, run on the channels' numbers.

A fused query-key-value, heads that interleave, chunks and slices need no rule each: the numbers of the weight's rows go
through the very operators that the values go through.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.bases import Barrier
from drawplate.canonical.match import argument, aten, expression, is_call, operator_word
from drawplate.program import Program

VIEWS = (
    aten.reshape.default, aten.transpose.int, aten.permute.default, aten.slice.Tensor, aten.chunk.default,
    aten.split.Tensor, aten.split_with_sizes.default, aten.unsqueeze.default, aten.squeeze.dim, aten.select.int,
    operator.getitem, torch.ops.drawplate.last_position.default,
)  # fmt: skip
_SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class ValuePath:
    """The values of one attention: what writes them and what reads the heads that it mixes from them.

    Attention mixes positions and leaves channels alone, so each key-value head may have a basis of its own.
    writer: the linear. rows: int [heads, d], its rows, head by head. readers: for each linear that reads the result its
    columns, int [query heads, d]; query head i reads the values of head i // (query heads / heads).
    """

    attention: fx.Node
    writer: fx.Node
    rows: Tensor
    readers: tuple[tuple[fx.Node, Tensor], ...]


def value_paths(program: Program) -> Iterator[ValuePath | Barrier]:
    """For every attention its value path, or why there is none."""
    for node in program.nodes(_SDPA):
        try:
            yield _path(program, node)
        except Stop as stop:
            yield stop.barrier


class Stop(Exception):
    """Channels cannot be followed further; barrier says where and why."""

    def __init__(self, node: fx.Node, why: str) -> None:
        super().__init__(why)
        self.barrier = Barrier(node, why)


def _path(program: Program, attention: fx.Node) -> ValuePath:
    value: Any = attention.args[2]
    writer = value
    while is_call(writer, *VIEWS):
        writer = writer.args[0]
    if not is_call(writer, aten.linear.default):
        raise Stop(writer, f"the values come from '{operator_word(writer)}', not from a linear")
    own_weights(program, writer)
    if attention.args.count(value) > 1 or len(value.users) > 1:
        raise Stop(attention, "the values are read as something else too")
    ends = dict(channels(writer))
    rows = _heads(value, ends.pop(value), attention)
    taken = set(rows.flatten().tolist())
    for end, numbers in ends.items():
        if taken & set(numbers.flatten().tolist()):
            raise Stop(end, "rows of the values are read elsewhere too")
    return ValuePath(attention, writer, rows, tuple(_readers(program, attention, rows)))


def _readers(program: Program, attention: fx.Node, rows: Tensor) -> Iterator[tuple[fx.Node, Tensor]]:
    """The linears that read the attention's result, each with its columns, head by head."""
    heads = int(attention.meta["val"].shape[1])
    for end, numbers in channels(attention):
        flat = numbers.flatten()
        order = torch.argsort(flat)
        whole = torch.equal(flat[order], torch.arange(heads * rows.shape[1]))
        for user in end.users:
            if is_call(user, *VIEWS):
                continue
            if not is_call(user, aten.linear.default) or user.args[0] is not end or not whole:
                raise Stop(user, f"the attended values are read by '{operator_word(user)}'")
            own_weights(program, user)
            yield user, order.reshape(heads, rows.shape[1])


def own_weights(program: Program, linear: fx.Node) -> None:
    """Raises Stop unless the linear's weight and bias are weights that nothing else reads."""
    for read in linear.all_input_nodes[1:]:
        if read.op != "get_attr" or len(program.readers(str(read.target))) != 1:
            raise Stop(linear, "its weight is computed, or read elsewhere too")


def _heads(value: fx.Node, numbers: Tensor, attention: fx.Node) -> Tensor:
    """numbers: [1, heads, 1, d] -> [heads, d]."""
    if numbers.dim() != 4 or numbers.shape[0] != 1 or numbers.shape[2] != 1:
        raise Stop(value, "the values are not [batch, heads, length, width]")
    if int(attention.meta["val"].shape[1]) % numbers.shape[1]:
        raise Stop(attention, "its heads are not a multiple of the values' heads")
    return numbers[0, :, 0]


def channels(root: fx.Node) -> Iterator[tuple[fx.Node, Tensor]]:
    """The values that other operators than views read, made from root by views alone, each as root's channel numbers.

    root: [..., n]; for an attention [b, heads, s, d] the channels are (head, width), numbered through. Lengths that
    are symbols count as 1, and so must be every other axis. Raises Stop where that is not so.
    """
    shape = _lengths(root.meta["val"])
    at = {_SDPA: (1, 3)}.get(root.target, (len(shape) - 1,))  # type: ignore[call-overload]
    if any(n != 1 for axis, n in enumerate(shape) if axis not in at):
        raise Stop(root, "a length other than the channels' is fixed")
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    queue: list[tuple[fx.Node, Any]] = [(root, numbers)]
    while queue:
        node, found = queue.pop(0)
        views = [user for user in node.users if is_call(user, *VIEWS)]
        if len(views) < len(node.users):
            yield node, found
        queue += [(view, _run(view, found)) for view in views]


def _run(view: fx.Node, numbers: Any) -> Any:
    """The view's operator on channel numbers."""
    after = view.meta["val"]
    if is_call(view, aten.reshape.default):
        source: Any = view.args[0]
        if _runs(source.meta["val"]) != _runs(after):
            raise Stop(view, "channels and positions are mixed in 'reshape'")
        return numbers.reshape(_lengths(after))
    axis: Any = argument(view, 1, "dim", 0)
    if is_call(view, aten.slice.Tensor) and numbers.shape[axis] == 1:
        return numbers  # some of the positions
    try:
        args = [1 if isinstance(a, fx.Node) else a for a in view.args[1:]]
        found = view.target(numbers, *args, **view.kwargs)  # type: ignore[operator]
    except (IndexError, RuntimeError):  # it takes positions apart, and of those there is one here
        found = None
    if found is None or (isinstance(after, Tensor) and list(found.shape) != _lengths(after)):
        raise Stop(view, f"channels cannot be followed through '{operator_word(view)}'")
    return found


def _runs(value: Tensor) -> list[Any]:
    """The lengths in order, symbols next to each other as one product and so numbers: a reshape between two shapes
    with the same runs takes channels from channels alone."""
    runs: list[tuple[bool, Any]] = []
    for length in map(expression, value.shape):
        fixed = isinstance(length, int)
        if fixed and length == 1:
            continue
        if runs and runs[-1][0] == fixed:
            runs[-1] = (fixed, runs[-1][1] * length)
        else:
            runs.append((fixed, length))
    return runs


def _lengths(value: Tensor) -> list[int]:
    return [n if isinstance(expression(n), int) else 1 for n in value.shape]
