"""What is legal at each stage of a program's life. check() returns every reason, not the first.

captured   a graph of operators over floating-point weights, typed, its weights and inputs accounted for
canonical  and nothing in it that does nothing: no asserts, no casts to the same type, no copies
quantised  weights may be stored as integers and activations encoded
cached     and there may be state, written in place; causal attention reads it
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from drawplate.encoding import SCALE_DTYPES, Encoding, QTensor, code_dtype
from drawplate.errors import DrawplateError, Refusal
from drawplate.program import Program, Spec
from drawplate.textual.printer import Types, spec_text
from drawplate.textual.words import FUNCTIONS, is_constant, operator_name

Stage = Literal["captured", "canonical", "quantised", "cached"]
STAGES: tuple[Stage, ...] = get_args(Stage)
META = frozenset({"val", "source", "site"})

aten = torch.ops.aten
Rule = Callable[[Program], Iterator[Refusal]]


def check(program: Program, stage: Stage) -> list[Refusal]:
    """Every reason why the program is not legal at this stage."""
    if stage not in STAGES:
        raise DrawplateError(f"no stage is called {stage!r}", fix=f"the stages are {', '.join(STAGES)}")
    at = STAGES.index(stage)
    rules = [rule for first, last, rule in RULES if STAGES.index(first) <= at <= STAGES.index(last)]
    return [refusal for rule in rules for refusal in rule(program)]


def about(node: fx.Node, why: str, fix: str = "") -> Refusal:
    """A refusal of one node, by its module and the model's own line."""
    op = operator_name(node.target) if node.op == "call_function" else node.op
    return Refusal(node.meta.get("site") or node.name, op, why, node.meta.get("source") or "", fix)


# Rules of every stage


def names_are_unique(program: Program) -> Iterator[Refusal]:
    """One name, one thing: inputs, dims, and weights together with state."""
    kinds = {
        "inputs": [s.name for s in program.inputs],
        "dims": [d.name for d in program.dims],
        "weights and state": [*program.weights, *(s.name for s in program.state)],
    }
    for kind, names in kinds.items():
        for name, count in Counter(names).items():
            if count > 1:
                yield Refusal(name, "", f"{count} {kind} have this name")


def lengths_are_declared(program: Program) -> Iterator[Refusal]:
    """A dim has sensible bounds; a symbolic length of an input is a dim; a state's lengths are numbers."""
    dims = {d.name for d in program.dims}
    for d in program.dims:
        if not 1 <= d.low <= d.high:
            yield Refusal(d.name, "", f"no length is between {d.low} and {d.high}", fix="lengths start at 1")
    for spec in program.inputs:
        for length in spec.shape:
            if isinstance(length, str) and length not in dims:
                yield Refusal(spec.name, "input", f"its length '{length}' is not a dim of the program")
    for spec in program.state:
        for length in spec.shape:
            if isinstance(length, str):
                yield Refusal(spec.name, "state", f"its length '{length}' is not a number: state is allocated once")


def values_are_typed(program: Program) -> Iterator[Refusal]:
    """Every node has its fake value and nothing is kept in meta that is not the program's."""
    for node in program.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            yield about(node, "it has no type", "end the pass with editor.finish()")
        if extra := sorted(node.meta.keys() - META):
            yield about(node, f"meta holds {', '.join(extra)}", "state is in the Program or nowhere")


def inputs_are_placeholders(program: Program) -> Iterator[Refusal]:
    """The placeholders are the inputs: as many, in order, of the declared types."""
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    if len(nodes) != len(program.inputs):
        yield Refusal(program.name, "", f"{len(program.inputs)} inputs are declared, the graph has {len(nodes)}")
        return
    types = _types(program)
    for node, spec in zip(nodes, program.inputs, strict=True):
        if types and types.text(node.meta["val"]) != spec_text(spec):
            yield about(node, f"declared {spec_text(spec)}, in the graph {types.text(node.meta['val'])}")


def operators_have_names(program: Program) -> Iterator[Refusal]:
    """Calls are of registered operators or arithmetic on lengths, with arguments that the text can write."""
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            yield about(node, f"a node of kind {node.op!r}")
        elif node.op == "call_function":
            if not isinstance(node.target, OpOverload) and node.target not in FUNCTIONS.values():
                yield about(node, "not a registered operator", "inline it, or register a torch operator")
            for constant in _constants((node.args, node.kwargs)):
                if not is_constant(constant):
                    yield about(node, f"an argument is {constant!r}, which a program cannot write")


