"""An encoder's mask that only hides padding -> bool [b, 1, 1, s], decided by evaluating it on concrete inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical.evaluate import Evaluator, allowed, ancestors, dim_of, value_inputs
from drawplate.canonical.grouped import SDPA
from drawplate.canonical.match import aten, is_call, rank, value
from drawplate.program import Editor

_CASES = ((1, 5), (3, 8))  # batch, length


def paddings(editor: Editor) -> None:
    """Attention whose mask is `attention_mask != 0` for each key, however it was spread, reads it unspread."""
    known: dict[fx.Node, fx.Node | None] = {}
    for node in editor.nodes(SDPA):
        mask: Any = node.args[3]
        if not isinstance(mask, fx.Node) or is_call(mask, torch.ops.drawplate.window_mask.default):
            continue
        if mask not in known:
            known[mask] = _unspread(editor, mask)
        if known[mask] is not None:
            node.update_arg(3, known[mask])


def _unspread(editor: Editor, mask: fx.Node) -> fx.Node | None:
    given = match_padding(editor, mask)
    if given is None:
        return None
    with editor.graph.inserting_before(mask):
        keys = editor.call(aten.ne.Scalar, given, 0, like=mask)
        row = editor.call(aten.unsqueeze.default, keys, 1, like=mask)
        return editor.call(aten.unsqueeze.default, row, 2, like=mask)


def match_padding(editor: Editor, mask: fx.Node) -> fx.Node | None:
    """The integer input [b, s] that says which keys may be read, if that is all the mask says."""
    nodes = ancestors(mask)
    inputs = value_inputs(nodes)
    if any(is_call(n, aten.embedding.default, aten.linear.default) for n in nodes):
        return None  # not made from an input alone
    if len(inputs) != 1 or rank(inputs[0]) != 2 or value(inputs[0]).is_floating_point():
        return None
    run, generator = Evaluator(editor, mask, nodes), torch.Generator().manual_seed(0)
    along = dim_of(editor, value(inputs[0]).shape[1])
    for batch, length in _CASES:
        lengths = {**dict.fromkeys((d.name for d in editor.dims), batch), along or "": length}
        given = torch.randint(0, 2, run.shape(inputs[0], lengths), generator=generator)
        given[:, 0] = 1  # a row that hides everything has no defined result
        result = run({inputs[0]: given.to(value(inputs[0]).dtype)}, lengths)
        found = None if result is None else allowed(result)
        if found is None or not _same(found, given.bool()[:, None, None, :]):
            return None
    return inputs[0]


def _same(mask: Tensor, want: Tensor) -> bool:
    batch, length = want.shape[0], want.shape[-1]
    return bool((mask == want).all()) and torch.broadcast_shapes(mask.shape, want.shape)[-4:] == (
        batch, *mask.shape[-3:-1], length
    )  # fmt: skip
