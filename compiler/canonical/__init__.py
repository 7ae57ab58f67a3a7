"""Canonical form: each idea of a model is one operation, however its authors wrote it down.

After canonicalise(): no asserts, no casts or copies that do nothing; every reshaping is `aten.reshape` (which asks
nothing of memory layout); every product with a weight is `aten.linear`; norms are `aten.rms_norm` / `aten.layer_norm`
with their weight explicit; rotary embeddings are `drawplate.rotary`; attention is
`aten.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=, enable_gqa=)` with keys and values not repeated,
and a mask that is causal or a sliding window says so. What is not recognised stays as it is; unrecognised() lists it.
Nothing here knows a model family: each recognition looks at the graph, and masks are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from drawplate.canonical.attention import attentions
from drawplate.canonical.clean import clean
from drawplate.canonical.fold import fold
from drawplate.canonical.functional import functional
from drawplate.canonical.grouped import grouped
from drawplate.canonical.linears import linears
from drawplate.canonical.masks import masks
from drawplate.canonical.norms import norms
from drawplate.canonical.padding import paddings
from drawplate.canonical.residue import unrecognised
from drawplate.canonical.rotary import rotaries
from drawplate.canonical.share import share
from drawplate.program import Program

__all__ = ["canonicalise", "unrecognised"]

STEPS = (
    functional, clean, share, linears, fold, norms, rotaries, attentions, grouped, masks, paddings, share,
)  # fmt: skip


def canonicalise(program: Program, folded: Callable[[str, fx.Node], None] | None = None) -> Program:
    """The program in canonical form. Computes the same up to rounding; a second time changes nothing.

    folded: is told of each weight that is made of others, and of the node that says how (see fold).
    """
    editor = program.edit()
    for step in STEPS:
        fold(editor, folded) if step is fold else step(editor)
    return editor.finish()
