"""Where a factor per channel may go from what writes a value into the linears that read it, leaving the function alone.

A norm's weight takes it before the linears that read the norm; a linear's rows before what reads them through products
and views, such as the up-projection's before the down-projection; the rows of an attention's values before what reads
the heads, with one factor for all queries that share a head. The places are those of AWQ (Lin et al. 2023,
arXiv:2306.00978, sec. 3.2); what they apply to is found on the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.bases import Barrier
from drawplate.analysis.channels import VIEWS, Stop, ValuePath, channels, own_weights, value_paths
from drawplate.analysis.hidden import HiddenAxis, Writer, hidden_axes, weight_name
from drawplate.analysis.sites import sites
from drawplate.canonical.match import CASTS, argument, aten, is_call, operator_word, width
from drawplate.errors import Refusal
from drawplate.program import Program

_LINEAR = aten.linear.default
_NORMS = (aten.rms_norm.default, aten.layer_norm.default)
_KEEPS_FACTORS = (aten.relu.default, aten.neg.default, *CASTS)  # f(s x) = s f(x) for every s > 0

_PASSES = (aten.mul.Tensor, aten.div.Tensor, *_KEEPS_FACTORS)


@dataclass(frozen=True)
class Share:
    """One axis of a weight and which factor each of its positions takes, int [n]; -1: none."""

    weight: str
    axis: int
    factor: Tensor = field(compare=False)


@dataclass(frozen=True)
class Scaling:
    """`count` factors that `writers` are divided by and the columns of `readers`, linears, are multiplied by.

    norm: whose weight is divided, where the readers read a norm; it may have none yet. columns: those of each reader.
    """

    count: int
    readers: tuple[fx.Node, ...]
    columns: tuple[Share, ...]
    writers: tuple[Share, ...]
    norm: fx.Node | None = None

    @property
    def name(self) -> str:
        """The weight that reads it first."""
        return self.columns[0].weight


def scalings(program: Program) -> Iterator[Scaling | Refusal]:
    """For every value that a linear of the body reads, in the order of the graph: its scaling, or why there is none."""
    paths = {reader: path for path in value_paths(program) if isinstance(path, ValuePath) for reader, _ in path.readers}
    axes = {r: axis for axis in hidden_axes(program) if isinstance(axis, HiddenAxis) for r in axis.readers}
    body = {node for site in sites(program) if site.role == "linear" for node in site.nodes}
    done: set[fx.Node] = set()
    for node in program.nodes(_LINEAR):
        if node not in body or node in done:
            continue
        try:
            found = _at(program, node, paths, axes)
        except Stop as stop:
            together = [u for u in node.all_input_nodes[0].users if u in body]
            done |= {node, *together}
            yield from (_refusal(reader, stop.barrier) for reader in together)
        else:
            done |= {*found.readers}
            yield found


def _at(program: Program, linear: fx.Node, paths: dict[fx.Node, ValuePath], axes: dict[fx.Node, HiddenAxis]) -> Scaling:
    if linear in paths:
        return _of_values(paths[linear])
    if linear in axes:
        return _of_hidden(axes[linear])
    root: Any = linear.args[0]
    while is_call(root, *VIEWS):
        root = root.args[0]
    if not is_call(root, *_NORMS):
        raise Stop(root, f"its channels come from '{operator_word(root)}', which takes no factors")
    return _of_norm(program, root)


def _of_norm(program: Program, norm: fx.Node) -> Scaling:
    if norm.args[1] != [width(norm)]:
        raise Stop(norm, "the norm runs over several axes")
    taken = [w for w in (argument(norm, 2, "weight"), _bias(norm)) if w is not None]
    if any(w.op != "get_attr" or len(program.readers(str(w.target))) != 1 for w in taken):
        raise Stop(norm, "the norm's weight is computed, or read elsewhere too")
    every = torch.arange(width(norm) or 0)
    readers: list[fx.Node] = []
    for end, numbers in channels(norm):
        for user in end.users:
            if is_call(user, *VIEWS):
                continue
            if not is_call(user, _LINEAR) or user.args[0] is not end or not torch.equal(numbers.flatten(), every):
                raise Stop(user, f"'{operator_word(user)}' reads the norm too")
            own_weights(program, user)
            readers.append(user)
    return Scaling(
        len(every), tuple(readers), _columns(readers, every), tuple(Share(str(w.target), 0, every) for w in taken), norm
    )


def _bias(norm: fx.Node) -> Any:
    return argument(norm, 3, "bias") if is_call(norm, aten.layer_norm.default) else None


def _of_hidden(axis: HiddenAxis) -> Scaling:
    """The axis's factors go through whatever stands between if one of its writers takes them, or all."""
    every = torch.arange(axis.width)
    ways: list[Sequence[Writer]] = [*([w] for w in reversed(axis.writers)), axis.writers]
    chosen = next((way for way in ways if _carried(axis, way)), None)
    if chosen is None:
        inside = next((n for n in axis.between if not is_call(n, *_PASSES)), axis.between[-1])
        raise Stop(inside, f"no factor goes through '{operator_word(inside)}'")
    writers: list[Share] = []
    for writer in chosen:
        own = torch.full((width(writer.linear) or 0,), -1)
        own[writer.rows] = every
        writers += _rows(writer.linear, own)
    return Scaling(axis.width, axis.readers, _columns(axis.readers, every), tuple(writers))


