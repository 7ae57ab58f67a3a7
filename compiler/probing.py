"""Running a program on small seeded inputs, one weight in memory at a time: what invariants are measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.encoding import as_read
from drawplate.program import Program, Spec

State = dict[str, Tensor]
Watch = Callable[[fx.Node, tuple[Any, ...], Any], None]
Before = Callable[[fx.Node, Mapping[fx.Node, list[Any]]], Mapping[fx.Node, Any]]

aten = torch.ops.aten


class Enough(Exception):
    """Raised by a run's `watch` or `before`: all that was wanted was seen, and what follows need not run."""


def run(
    program: Program, inputs: Sequence[Tensor], *, dtype: torch.dtype | None = None, watch: Watch | None = None
) -> tuple[Tensor, ...]:
    """The program's outputs on these inputs. dtype and watch: see run_pieces."""
    return run_pieces(program, [inputs], dtype=dtype, watch=watch)[0]


def run_pieces(
    program: Program,
    pieces: Sequence[Sequence[Tensor]],
    *,
    dtype: torch.dtype | None = None,
    watch: Watch | None = None,
    before: Before | None = None,
    hold: Callable[[Any], Any] | None = None,
) -> list[tuple[Tensor, ...]]:
    """The outputs for several inputs, one after the other; state starts as zeros and goes from each to the next.

    All pieces go through an operator before the next operator runs. That is the same as one whole run after the other,
    since they meet in state tensors only, and those are each operator's own; and each weight is read once. It is
    dequantised and cast where it is read and let go after its last reader, so a float64 run needs the memory of the
    largest weight and not of all.

    dtype: floating-point weights, inputs and state are computed in it, and so are casts to a floating dtype that the
    graph spells out. watch: called with each operator's node, arguments and value. before: called with each operator's
    node and all values so far, for every piece, before it runs; what it returns takes the place of these values. hold:
    what is kept of a value in its place, the same numbers elsewhere.
    """
    values: dict[fx.Node, list[Any]] = {}
    last = last_readers(program.graph)
    feed = iter(range(len(program.inputs)))
    state = fresh_state(program, dtype)
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "output":
                return [_outputs(node, values, i) for i in range(len(pieces))]
            if node.op == "placeholder":
                which = next(feed)
                values[node] = [_as(piece[which], dtype) for piece in pieces]
            elif node.op == "get_attr":
                values[node] = [_read(program, str(node.target), state, dtype)] * len(pieces)
            else:
                for read, value in (before(node, values) if before is not None else {}).items():
                    values[read] = [value] * len(pieces)
                made = (_call(node, values, i, dtype, watch) for i in range(len(pieces)))
                values[node] = [hold(value) if hold is not None else value for value in made]
            for done in last.get(node, ()):
                del values[done]
    raise AssertionError("a graph ends with its output")


def _call(
    node: fx.Node, values: Mapping[fx.Node, list[Any]], piece: int, dtype: torch.dtype | None, watch: Watch | None
) -> Any:
    def argument(a: Any) -> Any:
        if isinstance(a, fx.Node):
            return values[a][piece]
        floating = isinstance(a, torch.dtype) and a.is_floating_point
        return dtype if floating and dtype is not None else a

    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), argument)
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    if watch is not None:
        watch(node, args, value)
    return value


def _outputs(node: fx.Node, values: Mapping[fx.Node, list[Any]], piece: int) -> tuple[Tensor, ...]:
    result: Any = node.args[0]
    flat = list(result) if isinstance(result, (tuple, list)) else [result]
    return tuple(values[n][piece] if isinstance(n, fx.Node) else torch.tensor(n) for n in flat)


def fresh_state(program: Program, dtype: torch.dtype | None = None) -> State:
    """Zeros for every state tensor, in the dtype that the run computes in."""
    return {s.name: _as(torch.zeros([int(n) for n in s.shape], dtype=s.dtype), dtype) for s in program.state}


def last_readers(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node the values that nobody reads after it (its own, if nobody reads that)."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        ends = [n for n in dict.fromkeys([node, *node.all_input_nodes]) if n not in seen]
        seen.update(ends)
        last[node] = ends
    return last


def probe(program: Program, lengths: Mapping[str, int], seed: int) -> tuple[Tensor, ...]:
    """Seeded inputs of the program with these lengths for its dims.

    Indices into a table are drawn from its rows; positions (an input whose name says so) count up from 0 along the
    last axis; other integers are 1, which is what a mask says of a token that counts; floats are normal.
    """
    generator = torch.Generator().manual_seed(seed)
    nodes = (n for n in program.graph.nodes if n.op == "placeholder")
    return tuple(_input(s, n, lengths, generator) for s, n in zip(program.inputs, nodes, strict=True))


def probe_lengths(program: Program, length: int, batch: int) -> dict[str, int]:
    """A value for each dim, within its bounds: `batch` for what is a first axis everywhere, else `length`."""
    first = {s.shape[0] for s in program.inputs if len(s.shape) > 1}
    others = {n for s in program.inputs for n in (s.shape[1:] if len(s.shape) > 1 else s.shape)}
    wanted = {d: batch if d.name in first - others else length for d in program.dims}
    return {d.name: min(max(n, d.low), d.high) for d, n in wanted.items()}


def is_position(spec: Spec) -> bool:
    """Does this input say where in the text each token stands?"""
    return "pos" in spec.name and not spec.dtype.is_floating_point


def is_mask(spec: Spec) -> bool:
    """Does this input say which tokens are read?"""
    return "mask" in spec.name and not spec.dtype.is_floating_point


def _input(spec: Spec, node: fx.Node, lengths: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [lengths[n] if isinstance(n, str) else n for n in spec.shape]
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    if is_position(spec):
        return torch.arange(shape[-1]).expand(shape).to(spec.dtype).contiguous()
    rows = [n.all_input_nodes[0].meta["val"].shape[0] for n in _lookups(node)]
    if not rows:
        return torch.ones(shape, dtype=spec.dtype)
    return torch.randint(0, min(rows), shape, generator=generator).to(spec.dtype)


def _lookups(node: fx.Node) -> Iterator[fx.Node]:
    """The embeddings that are indexed by this value, as it is or reshaped."""
    for user in node.users:
        if user.target is aten.embedding.default and user.args[1] is node:
            yield user
        elif user.target in (aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.to.dtype):
            yield from _lookups(user)


def _as(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.to(dtype) if dtype is not None and x.is_floating_point() else x


def _read(program: Program, name: str, state: State, dtype: torch.dtype | None) -> Tensor:
    """A weight as it reads back, or a state tensor itself."""
    if name in state:
        return state[name]
    weight = program.weights[name]
    return _as(as_read(weight), dtype)
