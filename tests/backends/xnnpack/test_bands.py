"""Bands of weights in the stock runtime: each with an encoding of its own, and those that are alike merged again."""

from __future__ import annotations

from pathlib import Path

from xnnkit import CACHED, agree, decoder, emitted, passed, well_predicted

from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.backends.xnnpack.target import CHANNELS8, GROUPS4
from drawplate.canonical.match import aten
from drawplate.encoding import encode
from drawplate.passbase import Env
from drawplate.program import Program

BANDS = "split-bands{bands=3,multiple=32},split-bands{bands=2,where=values,multiple=32}"


def banded() -> Program:
    """A decoder in bands: the first of each weight in 8 bits, the others in 4; ready to emit."""
    editor = passed(decoder(), BANDS).edit()
    for name in [n for n in editor.weights if ".band" in n]:
        editor.weights[name] = encode(editor.weights[name], CHANNELS8 if ".band0" in name else GROUPS4)  # type: ignore[arg-type]
    program = passed(editor.finish(), f"quantize-activations{{bits=8}},merge-linears,{CACHED}")
    for pass_ in XnnpackBackend().legalise():
        program = pass_.run(program, Env())
    return program


def test_it_runs_as_the_program_does(tmp_path: Path) -> None:
    program = banded()
    assert XnnpackBackend().refusals(program) == []
    emission = emitted(program, tmp_path)
    well_predicted(program, emission)
    assert emission.fallbacks == ()
    assert emission.notes[0].startswith("3 delegates")  # as without bands
    agree(program, tmp_path, (1, 6, 1, 12))


def test_bands_of_one_encoding_are_one_linear_in_front() -> None:
    """Of gate and up: the 8-bit bands, and the 4-bit ones; the down projections read values of their own."""
    program = banded()
    names = [str(n.args[1].target) for n in program.nodes(aten.linear.default)]  # type: ignore[union-attr]
    first = [n for n in names if n.startswith("model.layers.0.mlp.") and "gate" in n]
    assert [program.weights[n].shape[0] for n in first] == [2 * 32, 4 * 32]
    assert sum("layers.0.mlp.down_proj.band" in n for n in names) == 3
