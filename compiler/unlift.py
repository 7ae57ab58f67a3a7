"""ExportedProgram -> Program: weights become get_attr nodes under the checkpoint's names, sub-graphs are inlined."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx, nn
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from drawplate.canonical.functional import aliases, writes
from drawplate.errors import CaptureError
from drawplate.program import Program
from drawplate.provenance import innermost_module, line_of_trace
from drawplate.sources.source import Source


def unlift(exported: ExportedProgram, source: Source) -> Program:
    """The program as captured. Tensors are shared with the module, never copied; tied weights get one name.

    Raises CaptureError if the model writes to its own buffers, or switches autocast on.
    """
    _no_writes(exported)
    prefix = source.prefix
    names = names_of(source.module, prefix)
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    weights: dict[str, Tensor] = {}
    lifted = {
        spec.arg.name: spec for spec in exported.graph_signature.input_specs if spec.kind is not InputKind.USER_INPUT
    }
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            if node.users:
                tensor = _tensor(exported, lifted[node.name])
                weight = names.get(identity(tensor)) or _constant(lifted[node.name].target, prefix)
                weights[weight] = tensor.detach()
                values[node] = _with_meta(graph.get_attr(weight), node, prefix)
        elif node.op == "placeholder":
            values[node] = _with_meta(graph.placeholder(node.name), node, prefix)
        elif node.op == "output":
            outputs = fx.node.map_arg(node.args[0], lambda n: values[n])
            _with_meta(graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs)), node, prefix)
        else:
            _emit(graph, exported.graph_module, node, values, prefix)
    order = {weight: i for i, weight in enumerate(names.values())}
    ordered = dict(sorted(weights.items(), key=lambda item: order.get(item[0], len(order))))
    return Program(source.name, graph, source.specs, MappingProxyType(ordered), dims=source.dims)


def names_of(module: nn.Module, prefix: str) -> dict[object, str]:
    """Identity of each parameter and buffer -> its first name: of a tied table that is the embedding's."""
    names: dict[object, str] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        names.setdefault(identity(tensor), name.removeprefix(prefix))
    return names


def identity(tensor: Tensor) -> object:
    """Equal for two tensors that are the same memory read the same way."""
    if tensor.device.type == "meta":
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _tensor(exported: ExportedProgram, spec: Any) -> Tensor:
    target = spec.target
    if spec.kind is InputKind.CONSTANT_TENSOR or (spec.kind is InputKind.BUFFER and not spec.persistent):
        return exported.constants[target]
    return exported.state_dict[target]


def _constant(target: str, prefix: str) -> str:
    """A name for a tensor that the model makes inside its forward."""
    return target.removeprefix(prefix).replace("lifted_tensor_", "constant.")


def _emit(graph: fx.Graph, owner: nn.Module, node: fx.Node, values: dict[fx.Node, Any], prefix: str) -> None:
    """Copy one node; a higher-order call becomes the nodes of the graph it calls."""
    arguments: Any = node.args
    if node.op == "get_attr":
        values[node] = getattr(owner, str(node.target))
    elif node.target in _WRAPPERS:
        _WRAPPERS[node.target](node)
        given = [values[a] if isinstance(a, fx.Node) else a for a in arguments]
        at = next(i for i, a in enumerate(given) if isinstance(a, fx.GraphModule))
        values[node] = _inline(graph, given[at], given[at + 1 :], prefix)
    elif node.target is operator.getitem and not isinstance(values[arguments[0]], fx.Node):
        values[node] = values[arguments[0]][arguments[1]]
    else:
        values[node] = _with_meta(graph.node_copy(node, lambda n: values[n]), node, prefix)


def _inline(graph: fx.Graph, inner: fx.GraphModule, args: list[Any], prefix: str) -> Any:
    values: dict[fx.Node, Any] = {}
    given = iter(args)
    for node in inner.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: values[n])
        else:
            _emit(graph, inner, node, values, prefix)
    raise AssertionError("a graph without an output")


def _with_meta(copy: fx.Node, node: fx.Node, prefix: str) -> fx.Node:
    stack = node.meta.get("nn_module_stack", {})
    copy.meta = {
        "val": node.meta.get("val"),
        "source": line_of_trace(node.meta.get("stack_trace")),
        "site": innermost_module(stack.values(), prefix),
    }
    return copy


def _no_autocast(node: fx.Node) -> None:
    enabled = node.args[2]
    if enabled:
        raise CaptureError(
            "the model switches autocast on inside its forward",
            where=line_of_trace(node.meta.get("stack_trace")),
            why="the dtype of every value has to be written in the graph",
            fix="cast explicitly, or capture the model in the dtype you want",
        )


def _no_writes(exported: ExportedProgram) -> None:
    """Raises CaptureError if a call writes to an input or to a weight, be it through a view."""
    owned = {n for n in exported.graph.nodes if n.op == "placeholder"}
    for node in exported.graph.nodes:
        source = node.args[0] if node.args else None
        if source not in owned or not (writes(node) or aliases(node)):
            continue
        owned.add(node)
        if writes(node):
            raise CaptureError(
                f"the model writes to its own state or input ({node.target})",
                where=line_of_trace(node.meta.get("stack_trace")),
                why="a captured model is a function of its inputs",
                fix="call .eval() on it, or turn off what it remembers between calls",
            )


# Calls that only set a mode around a sub-graph -> what must be checked before the mode may be dropped.
_WRAPPERS: dict[Any, Callable[[fx.Node], None]] = {
    wrap_with_set_grad_enabled: lambda node: None,
    wrap_with_autocast: _no_autocast,
}
