"""How much a .pte takes at once. ExecuTorch allocates for the largest input, so that is decided here."""

from __future__ import annotations

from dataclasses import replace

from drawplate.errors import BackendError
from drawplate.program import Dim, Program, fold_lengths


def bounded(program: Program, batch: int, tokens: int) -> Program:
    """At most `batch` rows and, with a cache, `tokens` positions at once. A batch of 1 is no axis that varies any more.

    Raises BackendError where the program takes no input that small.
    """
    leading = {s.shape[0] for s in program.inputs if s.shape}
    editor = program.edit()
    fixed: set[str] = set()
    for i, dim in enumerate(editor.dims):
        is_batch = leading == {dim.name}
        limit = batch if is_batch else tokens if program.state else dim.high
        if dim.low > limit:
            raise BackendError(
                f"the program takes no less than {dim.low} along {dim.name!r}",
                where=program.name,
                why=f"the .pte is to take {limit} at most",
                fix=f"use xnnpack{{{'batch' if is_batch else 'tokens'}={dim.low}}} or more",
            )
        # torch takes a length of 1 to 2 for one that is always 2, so 2 means 3
        editor.dims[i] = Dim(dim.name, dim.low, min(dim.high, 3 if limit == 2 else limit))
        if editor.dims[i].high == 1:
            fixed.add(dim.name)
    editor.dims = [d for d in editor.dims if d.name not in fixed]
    editor.inputs = [replace(s, shape=tuple(1 if n in fixed else n for n in s.shape)) for s in editor.inputs]
    return fold_lengths(editor.finish()) if fixed else editor.finish()
