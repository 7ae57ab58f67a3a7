"""A writer of ONNX graphs: nodes with readable names, small constants inside, large ones in a file beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drawplate.backends.onnx.runner import DATA, MODEL
from drawplate.errors import BackendError

ALIGNMENT = 64
"""Of every tensor in the file: a cache line, so that a mapped file can be read in place."""
MICROSOFT = "com.microsoft"
THEIRS = frozenset({"MatMulNBits", "GatherBlockQuantized", "GroupQueryAttention"})
"""Operators of that domain; all others are ONNX's own."""
KEEP = 0
"""In a new shape: this axis as it was."""

Name = str
"""Of a value in the graph; empty for an input that is left out."""


def onnx() -> Any:
    """The onnx package. Raises BackendError where it is missing."""
    try:
        import onnx.helper
    except ImportError as error:
        raise BackendError(
            "the onnx package is missing", why="it writes the file", fix="pip install 'drawplate[onnx]'"
        ) from error
    return onnx


@dataclass(frozen=True)
class Stored:
    """A constant in the file beside the graph. owner: the weight that it is of. contents: its bytes, made when they are
    written, so that one tensor is in memory at a time."""

    name: Name
    kind: int
    shape: tuple[int, ...]
    nbytes: int
    owner: str
    contents: Callable[[], Tensor]


class OnnxGraph:
    """One graph, written node by node."""

    def __init__(self, name: str) -> None:
        self._onnx = onnx()
        self._name = name
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._small: dict[Name, Any] = {}
        self._stored: dict[Name, Stored] = {}
        self._taken: dict[str, int] = {}
        self.site = ""

    def kind(self, dtype: torch.dtype | str) -> int:
        """ONNX's number for a type: torch's, or `int4` and the like, which torch does not store."""
        word = dtype if isinstance(dtype, str) else KINDS[dtype]
        return int(self._onnx.TensorProto.DataType.Value(word.upper()))

    # Values

    def input(self, name: Name, dtype: torch.dtype, shape: Sequence[int | str]) -> Name:
        """The next input; a length is a number or a name."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, self.kind(dtype), list(shape)))
        return name

    def output(self, name: Name, value: Name, dtype: torch.dtype, shape: Sequence[int | str | None]) -> None:
        """The next output: a value, under this name."""
        if name != value:
            self.named([name], "Identity", value)
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self.kind(dtype), list(shape)))

    def stored(
        self,
        name: Name,
        kind: torch.dtype | str,
        shape: Sequence[int],
        bits: int,
        owner: str,
        contents: Callable[[], Tensor],
    ) -> Name:
        """A constant that lies in the file beside; one of a name is there once. bits: of each element."""
        size = (math.prod(shape) * bits + 7) // 8
        self._stored.setdefault(name, Stored(name, self.kind(kind), tuple(shape), size, owner, contents))
        return name

    def integers(self, *numbers: int) -> Name:
        """int64 [count]: shapes and axes."""
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def constant(self, tensor: Tensor) -> Name:
        """A few numbers, in the graph itself; equal ones are there once."""
        word = KINDS[tensor.dtype]
        name = f"{word}{list(tensor.shape)}={','.join(map(str, tensor.flatten().tolist()))}"
        if name not in self._small:
            dims, raw = tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            self._small[name] = self._onnx.helper.make_tensor(name, self.kind(tensor.dtype), dims, raw, raw=True)
        return name

    # Nodes

    def node(self, operator: str, *inputs: Name, **attributes: Any) -> Name:
        """An operator with one result, named by where it stands and what it is."""
        (result,) = self.several(1, operator, *inputs, **attributes)
        return result

    def several(self, count: int, operator: str, *inputs: Name, **attributes: Any) -> tuple[Name, ...]:
        """An operator with this many results."""
        name = self._unique(operator)
        results = [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        self._add(name, operator, inputs, results, attributes)
        return tuple(results)

    def named(self, results: Sequence[Name], operator: str, *inputs: Name, **attributes: Any) -> None:
        """An operator whose results have names of their own, such as the model's outputs."""
        self._add(self._unique(operator), operator, inputs, results, attributes)

    def reshape(self, x: Name, *shape: int) -> Name:
        """Other axes over the same elements: KEEP for one that stays, -1 for what follows from the rest."""
        return self.node("Reshape", x, self.integers(*shape))

    def transpose(self, x: Name, *order: int) -> Name:
        """Axes in another order."""
        return self.node("Transpose", x, perm=order)

    def cast(self, x: Name, dtype: torch.dtype) -> Name:
        """Another type."""
        return self.node("Cast", x, to=self.kind(dtype))

    # The whole

    def finish(self, opset: int) -> Written:
        """The model, without nodes and constants that nothing reads."""
        helper = self._onnx.helper
        nodes = self._needed()
        read = {name for node in nodes for name in node.input}
        kept = [s for name, s in self._stored.items() if name in read]
        places = list(_places(kept))
        held = [self._small[name] for name in self._small if name in read]
        held += [self._beside(s, start) for s, start in zip(kept, places, strict=True)]
        graph = helper.make_graph(nodes, self._name, self._inputs, self._outputs, held)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        ir = next(row[1] for row in helper.VERSION_TABLE if row[2] == opset)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="drawplate")
        return Written(model.SerializeToString(deterministic=True), tuple(kept), tuple(places))

    def _needed(self) -> list[Any]:
        """Nodes that the outputs follow from, in order."""
        wanted, kept = {o.name for o in self._outputs}, []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        return kept[::-1]

    def _beside(self, stored: Stored, start: int) -> Any:
        proto = self._onnx.TensorProto(name=stored.name, data_type=stored.kind, dims=stored.shape)
        proto.data_location = self._onnx.TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", start), ("length", stored.nbytes)):
            proto.external_data.add(key=key, value=str(value))
        return proto

    def _unique(self, operator: str) -> str:
        name = f"{self.site}.{operator}" if self.site else operator
        count = self._taken[name] = self._taken.get(name, -1) + 1
        return f"{name}.{count}" if count else name

    def _add(
        self, name: str, operator: str, inputs: Sequence[Name], results: Sequence[Name], attributes: dict[str, Any]
    ) -> None:
        domain = MICROSOFT if operator in THEIRS else ""
        make = self._onnx.helper.make_node
        self._nodes.append(make(operator, list(inputs), list(results), name=name, domain=domain, **attributes))


@dataclass(frozen=True)
class Written:
    """A model before its tensors are on the disk. model: the bytes of MODEL. stored: what DATA holds, each at its
    place."""

    model: bytes
    stored: tuple[Stored, ...]
    places: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of DATA."""
        return self.places[-1] + self.stored[-1].nbytes if self.stored else 0

    def write(self, into: Path) -> None:
        """Both files, tensor by tensor. Raises BackendError if one has not the size that was planned."""
        (into / MODEL).write_bytes(self.model)
        with (into / DATA).open("wb") as file:
            for stored, start in zip(self.stored, self.places, strict=True):
                file.write(bytes(start - file.tell()))
                raw = stored.contents().detach().contiguous().flatten().view(torch.uint8).numpy()
                if raw.nbytes != stored.nbytes:
                    raise BackendError(f"'{stored.name}' has {raw.nbytes} bytes, planned were {stored.nbytes}")
                file.write(raw.data)


def _places(stored: Sequence[Stored]) -> Iterator[int]:
    """Where each tensor begins in the file."""
    end = 0
    for tensor in stored:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        yield start
        end = start + tensor.nbytes


KINDS = {
    torch.float32: "float",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
"""ONNX's words for torch's types."""
