"""Why a program cannot become an ONNX model: every reason, with the place and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.backends.onnx.lower import RULES, attentions
from drawplate.backends.onnx.target import Form, linear_why_not, table_why_not
from drawplate.canonical.match import aten, value
from drawplate.encoding import QTensor
from drawplate.errors import Refusal
from drawplate.program import Program
from drawplate.textual.words import operator_name

ours = torch.ops.drawplate
HEAD_MULTIPLE = 8
"""Of a head's width, for GroupQueryAttention."""


def refusals(program: Program, form: Form) -> list[Refusal]:
    """Asked of shapes and encodings only, never of contents."""
    return [
        *_stored(program, form),
        *_operators(program),
        *_types(program),
        *_attentions(program),
    ]


def about(node: fx.Node, why: str, fix: str) -> Refusal:
    """A refusal of one node, by its module and the model's own line."""
    site = str(node.meta.get("site") or node.name)
    return Refusal(site, operator_name(node.target), why, str(node.meta.get("source") or ""), fix)


def _stored(program: Program, form: Form) -> Iterator[Refusal]:
    """Encodings that no operator reads, and readers that read no integers."""
    for node in program.nodes():
        for i, x in enumerate(node.args):
            weight = program.weights.get(str(x.target)) if isinstance(x, fx.Node) and x.op == "get_attr" else None
            if not isinstance(weight, QTensor):
                continue
            why_not = {(aten.linear.default, 1): linear_why_not, (aten.embedding.default, 0): table_why_not}.get(
                (node.target, i)  # type: ignore[arg-type]
            )
            if why_not is None:
                why = f"'{x.target}' is stored as integers, which only linear and embedding read"  # type: ignore[union-attr]
                yield about(node, why, "leave it floating point")
            elif found := why_not(weight.encoding, weight.shape, form):
                why, fix = found
                yield about(node, f"its weight is '{weight.encoding}': {why}", fix)


def _operators(program: Program) -> Iterator[Refusal]:
    for node in program.nodes():
        if node.target is ours.encode.default:
            yield about(
                node,
                "MatMulNBits computes on floating-point activations, or rounds them by a rule of its own",
                "leave out quantize-activations and quantize-cache; onnx{accuracy_level=4} rounds by its rule",
            )
        elif node.target is ours.cached_attention.encoded:
            yield about(node, "the runtime's attention keeps no cache of integers by token", "leave out quantize-cache")
        elif node.target is ours.hadamard.default:
            continue  # which the target says by itself
        elif (rule := RULES.get(node.target)) is None:
            yield about(node, "there is no rule for this operator", "replace it in the model, or take another backend")
        elif why := rule.why_not(node):
            yield about(node, why, "replace it in the model, or take another backend")


def _types(program: Program) -> Iterator[Refusal]:
    """Floating point other than float32, told once for each type."""
    seen: set[torch.dtype] = set()
    for node in program.nodes():
        found = node.meta["val"]
        if isinstance(found, Tensor) and found.is_floating_point() and found.dtype not in {torch.float32, *seen}:
            seen.add(found.dtype)
            word = str(found.dtype).removeprefix("torch.")
            yield about(node, f"it computes in {word}, and the runtime's kernels for CPUs in float32", "leave out cast")


def _attentions(program: Program) -> Iterator[Refusal]:
    """What GroupQueryAttention takes, and caches that onnxruntime-genai can describe: all of one shape."""
    shapes = set()
    for node in attentions(program):
        q, k, v = (value(x) for x in node.args[:3])  # type: ignore[arg-type]
        heads, width = int(k.shape[1]), int(k.shape[3])
        if not q.shape[-1] == k.shape[-1] == v.shape[-1]:
            widths = f"{q.shape[-1]}, {k.shape[-1]} and {v.shape[-1]}"
            yield about(node, f"queries, keys and values have widths {widths}; the kernel takes one", _FIX)
        elif width % HEAD_MULTIPLE:
            yield about(node, f"heads of {width}; the kernel takes multiples of {HEAD_MULTIPLE}", _FIX)
        if q.shape[1] % heads:
            yield about(node, f"{heads} key heads do not divide {q.shape[1]} query heads", _FIX)
        shapes.add((heads, width))
        if len(shapes) == 2:
            shapes.add((0, 0))  # told once
            yield about(node, "its cache has another shape than those before; onnxruntime-genai knows one", _FIX)


_FIX: Any = "leave out add-kv-cache"
