"""What no lowering can be faster than: the linears of a program alone, through the same kernels.

    python benchmarks/linears.py MODEL build/bench/linears --recipe meta-8da4w

Attention (but the first, which carries the cache), rotary embeddings and norms are left out, so the .pte computes
nonsense at the speed of its linears. `benchmarks/speed.py` measures it beside the real one: the ratio of the two is all
that a better graph around the linears could still gain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from stock_route import Structure, program_of

from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.capture import capture
from drawplate.passbase import Env

ours, aten = torch.ops.drawplate, torch.ops.aten


def main(
    model: Path, out: Path, recipe: Annotated[str, typer.Option(help="Preset, file or text.")] = "meta-8da4w"
) -> None:
    """Write the folder OUT with a model.pte."""
    program, _ = program_of(model, recipe, Structure.CANONICAL)
    backend = XnnpackBackend()
    for pass_ in backend.legalise():
        program = pass_.run(program, Env())
    editor = program.edit()
    attentions = editor.nodes(ours.cached_attention.default)[1:]
    for node in (*attentions, *editor.nodes(ours.rotary.default, aten.rms_norm.default)):
        editor.replace(node, node.all_input_nodes[0])
    out.mkdir(parents=True, exist_ok=True)
    backend.emit(editor.finish(), out, capture(model).assets)


if __name__ == "__main__":
    typer.run(main)
