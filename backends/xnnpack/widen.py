"""What XNNPACK has no kernel for as it is kept, as float32."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from drawplate.canonical.match import aten, is_call
from drawplate.program import Program


def narrow(program: Program) -> tuple[str, ...]:
    """The weights that are kept narrower than the float32 numbers they are read as, such as adapters in bf16."""
    return tuple(dict.fromkeys(str(cast.args[0].target) for cast in _casts(program)))  # type: ignore[union-attr]


def widened(program: Program) -> Program:
    """The same numbers in more bytes: XNNPACK's linears on float32 read weights of float32, or of integers."""
    names = narrow(program)
    if not names:
        return program
    editor = program.edit()
    for name in names:
        kept = program.weights[name]
        assert isinstance(kept, Tensor)
        editor.weights[name] = kept.float()
    for cast in _casts(program):
        editor.replace(editor.of(cast), editor.of(cast.args[0]))  # type: ignore[arg-type]
    return editor.finish()


def _casts(program: Program) -> list[fx.Node]:
    """Of weights that are read as float32 and in no other way."""
    casts = [n for n in program.nodes(aten.to.dtype) if n.args[0].op == "get_attr"]  # type: ignore[union-attr]
    wide = [n for n in casts if n.meta["val"].dtype == torch.float32 and str(n.args[0].target) in program.weights]  # type: ignore[union-attr]
    return [n for n in wide if all(is_call(u, aten.to.dtype) and u in wide for u in n.args[0].users)]  # type: ignore[union-attr]
