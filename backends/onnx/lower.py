"""Program -> ONNX graph, node by node, from shapes and encodings: contents are asked for when they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from drawplate.backends.onnx.graph import OnnxGraph, Written
from drawplate.backends.onnx.ops_attention import ATTENTION, PAST, PRESENT, SEEN, TOTAL
from drawplate.backends.onnx.ops_linear import LINEAR, write_weight
from drawplate.backends.onnx.ops_pointwise import POINTWISE
from drawplate.backends.onnx.ops_shape import SHAPE
from drawplate.backends.onnx.rules import Rules, Writer
from drawplate.canonical.match import value
from drawplate.encoding import QTensor
from drawplate.ops import CACHED_ATTENTION
from drawplate.program import Program

if TYPE_CHECKING:
    from drawplate.backends.onnx.backend import OnnxBackend

RULES: Rules = {**LINEAR, **SHAPE, **POINTWISE, **ATTENTION}
OPSET = 23
"""Has RMSNormalization, RotaryEmbedding and Attention."""
OPSET_OF_2_BITS = 25
IDS, MASK, POSITIONS, LOGITS, OUTPUT = "input_ids", "attention_mask", "position_ids", "logits", "output"
LENGTH, TOTAL_LENGTH, PAST_LENGTH = "sequence_length", "total_sequence_length", "past_sequence_length"


def lower(program: Program, options: OnnxBackend) -> Written:
    """The model, its tensors still to be written. Every operator has a rule: see legality."""
    writer = Writer(program, OnnxGraph(program.name), options.form, options.accuracy_level)
    if program.state:
        _text_inputs(writer, options.position_ids)
    else:
        _plain_inputs(writer)
    for node in program.graph.nodes:
        writer.graph.site = str(node.meta.get("site") or "")
        if node.op == "call_function":
            writer.values[node] = RULES[node.target].write(writer, node)
        elif node.op == "get_attr" and str(node.target) in program.weights:
            writer.values[node] = write_weight(writer, node)
    writer.graph.site = ""
    _outputs(writer)
    pairs = options.form == "qdq" and any(
        isinstance(w, QTensor) and w.encoding.bits == 2 for w in program.weights.values()
    )
    return writer.graph.finish(OPSET_OF_2_BITS if pairs else OPSET)


def attentions(program: Program) -> list[fx.Node]:
    """Those over a cache, in order: the number of each is its layer's in names."""
    return list(program.nodes(*CACHED_ATTENTION))


def placeholders(program: Program) -> list[fx.Node]:
    """The inputs' nodes, in order."""
    return [n for n in program.graph.nodes if n.op == "placeholder"]


def results(program: Program) -> list[fx.Node]:
    """What the program returns, in order."""
    returned: Any = program.graph.output_node().args[0]
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def _plain_inputs(w: Writer) -> None:
    """As the program's, under their own names."""
    for spec, node in zip(w.program.inputs, placeholders(w.program), strict=True):
        w.values[node] = w.graph.input(spec.name, spec.dtype, spec.shape)


def _text_inputs(w: Writer, with_positions: bool) -> None:
    """(tokens [1, s], position [s]) as onnxruntime-genai feeds them: input_ids [1, s], attention_mask [1, past + s] of
    ones, and a past of each attention. Where each token stands follows from the mask, unless position_ids say it."""
    graph, (tokens, position) = w.graph, placeholders(w.program)
    w.values[tokens] = graph.input(IDS, torch.int64, (1, LENGTH))
    mask = graph.input(MASK, torch.int64, (1, TOTAL_LENGTH))
    total = graph.node("ReduceSum", mask, graph.integers(0, 1), keepdims=0)
    if with_positions:
        w.values[position] = graph.reshape(graph.input(POSITIONS, torch.int64, (1, LENGTH)), -1)
    else:
        fed = graph.reshape(graph.node("Shape", w.values[tokens], start=1))
        one = graph.constant(torch.tensor(1))
        w.values[position] = graph.node("Range", graph.node("Sub", total, fed), total, one)
    w.lengths[TOTAL] = graph.cast(total, torch.int32)
    seen = graph.node("Sub", w.lengths[TOTAL], graph.constant(torch.tensor(1, dtype=torch.int32)))
    w.lengths[SEEN] = graph.reshape(seen, 1)
    for i, node in enumerate(attentions(w.program)):
        for part, x in zip(("key", "value"), node.args[1:3], strict=True):
            graph.input(PAST.format(i, part), *_cache(x, PAST_LENGTH))


def _cache(x: Any, length: str) -> tuple[torch.dtype, Sequence[int | str]]:
    """Type and shape of keys or values [1, h, s, d] in a cache."""
    _, heads, _, width = value(x).shape
    return value(x).dtype, (1, int(heads), length, int(width))


def _outputs(w: Writer) -> None:
    """`logits` and a present of each attention; without a cache `output`, or `output.0`, `output.1`, .."""
    found = results(w.program)
    for i, node in enumerate(found):
        name = LOGITS if w.program.state else OUTPUT if len(found) == 1 else f"{OUTPUT}.{i}"
        result: Tensor = value(node)
        w.graph.output(name, w.value(node), result.dtype, _lengths(w.program, result))
    for i, node in enumerate(attentions(w.program)):
        for part, x in zip(("key", "value"), node.args[1:3], strict=True):
            name = PRESENT.format(i, part)
            w.graph.output(name, name, *_cache(x, TOTAL_LENGTH))


def _lengths(program: Program, result: Tensor) -> list[int | str | None]:
    """Numbers, names of the program's lengths, and None for what follows from them."""
    if program.state:
        return [n if _is_number(n) else LENGTH for n in result.shape]
    names: dict[str, str] = {}
    for spec, node in zip(program.inputs, placeholders(program), strict=True):
        names |= {str(n): word for n, word in zip(value(node).shape, spec.shape, strict=True) if isinstance(word, str)}
    return [n if _is_number(n) else names.get(str(n)) for n in result.shape]


def _is_number(length: Any) -> bool:
    """Rather than a symbol, which torch's annotations do not know of."""
    return isinstance(length, int)
