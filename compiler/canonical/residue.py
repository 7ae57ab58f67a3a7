"""What canonical form did not recognise, with the model's own line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from drawplate.canonical.attention import PRODUCTS
from drawplate.canonical.clean import ASSERTS
from drawplate.canonical.evaluate import ancestors
from drawplate.canonical.functional import writes
from drawplate.canonical.grouped import SDPA
from drawplate.canonical.masks import from_positions
from drawplate.canonical.match import aten, is_call
from drawplate.errors import Refusal
from drawplate.program import Program
from drawplate.textual.words import operator_name

Reason = tuple[str, str]  # why, and what would help
_WINDOW = torch.ops.drawplate.window_mask.default
_PICKS = (  # ways to read a part of a weight
    aten.index.Tensor,
    aten.select.int,
    aten.slice.Tensor,
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unsqueeze.default,
)


def unrecognised(program: Program) -> list[Refusal]:
    """Each operation that looks like something canonical form has a single operation for, but is not one; in order."""
    weighted = from_weights(program)
    return [
        Refusal(
            node.meta.get("site", "") or node.name, operator_name(node.target), why, node.meta.get("source", ""), fix
        )
        for node in program.nodes()
        for why, fix in [_reason(node, weighted) or ("", "")]
        if why
    ]


def _reason(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    return next((found for rule in _RULES if (found := rule(node, weighted)) is not None), None)


def _norm(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    root = is_call(node, aten.rsqrt.default, aten.sqrt.default) or (
        is_call(node, aten.pow.Tensor_Scalar) and node.args[1] in (0.5, -0.5)
    )
    if root and any(is_call(n, aten.mean.dim, aten.var.correction, aten.var.dim) for n in _near(node.args[0], 3)):
        return "a norm that is neither rms_norm nor layer_norm over the last axis", "it is computed as written"
    return None


def _rotary(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    if not is_call(node, aten.cos.default):
        return None
    products = [u for n in _readers(node, 3) if is_call(n, aten.mul.Tensor) for u in [n]]
    if any(n not in weighted and len(n.all_input_nodes) == 2 for n in products):
        return "a rotary embedding that is not x * cos + turned(x) * sin", "it is computed as written"
    return None


def _softmax(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    if not is_call(node, aten.softmax.int, aten._softmax.default):  # noqa: SLF001
        return None
    products = (*PRODUCTS, aten.baddbmm.default)
    if any(is_call(n, *products) for n in _readers(node, 4)) and any(is_call(n, *products) for n in _near(node, 8)):
        return (
            "attention whose logits are not q k^T * scale + mask: they pass through something else",
            "it stays written out: there is no cache for it",
        )
    return None


def _mask(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    if not is_call(node, SDPA) or not isinstance(node.args[3], fx.Node) or is_call(node.args[3], _WINDOW):
        return None
    nodes = ancestors(node.args[3])
    if any(n.op == "placeholder" for n in nodes) and from_positions(nodes):
        return "a mask made from positions that is neither causal nor a window", "it is computed as written"
    return None


def _product(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    products = (*PRODUCTS, aten.addmm.default, aten.baddbmm.default, aten.mm.default)
    if is_call(node, *products) and any(n in weighted for n in node.all_input_nodes):
        return "a product with weights that is not a linear", "its weights are kept as they are"
    return None


def _write(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    if writes(node) and node.args and isinstance(node.args[0], fx.Node) and node.args[0].op == "call_function":
        return "it writes to a value that others may share", "write the model without assignment to a part of a tensor"
    return None


def _assertion(node: fx.Node, weighted: set[fx.Node]) -> Reason | None:
    return ("an assertion that could not be dropped", "") if is_call(node, *ASSERTS) else None


_RULES: tuple[Callable[[fx.Node, set[fx.Node]], Reason | None], ...] = (
    _norm, _rotary, _softmax, _mask, _product, _write, _assertion,
)  # fmt: skip


def from_weights(program: Program) -> set[fx.Node]:
    """Nodes that hold a weight, or rows, slices and views of one."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        picks = node.op == "call_function" and node.target in _PICKS and node.args[0] in found
        if node.op == "get_attr" or picks:
            found.add(node)
    return found


def _near(node: Any, steps: int) -> list[fx.Node]:
    """What a value is computed from, so many steps back."""
    level, found = [node] if isinstance(node, fx.Node) else [], []
    for _ in range(steps + 1):
        found += level
        level = [n for parent in level for n in parent.all_input_nodes]
    return found


def _readers(node: fx.Node, steps: int) -> list[fx.Node]:
    level, found = [node], []
    for _ in range(steps):
        level = [n for parent in level for n in parent.users]
        found += level
    return found
