"""The program around the regions, in operators that ExecuTorch has kernels for."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.backends.xnnpack.kinds import MAX
from drawplate.backends.xnnpack.ops import ATTENTION
from drawplate.backends.xnnpack.ops_rotation import block_of, is_inverse, stored_piece
from drawplate.backends.xnnpack.partition import Plan, Region
from drawplate.backends.xnnpack.target import HEADS
from drawplate.canonical.match import argument, aten, value
from drawplate.encoding import QTensor
from drawplate.hadamard import pieces
from drawplate.program import Program, example_length

OWN = "constants of the outer program"

ours, local = torch.ops.drawplate, torch.ops.drawplate_xnnpack


@dataclass(frozen=True)
class Outer:
    """module: the graph to export, with example inputs and the axes that vary. stored: what it keeps in the file, as
    (weight's name, tensor), in no particular order. kernels: custom operators that it calls, how often each."""

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    dynamic: tuple[Mapping[int, Any], ...]
    stored: tuple[tuple[str, Tensor], ...]
    kernels: Mapping[str, int]


def outer(program: Program, plan: Plan) -> Outer:
    """The outer program of a plan. The operators of torch.ops.llama and quantized_decomposed must be registered."""
    return _Builder(program, plan).build()


class _Builder:
    def __init__(self, program: Program, plan: Plan) -> None:
        self._program, self._plan = program, plan
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._root: dict[str, Tensor] = {}
        self._read: dict[str, fx.Node] = {}
        self._stored: list[tuple[str, Tensor]] = []
        self._kernels: dict[str, int] = {}
        self._starts: dict[fx.Node, fx.Node] = {}
        self._masks: dict[tuple[fx.Node, int, int], fx.Node] = {}
        self._context = {s.name: s for s in program.state}

    def build(self) -> Outer:
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._made[node] = self._graph.placeholder(str(node.target))
        for step in self._plan.order:
            if isinstance(step, Region):
                self._region(step)
            elif step.op == "call_function":
                self._made[step] = self._call(step)
        result = next(n for n in self._program.graph.nodes if n.op == "output").args[0]
        self._graph.output(fx.node.map_arg(result, self._value))
        self._graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or _writes(n))
        read = {n.target for n in self._graph.nodes if n.op == "get_attr"}
        module = fx.GraphModule({k: v for k, v in self._root.items() if k in read}, self._graph)
        inputs, dynamic = examples(self._program)
        return Outer(module, inputs, dynamic, tuple(self._stored), dict(self._kernels))

    def _value(self, node: fx.Node) -> fx.Node:
        """The new node for a node of the program; weights are read when they are first asked for."""
        if node not in self._made:
            assert node.op == "get_attr"
            name = str(node.target)
            weight = self._program.weights.get(name)
            if weight is None:
                spec = self._context[name]
                self._made[node] = self._buffer(name, torch.zeros([int(n) for n in spec.shape], dtype=spec.dtype), "")
            else:
                plain = weight.dequantize() if isinstance(weight, QTensor) else weight
                self._made[node] = self._buffer(name, plain, name)
        return self._made[node]

    def _buffer(self, name: str, tensor: Tensor, weight: str) -> fx.Node:
        """A node that reads a tensor of the module. weight: whose bytes these are (or OWN); empty for state."""
        if name not in self._read:
            attribute = f"b{len(self._root)}_" + "".join(c if c.isalnum() else "_" for c in name)
            self._root[attribute] = tensor.detach().contiguous()
            if weight:
                self._stored.append((weight, self._root[attribute]))
            self._read[name] = self._graph.get_attr(attribute)
        return self._read[name]

    def _op(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._graph.call_function(target, args, kwargs)

    def _kernel(self, target: Any, *args: Any) -> fx.Node:
        name = str(target).removesuffix(".default").replace("::", ".")
        self._kernels[name] = self._kernels.get(name, 0) + 1
        return self._op(target, *args)

    def _region(self, region: Region) -> None:
        results = self._op(local.region.default, [self._value(x) for x in region.inputs], region.key)
        for i, node in enumerate(region.outputs):
            self._made[node] = self._op(operator.getitem, results, i)

    def _call(self, node: fx.Node) -> fx.Node:
        if node.target in ATTENTION:
            return self._attention(node)
        if node.target is aten.embedding.default and isinstance(self._weight(node.args[0]), QTensor):
            return self._embedding(node)
        if node.target is ours.last_position.default:
            return self._op(aten.slice.Tensor, self._value(node.args[0]), 1, -1, MAX)  # type: ignore[arg-type]
        if node.target is ours.hadamard.default:
            return self._rotation(node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        return self._op(node.target, *args, **kwargs)

    def _weight(self, node: Any) -> Any:
        return (
            self._program.weights.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "get_attr" else None
        )

    def _attention(self, node: fx.Node) -> fx.Node:
        """Write the caches, then attend: ExecuTorch's own kernels, 10 to 36 times as fast as in plain operators."""
        q, k, v, keys, values, position = (self._value(x) for x in node.args[:6])  # type: ignore[arg-type]
        scale, window = float(node.args[6]), int(argument(node, 7, "window", 0))  # type: ignore[arg-type]
        llama = torch.ops.llama
        start = self._start(position)
        kernel, grids = llama.custom_sdpa.default, list[fx.Node]()
        written = [(k, keys), (v, values)]
        if node.target is local.attention.encoded:
            kernel = llama.custom_quantized_sdpa.default
            key_scale, key_zero, value_scale, value_zero = (self._value(x) for x in node.args[8:12])  # type: ignore[arg-type]
            (q, q_scale, q_zero), new_keys, new_values = (self._encoded(x) for x in (q, k, v))
            written = [*zip(new_keys, (keys, key_scale, key_zero), strict=True)]
            written += zip(new_values, (values, value_scale, value_zero), strict=True)
            grids = [q_zero, q_scale, key_zero, key_scale, value_zero, value_scale]
        for new, cache in written:
            self._kernel(llama.update_cache.default, new, cache, start)
        mask = self._window(position, window, int(value(node.args[3]).shape[1])) if window else None  # type: ignore[arg-type]
        return self._kernel(kernel, q, keys, values, start, mask, 0.0, not window, scale, *grids)

    def _encoded(self, x: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
        """Codes int8 [1, s, h, d], scales f32 and zero points int8 [1, s, h, 1], by the rule of these kernels."""
        quantized, (low, high) = torch.ops.quantized_decomposed, HEADS.range
        found = self._kernel(quantized.choose_qparams_per_token_asymmetric.default, x, torch.int8)
        scale, zero = (self._op(operator.getitem, found, i) for i in (0, 1))
        codes = self._kernel(quantized.quantize_per_token.default, x, scale, zero, low, high, torch.int8)
        return codes, self._op(aten.to.dtype, scale, torch.float32), self._op(aten.to.dtype, zero, torch.int8)

    def _rotation(self, node: fx.Node) -> fx.Node:
        """As drawplate.hadamard.apply, with stored matrices. For what XNNPACK is not given: slow, and right."""
        x, dtype = self._value(node.args[0]), value(node).dtype  # type: ignore[arg-type]
        y = self._op(aten.to.dtype, x, torch.float32)
        for order in reversed(pieces(block_of(node))):
            name, contents = stored_piece(order, is_inverse(node))
            matrix = self._buffer(name, contents, OWN)
            y = self._op(aten.mm.default, self._op(aten.reshape.default, y, [-1, order]), matrix)
            y = self._op(aten.reshape.default, y, [-1, block_of(node) // order, order])
            y = self._op(aten.transpose.int, y, 1, 2)
        return self._op(aten.to.dtype, self._op(aten.reshape_as.default, y, x), dtype)

    def _start(self, position: fx.Node) -> fx.Node:
        """The first position, as a number."""
        if position not in self._starts:
            first = self._op(aten.select.int, position, 0, 0)
            self._starts[position] = self._op(aten.item.default, first)
        return self._starts[position]

    def _window(self, position: fx.Node, window: int, context: int) -> fx.Node:
        """f32 [s, context]: 0 where position j may be read from position i, i - window < j <= i, else minus infinity.

        Once per step and window, shared by the layers.
        """
        key = (position, window, context)
        if key not in self._masks:
            slots = self._buffer(f"positions.{context}", torch.arange(context), OWN)
            distance = self._op(aten.sub.Tensor, self._op(aten.unsqueeze.default, position, 1), slots)
            past = self._op(aten.ge.Scalar, distance, 0)
            near = self._op(aten.lt.Scalar, distance, window)
            seen = self._op(aten.logical_and.default, past, near)
            zero, far = (self._buffer(f"mask.{n}", torch.tensor(n), OWN) for n in (0.0, float("-inf")))
            self._masks[key] = self._op(aten.where.self, seen, zero, far)
        return self._masks[key]

    def _embedding(self, node: fx.Node) -> fx.Node:
        """Rows of a table of integers, dequantised as they are read."""
        name, ids = str(node.args[0].target), self._value(node.args[1])  # type: ignore[union-attr,arg-type]
        table = self._weight(node.args[0])
        assert isinstance(table, QTensor)
        codes, scales = embedding_storage(table)
        low, high = table.encoding.range
        quantized = torch.ops.quantized_decomposed
        target = {8: quantized.embedding_byte, 4: quantized.embedding_4bit, 2: quantized.embedding_2bit}[
            table.encoding.bits
        ]
        args = (
            self._buffer(f"{name}.codes", codes, name),
            self._buffer(f"{name}.scale", scales, name),
            None,
            low,
            high,
            ids,
        )
        return self._kernel(target.default, *args)


def embedding_storage(table: QTensor) -> tuple[Tensor, Tensor]:
    """A table as the embedding kernels read it: codes int8 [n, d] or uint8 [n, d * bits / 8], scales f32 [n, groups].

    Packed codes are offset so that the lowest is 0; the first element is in the high nibble (4 bits) and in the lowest
    two bits (2 bits).
    """
    scales = table.grid.scale.float()
    if table.encoding.bits == 8:
        return table.integers(), scales
    packed = table.pack().codes
    if table.encoding.bits == 4:
        packed = (packed << 4) | (packed >> 4)
    return packed, scales


def examples(program: Program) -> tuple[tuple[Tensor, ...], tuple[Mapping[int, Any], ...]]:
    """Inputs to export with, and which of their axes vary."""
    sizes = {d.name: example_length(d, i) for i, d in enumerate(program.dims)}
    dims = {d.name: torch.export.Dim(d.name, min=d.low, max=d.high) for d in program.dims}
    inputs, dynamic = [], []
    for spec in program.inputs:
        shape = [sizes[n] if isinstance(n, str) else n for n in spec.shape]
        inputs.append(torch.zeros(shape, dtype=spec.dtype))
        dynamic.append({i: dims[n] for i, n in enumerate(spec.shape) if isinstance(n, str)})
    return tuple(inputs), tuple(dynamic)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)
