"""Keys and values repeated for each query head -> enable_gqa."""

from __future__ import annotations

from typing import Any

from torch import fx

from drawplate.canonical.match import argument, aten, is_call, rank, value
from drawplate.program import Editor

SDPA = aten.scaled_dot_product_attention.default


def grouped(editor: Editor) -> None:
    """One spelling: sdpa(q, k, v, mask, 0.0, causal, scale=number, enable_gqa=bool), keys and values not repeated."""
    for node in editor.nodes(SDPA):
        q, k, v = node.args[:3]
        mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
        scale, gqa = node.kwargs.get("scale"), bool(node.kwargs.get("enable_gqa", False))
        keys, values = match_repeated(k), match_repeated(v)
        if keys is not None and values is not None:
            k, v, gqa = keys, values, True
        scale = value(q).shape[-1] ** -0.5 if scale is None else float(scale)  # type: ignore[arg-type]
        node.args = (q, k, v, mask, 0.0, bool(causal))
        node.kwargs = {"scale": scale, "enable_gqa": gqa}


def match_repeated(node: Any) -> fx.Node | None:
    """reshape(expand(unsqueeze(x, 2), [b, h, n, s, d]), [b, h * n, s, d]) or repeat_interleave(x, n, 1) -> x."""
    if is_call(node, aten.repeat_interleave.self_int) and argument(node, 2, "dim") in (1, -3) and rank(node) == 4:
        return node.args[0]
    if not is_call(node, aten.reshape.default):
        return None
    expanded = node.args[0]
    if not is_call(expanded, aten.expand.default) or rank(expanded) != 5 or rank(node) != 4:
        return None
    spread = expanded.args[0]
    if not is_call(spread, aten.unsqueeze.default) or spread.args[1] not in (2, -3):
        return None
    x = spread.args[0]
    heads, copies = value(x).shape[1], value(expanded).shape[2]
    return x if value(node).shape[1] == heads * copies else None
