"""A typed writer of XNNPACK's graph: values with shapes, nodes over them, constants by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from drawplate.backends.xnnpack.executorch_adapter import INVALID, NAMED, Blob, schema, serialise
from drawplate.encoding import QTensor

GroupScales = Literal["bf16", "f32"]
Value = int
"""Number of a value in the graph."""

KEEP = 0
"""In a new shape: the one axis whose length follows from the others. In a slice's sizes: to the end."""


class XnnGraph:
    """XNNPACK's graph of one region, written node by node.

    Lengths that vary are written as 1: the delegate reshapes its graph to the inputs that it is called with.
    group_scales: how scales of 4-bit groups are written; see the backend's option.
    """

    def __init__(self, group_scales: GroupScales = "bf16") -> None:
        self._schema: Any = schema()
        self._group_scales = group_scales
        self._graph = self._schema.XNNGraph(
            version="0",
            xnodes=[],
            xvalues=[],
            num_externs=0,
            input_ids=[],
            output_ids=[],
            constant_data=[self._schema.ConstantDataOffset(0, 0)],
        )
        self._constants: dict[str, bytes] = {}
        self._buffers: dict[str, int] = {}
        self.shapes: list[tuple[int, ...]] = []

    def blob(self) -> Blob:
        """The bytes that go into the file."""
        return Blob(serialise(self._graph), dict(self._constants))

    # Values

    def input(self, shape: Sequence[int]) -> Value:
        """The next input of the region. All inputs come before the first output."""
        number = self._external()
        value = self._value(shape, external=number, flags=1)
        self._graph.input_ids.append(value)
        return value

    def output(self, value: Value) -> None:
        """Make a value the next output; it may be read inside as well. It must be float32 and computed here."""
        tensor = self._graph.xvalues[value].xvalue_union
        assert tensor.external_id == INVALID
        assert not tensor.constant_buffer_idx
        tensor.external_id = self._external()
        tensor.flags = 2
        self._graph.output_ids.append(value)

    def constant(self, key: str, data: Tensor) -> Value:
        """A float32 constant, stored under its key: once per file, however many regions have it."""
        values = data.detach().float().contiguous()
        return self._value(values.shape, buffer=self._buffer(key, values))

    def number(self, x: float) -> Value:
        """One number, shape [1]."""
        return self.constant(f"number.{float(x)!r}", torch.tensor([float(x)]))

    def int4_groups(self, key: str, weight: QTensor) -> Value:
        """4-bit symmetric groups along the last axis with bf16 scales: [out, in], low nibble first, codes + 8."""
        codes = self._buffer(f"{key}.codes", nibbles(weight))
        scales = weight.grid.scale.to(torch.bfloat16)
        if self._group_scales == "f32":  # in the graph itself; buffer 0 is none, and the runtime makes bf16 of them
            where: dict[str, Any] = {"scale": scales.flatten().tolist(), "scale_buffer_idx": 0, "num_scales": 0}
        else:
            buffer = self._buffer(f"{key}.scale", scales)
            where = {"scale": [], "scale_buffer_idx": buffer, "num_scales": scales.numel()}
        group = weight.encoding.blocks(weight.shape)[1]
        quant = self._schema.PerChannelGroupQuant(channel_dim=0, group_size=group, **where)
        return self._value(weight.shape, self._schema.XNNDatatype.xnn_datatype_qbint4, buffer=codes, quant=quant)

    def int4_channels(self, key: str, weight: QTensor) -> Value:
        """4-bit symmetric, one float32 scale per output channel."""
        codes = self._buffer(f"{key}.codes", nibbles(weight))
        return self._channels(key, weight, self._schema.XNNDatatype.xnn_datatype_qcint4, codes)

    def int8_channels(self, key: str, weight: QTensor) -> Value:
        """8-bit symmetric, one float32 scale per output channel."""
        codes = self._buffer(f"{key}.codes", weight.integers())
        return self._channels(key, weight, self._schema.XNNDatatype.xnn_datatype_qcint8, codes)

    def _channels(self, key: str, weight: QTensor, kind: Any, codes: int) -> Value:
        scales = weight.grid.scale.float()
        quant = self._schema.PerChannelQuant(
            scale=[],
            channel_dim=0,
            scale_buffer_idx=self._buffer(f"{key}.scale", scales),
            num_scales=scales.numel(),
        )
        return self._value(weight.shape, kind, buffer=codes, quant=quant)

    # Nodes

    def quantised(self, x: Value) -> Value:
        """x in 8 bits, with a scale and zero point per row of the last axis, chosen when it runs."""
        quant = self._schema.PerTokenDynamicQuant(num_nonbatch_dims=1)
        out = self._value(self.shapes[x], self._schema.XNNDatatype.xnn_datatype_qdint8, quant=quant)
        self._node("Convert", input_id=x, output_id=out)
        return out

    def linear(self, x: Value, weight: Value, bias: Value = INVALID) -> Value:
        """x [.., in] times weight [out, in], plus bias [out]."""
        shape = (*self.shapes[x][:-1], self.shapes[weight][0])
        out = self._value(shape)
        self._node("FullyConnected", input1_id=x, filter_id=weight, bias_id=bias, output_id=out)
        return out

    def matmul(self, a: Value, b: Value, *, transpose: bool = False) -> Value:
        """a [.., m, k] times b [.., k, n] (transpose: [.., n, k]); axes in front of m may be 1 for all of b's."""
        m, n = self.shapes[a][-2], self.shapes[b][-2 if transpose else -1]
        out = self._value((*torch.broadcast_shapes(self.shapes[a][:-2], self.shapes[b][:-2]), m, n))
        self._node("BatchMatrixMultiply", input1_id=a, input2_id=b, output_id=out, flags=int(transpose))
        return out

    def unary(self, kind: str, x: Value) -> Value:
        """`Sigmoid`, `Square`, .. of each element."""
        out = self._value(self.shapes[x])
        self._node(kind, input_id=x, output_id=out)
        return out

    def clamp(self, x: Value, low: float | None, high: float | None) -> Value:
        """Each element limited to [low, high]."""
        out = self._value(self.shapes[x])
        self._node("Clamp", input_id=x, output_id=out, limits=(low, high))
        return out

    def elu(self, x: Value, alpha: float) -> Value:
        """x where x > 0, else alpha * (exp(x) - 1)."""
        out = self._value(self.shapes[x])
        self._node("ELU", input_id=x, output_id=out, alpha=alpha)
        return out

    def leaky_relu(self, x: Value, slope: float) -> Value:
        """x where x > 0, else slope * x."""
        out = self._value(self.shapes[x])
        self._node("LeakyReLU", input_id=x, output_id=out, negative_slope=slope)
        return out

    def binary(self, kind: str, a: Value, b: Value) -> Value:
        """`Add`, `Subtract`, `Multiply`, `Div`, `Maximum`, `Minimum`, broadcast."""
        out = self._value(torch.broadcast_shapes(self.shapes[a], self.shapes[b]))
        self._node(kind, input1_id=a, input2_id=b, output_id=out)
        return out

    def reshape(self, x: Value, shape: Sequence[int], varies: Sequence[bool]) -> Value:
        """Other axes over the same elements; at most one of them varies."""
        assert sum(varies) <= 1
        out = self._value(shape)
        new = [KEEP if v else n for n, v in zip(shape, varies, strict=True)]
        self._node("StaticReshape", num_dims=len(new), new_shape=new, input_id=x, output_id=out)
        return out

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """Axes in another order."""
        out = self._value([self.shapes[x][i] for i in order])
        self._node("StaticTranspose", num_dims=len(order), perm=list(order), input_id=x, output_id=out)
        return out

    def slice(self, x: Value, axis: int, start: int, size: int) -> Value:
        """`size` elements of an axis of fixed length, from start."""
        shape = list(self.shapes[x])
        shape[axis] = size
        out = self._value(shape)
        starts, sizes = [0] * len(shape), [KEEP] * len(shape)
        starts[axis], sizes[axis] = start, size
        self._node("StaticSlice", num_dims=len(shape), offsets=starts, sizes=sizes, input_id=x, output_id=out)
        return out

    def concatenate(self, xs: Sequence[Value], axis: int) -> Value:
        """Values one after the other along an axis; XNNPACK takes five at a time."""
        while len(xs) > 5:
            xs = [self.concatenate(xs[:5], axis), *xs[5:]]
        shape = list(self.shapes[xs[0]])
        shape[axis] = sum(self.shapes[x][axis] for x in xs)
        out = self._value(shape)
        given = [*xs, *[INVALID] * (5 - len(xs))]
        inputs: dict[str, Any] = {f"input{i + 1}_id": x for i, x in enumerate(given)}
        self._node(f"Concatenate{len(xs)}", axis=axis, output_id=out, **inputs)
        return out

    def mean(self, x: Value) -> Value:
        """Mean over the last axis, which stays with length 1: a product with 1/n, XNNPACK's fastest way by far."""
        n = self.shapes[x][-1]
        return self.linear(x, self.constant(f"mean.{n}", torch.full((1, n), 1 / n)))

    # Inside

    def _external(self) -> int:
        self._graph.num_externs += 1
        return int(self._graph.num_externs) - 1

    def _value(
        self,
        shape: Sequence[int],
        kind: Any = None,
        *,
        buffer: int = 0,
        external: int = INVALID,
        flags: int = 0,
        quant: Any = None,
    ) -> Value:
        number = len(self._graph.xvalues)
        tensor = self._schema.XNNTensorValue(
            datatype=self._schema.XNNDatatype.xnn_datatype_fp32 if kind is None else kind,
            num_dims=len(shape),
            dims=list(shape),
            constant_buffer_idx=buffer,
            external_id=external,
            flags=flags,
            id_out=number,
        )
        union = tensor if quant is None else self._schema.XNNQuantizedTensorValue(tensor, quant)
        self._graph.xvalues.append(self._schema.XValue(union))
        self.shapes.append(tuple(shape))
        return number

    def _node(
        self, kind: str, *, flags: int = 0, limits: tuple[float | None, float | None] | None = None, **fields: Any
    ) -> None:
        union = getattr(self._schema, f"XNN{kind}")(flags=flags, **fields)
        bounds = None
        if limits is not None:
            low, high = (-math.inf if limits[0] is None else limits[0]), (math.inf if limits[1] is None else limits[1])
            bounds = self._schema.OutputMinMax(_json(low), _json(high))
        self._graph.xnodes.append(self._schema.XNode(union, len(self._graph.xnodes) + 1, bounds))

    def _buffer(self, key: str, data: Tensor) -> int:
        """The index of constant data in the graph; the bytes are found by key when it is loaded."""
        if key not in self._buffers:
            raw = data.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            self._constants[key] = raw
            entry = self._schema.ConstantDataOffset(offset=NAMED, size=len(raw), named_key=key)
            self._graph.constant_data.append(entry)
            self._buffers[key] = len(self._graph.constant_data) - 1
        return self._buffers[key]


def nibbles(weight: QTensor) -> Tensor:
    """4-bit codes as XNNPACK reads them: code + 8, two to a byte, the even one low. uint8 [out, in / 2]."""
    return weight.pack().codes


def _json(x: float) -> float | str:
    """Infinities as flatc's JSON spells them."""
    return x if math.isfinite(x) else ("inf" if x > 0 else "-inf")