def weights_are_read(program: Program) -> Iterator[Refusal]:
    """Whatever get_attr reads exists, with that type; whatever exists is read."""
    state = {s.name: s for s in program.state}
    read = set()
    for node in program.graph.nodes:
        if node.op != "get_attr":
            continue
        if node.users:
            read.add(node.target)
        if node.target not in program.weights and node.target not in state:
            yield about(node, f"there is no weight or state '{node.target}'")
        elif isinstance(node.meta.get("val"), Tensor):
            yield from _as_stored(node, program.weights.get(node.target, state.get(node.target)))
    for name in [*program.weights, *state]:
        if name not in read:
            yield Refusal(name, "weight" if name in program.weights else "state", "nothing reads it")


def _as_stored(node: fx.Node, stored: Any) -> Iterator[Refusal]:
    value = node.meta["val"]
    dtype = torch.float32 if isinstance(stored, QTensor) else stored.dtype
    if tuple(value.shape) != tuple(stored.shape) or value.dtype != dtype:
        kind = "declared" if isinstance(stored, Spec) else "stored"
        there, here = f"{dtype} {list(stored.shape)}", f"{value.dtype} {list(value.shape)}"
        yield about(node, f"'{node.target}' is {kind} as {there}, read as {here}")


def writes_go_to_state(program: Program) -> Iterator[Refusal]:
    """An operator that writes in place writes a state tensor: inputs, values and weights never change."""
    state = {s.name for s in program.state}
    for node in program.nodes():
        if not isinstance(node.target, OpOverload):
            continue
        for i, argument in enumerate(node.target._schema.arguments):  # noqa: SLF001  (as torch's own passes)
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            if not (isinstance(written, fx.Node) and written.op == "get_attr" and written.target in state):
                yield about(node, f"it writes its argument '{argument.name}', which is not a state tensor")


def graph_ends_once(program: Program) -> Iterator[Refusal]:
    """One output, last, that returns something computed."""
    outputs = [n for n in program.graph.nodes if n.op == "output"]
    if len(outputs) != 1 or next(iter(reversed(program.graph.nodes))) is not outputs[0]:
        yield Refusal(program.name, "output", f"{len(outputs)} outputs; there is one, and it is the last node")
    elif not outputs[0].all_input_nodes:
        yield Refusal(program.name, "output", "it returns no value")


# Rules of some stages


def nothing_is_idle(program: Program) -> Iterator[Refusal]:
    """No asserts, no casts to the type a value has, no copies, no dropout."""
    for node in program.nodes():
        name = operator_name(node.target)
        if name.startswith(("aten._assert", "aten.sym_constrain_range")):
            yield about(node, "an assert", "canonicalise() drops it")
        elif node.target in _COPIES:
            yield about(node, "a copy: values never change", "canonicalise() drops it")
        elif node.target in _CASTS and _same_type(node):
            yield about(node, f"a cast to {node.meta['val'].dtype}, which it is", "canonicalise() drops it")


def weights_are_floating_point(program: Program) -> Iterator[Refusal]:
    """Before quantisation no weight has an encoding and no activation is encoded."""
    for name, encoding in program.encodings.items():
        yield Refusal(name, "weight", f"stored as '{encoding}' before the stage 'quantised'")
    for node in program.nodes(torch.ops.drawplate.encode.default):
        yield about(node, "an activation is encoded before the stage 'quantised'")


def there_is_no_state(program: Program) -> Iterator[Refusal]:
    """State comes with the cache."""
    for spec in program.state:
        yield Refusal(spec.name, "state", "state before the stage 'cached'")


def attention_reads_the_cache(program: Program) -> Iterator[Refusal]:
    """In a cached program a causal attention over its own inputs would not see what was fed before."""
    for node in program.nodes(aten.scaled_dot_product_attention.default):
        if (len(node.args) > 5 and node.args[5]) or node.kwargs.get("is_causal"):
            yield about(node, "causal attention without a cache", "add-kv-cache turns it into its cached form")


