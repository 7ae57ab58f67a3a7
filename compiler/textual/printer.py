"""Program -> text: one value per line, the same in every process."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.encoding import QTensor
from drawplate.program import Program, Spec, Weight, symbols_of
from drawplate.textual.lengths import Lengths
from drawplate.textual.words import CONSTANTS, DTYPES, ENUMS, VERSION, operator_name, quote, signed

TYPE_COLUMN = 28  # `%n : type` is padded to this and no further, so a longer line elsewhere moves nothing


def print_program(program: Program) -> str:
    """The text of a program; weight contents are left out."""
    return "\n".join([VERSION, *_Printer(program).lines()])


class _Printer:
    """One printing: names of values and spellings of lengths, in the order of the graph."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.types = Types(program)
        self.names: dict[fx.Node, str] = {}
        inputs = iter(program.inputs)
        taken = {s.name for s in program.inputs}
        numbers = (n for i in itertools.count() if (n := str(i)) not in taken)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = signed("%", next(inputs).name)
            elif node.op == "get_attr":
                self.names[node] = signed("@", node.target)
            elif node.op != "output":
                self.names[node] = f"%{next(numbers)}"

    def lines(self) -> Iterator[str]:
        yield self.header()
        for name in weights_in_order(self.program):
            yield f"  weight {signed('@', name)} : {weight_text(self.program.weights[name])}"
        for spec in self.program.state:
            yield f"  state {signed('@', spec.name)} : {spec_text(spec)}"
        for node in self.program.graph.nodes:
            if node.op == "output":
                yield f"  return {self.constant(node.args[0])}"
            elif node.op not in ("placeholder", "get_attr"):
                yield self.value(node)
        yield "}"

    def header(self) -> str:
        p = self.program
        inputs = ", ".join(f"{signed('%', s.name)}: {spec_text(s)}" for s in p.inputs)
        facts = f" facts{{{', '.join(quote(f) for f in sorted(p.facts))}}}" if p.facts else ""
        bounds = ", ".join(f"{d.low} <= {d.name} <= {d.high}" for d in p.dims)
        return f"program {quote(p.name)}({inputs}){facts}" + (f" where {bounds}" if bounds else "") + " {"

    def value(self, node: fx.Node) -> str:
        """`%3 : f32[b, 64] = aten.add.Tensor(%x, %2)  // site`"""
        left = f"  {self.names[node]}"
        if "val" in node.meta:
            left += f" : {self.types.text(node.meta['val'])}"
        args = [self.constant(a) for a in node.args]
        args += [f"{k}={self.constant(v)}" for k, v in node.kwargs.items()]
        site = " ".join(str(node.meta.get("site") or "").split())
        call = f"{left.ljust(TYPE_COLUMN)} = {operator_name(node.target)}({', '.join(args)})"
        return f"{call}  // {site}" if site else call

    def constant(self, value: Any) -> str:
        """An argument: a value's name, or a constant in its one spelling."""
        if isinstance(value, fx.Node):
            return self.names[value]
        return constant_text(value, self.constant)


def constant_text(value: Any, inner: Any = None) -> str:
    """A constant in its one spelling; `inner` writes the elements of containers.

    >>> constant_text([1, 1e-05, True, None, torch.float32, "a b"])
    '[1, 1e-05, True, None, f32, "a b"]'
    """
    inner = inner or constant_text
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(inner, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(str(k))}: {inner(v)}' for k, v in value.items())}}}"
    return _WORDS.get(value, str(value).removeprefix("torch."))


_WORDS = {value: word for word, value in CONSTANTS.items() if isinstance(value, ENUMS)}
_SCALARS = ((bool | torch.SymBool, "bool"), (int | torch.SymInt, "int"), (float | torch.SymFloat, "float"))


def dtype_text(dtype: torch.dtype) -> str:
    """`f32`; a dtype that the text has no word for keeps torch's."""
    return DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def spec_text(spec: Spec) -> str:
    """Type of an input or a state tensor, `f32[b, 64]`."""
    return f"{dtype_text(spec.dtype)}[{', '.join(map(str, spec.shape))}]"


def weight_text(weight: Weight) -> str:
    """Type of a weight: `f32[64, 128]`, with an encoding `i4[128, 64] block 1x32 sym scale bf16 packed`."""
    shape = ", ".join(str(int(n)) for n in weight.shape)
    if isinstance(weight, QTensor):
        kind, rest = str(weight.encoding).split(" ", 1)
        return f"{kind}[{shape}] {rest}" + (" packed" if weight.packed else "")
    return f"{dtype_text(weight.dtype)}[{shape}]"


def weights_in_order(program: Program) -> list[str]:
    """The weights as they are first read, then those that nothing reads."""
    read = (n.target for node in program.graph.nodes for n in node.all_input_nodes if n.op == "get_attr")
    return list(dict.fromkeys([*(name for name in read if name in program.weights), *program.weights]))


class Types:
    """Writes the types of a program's values."""

    def __init__(self, program: Program) -> None:
        typed = all("val" in n.meta for n in program.graph.nodes if n.op in ("placeholder", "get_attr"))
        self._lengths = Lengths(symbols_of(program) if typed else {})

    def text(self, value: Any) -> str:
        """`f32[b, 64]`, `int`, `None`, `(f32[b, 64], i64[b])` of a fake value."""
        if isinstance(value, Tensor):
            return f"{dtype_text(value.dtype)}[{', '.join(map(self._lengths.text, value.shape))}]"
        if isinstance(value, tuple):
            return f"({', '.join(map(self.text, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, Sequence) and not isinstance(value, str):
            return f"[{', '.join(map(self.text, value))}]"
        for kind, word in _SCALARS:
            if isinstance(value, kind):
                return word
        return "None" if value is None else type(value).__name__
