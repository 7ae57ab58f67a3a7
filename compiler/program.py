"""Program: a captured model, and the only door to its graph."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint
from torch.utils._sympy.value_ranges import ValueRanges

import drawplate.ops  # noqa: F401  (registers the drawplate:: operators)
from drawplate.encoding import Encoding, QTensor

Weight = Tensor | QTensor


@dataclass(frozen=True)
class Dim:
    """A symbolic length: low <= name <= high."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Spec:
    """Type of an input or a state tensor: each length is a number or the name of a Dim."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Program:
    """A captured model. A pass takes one and returns another; tensors are shared, never written to.

    graph: canonical ATen and drawplate ops; placeholders are the inputs in order, `get_attr` reads a weight or a state
    tensor by its qualified name. Every node has `meta["val"]` (a fake tensor with symbolic lengths), `meta["source"]`
    (the model's own line, for messages) and `meta["site"]` (the module it came from, for people).
    weights: by qualified name, as in the source checkpoint; a QTensor where the weight is stored as integers.
    state: tensors that live between calls and start as zeros (caches), read by get_attr and written by ops in place.
    facts: names of what was proven of this program. dims: the symbolic lengths that inputs and state use.
    """

    name: str
    graph: fx.Graph
    inputs: tuple[Spec, ...]
    weights: Mapping[str, Weight] = field(default_factory=lambda: MappingProxyType({}))
    state: tuple[Spec, ...] = ()
    dims: tuple[Dim, ...] = ()
    facts: frozenset[str] = frozenset()

    @property
    def encodings(self) -> Mapping[str, Encoding]:
        """Encodings of the weights that have one, by name. Activations carry theirs in `drawplate.encode` nodes."""
        return {name: w.encoding for name, w in self.weights.items() if isinstance(w, QTensor)}

    def __str__(self) -> str:
        from drawplate.text import print_program

        return print_program(self)

    def nodes(self, *targets: Callable[..., Any]) -> Iterator[fx.Node]:
        """The call_function nodes with one of these targets (all of them if none is named), in order."""
        for node in self.graph.nodes:
            if node.op == "call_function" and (not targets or node.target in targets):
                yield node

    def readers(self, weight: str) -> list[fx.Node]:
        """The nodes that read this weight or state tensor."""
        return [u for n in self.graph.nodes if n.op == "get_attr" and n.target == weight for u in n.users]

    def edit(self) -> Editor:
        """A copy to change; `finish()` gives the new program."""
        return Editor(self)

    def module(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> nn.Module:
        """Runnable and differentiable. Stored weights are dequantised; state starts as zeros.

        dtype: floating-point weights are cast to it (None keeps each as it is). Parameters share memory with the
        program where no cast is needed, so treat them as read-only unless you copy.
        """
        root: dict[str, Any] = {}
        for name, weight in self.weights.items():
            value = weight.dequantize(dtype or torch.float32) if isinstance(weight, QTensor) else weight
            if value.is_floating_point():
                value = value.to(dtype=dtype, device=device)
                root[name] = nn.Parameter(value.detach(), requires_grad=False)
            else:
                root[name] = value.to(device=device)
        for spec in self.state:
            kind = dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype
            root[spec.name] = torch.zeros([int(n) for n in spec.shape], dtype=kind, device=device)
        return fx.GraphModule(root, self.graph, class_name=re.sub(r"\W", "_", self.name))

    def exported(self) -> torch.export.ExportedProgram:
        """The program as torch.export has it: for consumers that take an ExportedProgram."""
        examples, shapes = [], []
        lengths = {d.name: example_length(d, i) for i, d in enumerate(self.dims)}
        dims = {d.name: torch.export.Dim(d.name, min=d.low, max=d.high) for d in self.dims}
        for spec in self.inputs:
            size = [lengths[n] if isinstance(n, str) else n for n in spec.shape]
            examples.append(torch.zeros(size, dtype=spec.dtype))
            shapes.append({i: dims[n] for i, n in enumerate(spec.shape) if isinstance(n, str)})
        return torch.export.export(self.module(), tuple(examples), dynamic_shapes=tuple(shapes), strict=False)


def fold_lengths(program: Program) -> Program:
    """Lengths that became numbers, such as a batch of 1, as numbers."""
    editor = program.edit()
    numbers = {editor.of(n): n.meta["val"] for n in program.nodes() if isinstance(n.meta["val"], int)}
    for user in {user: None for node in numbers for user in node.users}:
        user.args = fx.node.map_arg(user.args, lambda n: numbers.get(n, n))
    return editor.finish()


def example_length(dim: Dim, index: int) -> int:
    """A length to trace with: not 0 or 1 (torch would specialise), different for each dim, within its bounds."""
    return min(max(dim.low, (5, 7, 11, 13)[index % 4]), dim.high)


class Editor:
    """An editable copy of a program: change `graph`, `weights` and `state`, then finish()."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.graph = fx.Graph()
        self._map: dict[fx.Node, fx.Node] = {}
        output = self.graph.graph_copy(program.graph, self._map)
        self.graph.output(output)
        self.weights: dict[str, Weight] = dict(program.weights)
        self.state: list[Spec] = list(program.state)
        self.inputs: list[Spec] = list(program.inputs)
        self.dims: list[Dim] = list(program.dims)
        self._wide = wide_weights(program)

    def of(self, node: fx.Node) -> fx.Node:
        """The copy of a node of the program that is being edited."""
        return self._map[node]

    def nodes(self, *targets: Callable[..., Any]) -> list[fx.Node]:
        """As Program.nodes, on the copy; a list, since the graph may change while you walk it."""
        return [n for n in self.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]

    def weight(self, name: str, value: Weight | None = None) -> fx.Node:
        """A node that reads the weight (or state tensor) `name`, at the insertion point; sets it if value is given."""
        if value is not None:
            self.weights[name] = value
        return self.graph.get_attr(name)

    def dtype(self, name: str) -> torch.dtype:
        """Of a weight as the graph has it, whatever its contents are in meanwhile."""
        weight = self.weights[name]
        return self._wide.get(name, torch.float32 if isinstance(weight, QTensor) else weight.dtype)

    def wide(self, name: str, value: Tensor, like: str | None = None) -> None:
        """Sets a weight whose contents are float64 and are to be rounded once to the dtype that it has in the graph, or
        that the weight `like` has. The runner does that, after it has measured the pass in float64."""
        self._wide[name] = self.dtype(like or name)
        self.weights[name] = value

    def unused(self, name: str) -> str:
        """This name for a new weight; with a number behind it if something is called so already."""
        taken = {*self.weights, *(s.name for s in self.state)}
        return next(n for i in itertools.count(1) if (n := f"{name}.{i}" if i > 1 else name) not in taken)

    def call(self, target: Callable[..., Any], *args: Any, like: fx.Node | None = None, **kwargs: Any) -> fx.Node:
        """A new call at the insertion point (`with editor.graph.inserting_before(n)`); source and site as `like`'s."""
        node = self.graph.call_function(target, args, kwargs)
        if like is not None:
            node.meta.update({k: like.meta[k] for k in ("source", "site") if k in like.meta})
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Every reader of old reads new instead; old is removed."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def finish(self, *, name: str | None = None) -> Program:
        """The new program: dead nodes and unread weights gone, types inferred again, graph checked. Facts are kept;
        the runner takes away what the pass does not preserve."""
        self.graph.eliminate_dead_code(is_impure_node=_impure)
        read = {n.target for n in self.graph.nodes if n.op == "get_attr"}
        program = replace(
            self._program,
            name=name or self._program.name,
            graph=self.graph,
            inputs=tuple(self.inputs),
            weights=MappingProxyType({k: w for k, w in self.weights.items() if k in read}),
            state=tuple(s for s in self.state if s.name in read),
            dims=tuple(self.dims),
        )
        return infer_types(program, self._wide)


def wide_weights(program: Program) -> dict[str, torch.dtype]:
    """The weights whose contents are wider than the graph says, each with the dtype that the graph says."""
    declared = {str(n.target): n.meta["val"].dtype for n in program.graph.nodes if n.op == "get_attr"}
    return {
        name: declared[name]
        for name, w in program.weights.items()
        if isinstance(w, Tensor) and w.dtype == torch.float64 != declared[name]
    }


def rounded(program: Program) -> Program:
    """The program with each weight in the dtype that the graph says: those wider than that are rounded, once."""
    wide = {name: program.weights[name].to(dtype) for name, dtype in wide_weights(program).items()}  # type: ignore[union-attr]
    return replace(program, weights=MappingProxyType({**program.weights, **wide})) if wide else program


def _impure(node: fx.Node) -> bool:
    """Placeholders and the output stay, and so does whatever writes a state tensor."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def infer_types(program: Program, wide: Mapping[str, torch.dtype] | None = None) -> Program:
    """Give every node of the graph its `meta["val"]` by running it on fake tensors. In place, on the nodes' meta.

    wide: the dtypes of weights whose contents are wider than that meanwhile.
    """
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    lengths = {d.name: _symbol(env, d, i) for i, d in enumerate(program.dims)}
    values: dict[fx.Node, Any] = {}
    known: dict[Hashable, Any] = {}  # the layers of a model repeat: each kind of call is asked once
    specs = {s.name: s for s in program.state}
    inputs = iter(program.inputs)
    with mode, enable_python_dispatcher(), torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                values[node] = _empty(next(inputs), lengths)
            elif node.op == "get_attr":
                weight = program.weights.get(node.target)
                if weight is None:
                    values[node] = _empty(specs[node.target], lengths)
                else:
                    kind = torch.float32 if isinstance(weight, QTensor) else weight.dtype
                    kind = (wide or {}).get(str(node.target), kind)
                    values[node] = torch.empty(tuple(weight.shape), dtype=kind)
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                key = (node.target, _type_key((args, kwargs))) if _depends_on_types(node.target) else (node,)
                if key not in known:
                    known[key] = node.target(*args, **kwargs)
                values[node] = known[key]
            else:
                values[node] = None
            node.meta["val"] = values[node]
    program.graph.lint()
    return program


def _depends_on_types(target: Any) -> bool:
    """Is the result's type a function of the arguments' types and constants alone? Not of a write in place, and not
    where every call has a fresh length that depends on data."""
    schema = getattr(target, "_schema", None)
    fresh = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return schema is not None and not schema.is_mutable and not any(tag in target.tags for tag in fresh)


def _type_key(value: Any) -> Hashable:
    """Equal for arguments of equal types: a tensor is its shape, strides, dtype and device, a constant its value."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, _type_key(value.shape), _type_key(value.stride())
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(value), value.node.expr
    if isinstance(value, Mapping):
        return tuple((k, _type_key(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return (type(value), *map(_type_key, value))
    return type(value), repr(value)


def _symbol(env: ShapeEnv, dim: Dim, index: int) -> Any:
    hint = example_length(dim, index)
    source = ConstantSource(dim.name)
    constraint = StrictMinMaxConstraint(warn_only=False, vr=ValueRanges(dim.low, dim.high))
    symbol = env.create_symbol(hint, source, DimDynamic.DYNAMIC, constraint, do_not_specialize_zero_one=True)
    return env.create_symintnode(symbol, hint=hint, source=source)


def _empty(spec: Spec, lengths: Mapping[str, Any]) -> Tensor:
    return torch.empty([lengths[n] if isinstance(n, str) else n for n in spec.shape], dtype=spec.dtype)


def symbols_of(program: Program) -> dict[sympy.Symbol, str]:
    """torch's own symbols -> the names of the program's dims, read off the inputs and state."""
    specs = {s.name: s for s in program.state}
    inputs = iter(program.inputs)
    names: dict[sympy.Symbol, str] = {}
    for node in program.graph.nodes:
        spec = (
            next(inputs) if node.op == "placeholder" else specs.get(str(node.target)) if node.op == "get_attr" else None
        )
        if spec is None:
            continue
        for length, declared in zip(node.meta["val"].shape, spec.shape, strict=True):
            if isinstance(declared, str) and isinstance(length, torch.SymInt):
                names[length.node.expr] = declared
    return names