def encodings_fit(program: Program) -> Iterator[Refusal]:
    """Stored weights have codes and grids of the right shapes and ranges; encoded activations parse."""
    for name, weight in program.weights.items():
        if isinstance(weight, QTensor):
            yield from (Refusal(name, "weight", why) for why in misfits(weight))
    for node in program.nodes(torch.ops.drawplate.encode.default):
        try:
            encoding = Encoding.parse(str(node.args[1]))
            if not encoding.dynamic:
                yield about(node, f"'{encoding}' is not dynamic: there is nowhere to keep a static scale")
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                any_multiple = math.prod(map(abs, encoding.block))  # a symbolic length may be
                encoding.blocks([n if type(n) is int else any_multiple for n in value.shape])
        except DrawplateError as error:
            yield about(node, error.what)


def misfits(q: QTensor) -> Iterator[str]:
    """What is wrong with a stored tensor. On the meta device only shapes and dtypes are looked at."""
    encoding = q.encoding
    try:
        expected = encoding.scale_shape(q.shape)
    except DrawplateError as error:
        yield error.what
        return
    shape, dtype = tuple(q.shape), code_dtype(encoding)
    if q.packed:
        shape, dtype = (*shape[:-1], math.ceil(shape[-1] * encoding.bits / 8)), torch.uint8
    if tuple(q.codes.shape) != shape or q.codes.dtype != dtype:
        yield f"codes are {q.codes.dtype} {list(q.codes.shape)}, '{encoding}' wants {dtype} {list(shape)}"
        return
    for what, p in (("scale", q.grid.scale), ("zero point", q.grid.zero_point)):
        if tuple(p.shape) != expected:
            yield f"{what} has shape {list(p.shape)}, '{encoding}' wants {list(expected)}"
            return
    if encoding.dynamic:
        yield f"'{encoding}' is dynamic, and a weight does not change"
    if not any(t.is_meta for t in (q.codes, q.grid.scale, q.grid.zero_point)):
        yield from _out_of_range(q)


def _out_of_range(q: QTensor) -> Iterator[str]:
    low, high = q.encoding.range
    scale, zero = q.grid.scale, q.grid.zero_point
    codes = q.integers()
    if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
        yield f"codes from {int(codes.min())} to {int(codes.max())}, '{q.encoding}' has {low} to {high}"
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        yield "a scale is not a positive number"
    elif not torch.equal(scale.to(SCALE_DTYPES[q.encoding.scale]).to(scale.dtype), scale):
        yield f"a scale is not representable in {q.encoding.scale}"
    if not bool(((zero == zero.round()) & (zero >= low) & (zero <= high)).all()):
        yield f"a zero point is not a whole number from {low} to {high}"
    elif q.encoding.symmetric and not bool((zero == (low + high + 1) // 2).all()):
        yield f"a zero point is not {(low + high + 1) // 2}, which a symmetric encoding has"


_COPIES = (
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
)
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default)  # noqa: SLF001

RULES: tuple[tuple[Stage, Stage, Rule], ...] = (
    ("captured", "cached", names_are_unique),
    ("captured", "cached", lengths_are_declared),
    ("captured", "cached", values_are_typed),
    ("captured", "cached", graph_ends_once),
    ("captured", "cached", inputs_are_placeholders),
    ("captured", "cached", operators_have_names),
    ("captured", "cached", weights_are_read),
    ("canonical", "cached", writes_go_to_state),
    ("captured", "canonical", weights_are_floating_point),
    ("captured", "quantised", there_is_no_state),
    ("canonical", "cached", nothing_is_idle),
    ("quantised", "cached", encodings_fit),
    ("cached", "cached", attention_reads_the_cache),
)


def _types(program: Program) -> Types | None:
    """The printer's types, if the program is typed at all."""
    if len([n for n in program.graph.nodes if n.op == "placeholder"]) != len(program.inputs):
        return None
    if any("val" not in n.meta for n in program.graph.nodes if n.op in ("placeholder", "get_attr")):
        return None
    return Types(program)


def _same_type(node: fx.Node) -> bool:
    source = node.args[0]
    old = source.meta.get("val") if isinstance(source, fx.Node) else None
    new = node.meta.get("val")
    return isinstance(old, Tensor) and isinstance(new, Tensor) and old.dtype == new.dtype


def _constants(value: Any) -> Iterator[Any]:
    """The leaves of arguments that are not values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _constants(item)
    elif not isinstance(value, fx.Node):
        yield value