def _carried(axis: HiddenAxis, way: Sequence[Writer]) -> bool:
    """Is every reader's input multiplied by the factors if these writers are?"""
    powers = {w.value: int(w in way) for w in axis.writers}
    for node in axis.between:
        given = [powers.get(n, 0) for n in node.all_input_nodes if n in powers or width(n) == axis.width]
        if is_call(node, aten.mul.Tensor):
            powers[node] = sum(powers.get(a, 0) for a in node.args[:2] if isinstance(a, fx.Node))
        elif is_call(node, aten.div.Tensor) and (len(given) == 1 or not given[1]):
            powers[node] = given[0]
        elif is_call(node, *_KEEPS_FACTORS) or (is_call(node, aten.add.Tensor, aten.sub.Tensor) and len(given) == 2):
            powers[node] = given[0]
            if len(set(given)) > 1:
                return False
        elif any(given):
            return False
        else:
            powers[node] = 0
    return all(powers.get(r.all_input_nodes[0]) == 1 for r in axis.readers)


def _of_values(path: ValuePath) -> Scaling:
    heads, size = path.rows.shape
    own = torch.full((width(path.writer) or 0,), -1)
    own[path.rows.flatten()] = torch.arange(heads * size)
    shares = []
    for reader, columns in path.readers:
        head = torch.arange(len(columns)) // (len(columns) // heads)
        factor = torch.empty(columns.numel(), dtype=torch.int64)
        factor[columns.flatten()] = (head[:, None] * size + torch.arange(size)).flatten()
        shares.append(Share(weight_name(reader), 1, factor))
    return Scaling(heads * size, tuple(r for r, _ in path.readers), tuple(shares), tuple(_rows(path.writer, own)))


def _rows(linear: fx.Node, factor: Tensor) -> Iterator[Share]:
    """Of its weight and of its bias."""
    yield from (Share(str(read.target), 0, factor) for read in linear.all_input_nodes[1:])


def _columns(readers: Sequence[fx.Node], factor: Tensor) -> tuple[Share, ...]:
    return tuple(Share(weight_name(reader), 1, factor) for reader in readers)


def _refusal(reader: fx.Node, barrier: Barrier) -> Refusal:
    source = str(barrier.node.meta.get("source") or "")
    return Refusal(weight_name(reader), "aten.linear", f"not scaled: {barrier.why}", source)
