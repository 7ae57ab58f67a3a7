"""Scales of 4-bit groups in float32, as files had them before: the same numbers, at two bytes more for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from xnnkit import agree, called, decoder, emitted, passed, preset, well_predicted

from drawplate.backends.xnnpack.account import GRAPHS
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.backends.xnnpack.prediction import scale_bytes
from drawplate.plugins.manager import Session
from drawplate.recipe import Recipe
from drawplate.sources.source import Assets

OLD = XnnpackBackend(group_scales="f32")


def test_the_same_logits_from_a_file_that_is_larger_by_the_scales(tmp_path: Path) -> None:
    program = preset("meta-8da4w")
    new, old = emitted(program, tmp_path / "new"), emitted(program, tmp_path / "old", OLD)
    inputs = torch.tensor([[5, 9, 2]]), torch.arange(3)
    assert torch.equal(*(called(tmp_path / name, *inputs)[0] for name in ("new", "old")))
    scales = {name: scale_bytes(w) for name, w in program.weights.items()}
    rows = [{r.name: r.bytes for r in emission.bytes} for emission in (new, old)]
    assert sum(scales.values()) > 2000
    assert {n: rows[0][n] - rows[1][n] for n in scales} == scales  # they are in the graphs
    assert abs(rows[1][GRAPHS] - rows[0][GRAPHS] - 2 * sum(scales.values())) < 1000  # less the names of buffers
    well_predicted(program, old, OLD)


@pytest.mark.parametrize("name", ["meta-spinquant", "meta-qlora"])
def test_published_schemes_are_lowered_and_run(name: str, tmp_path: Path) -> None:
    program = preset(name)
    emission = emitted(program, tmp_path, OLD)
    assert emission.fallbacks == ()
    once = [note for note in emission.notes if "'lm_head.weight' is in the file once" in note]
    if name == "meta-qlora":  # without training or rotations head and table still have equal bytes
        assert once
    else:
        assert not once
        well_predicted(program, emission, OLD)
    agree(program, tmp_path, (3, 1))


def test_where_no_group_is_stored_the_option_changes_nothing() -> None:
    program = passed(decoder(), "quantize-weights{bits=8,block=1x-1,where=all},quantize-activations")
    assert OLD.predict(program, Assets()) == XnnpackBackend().predict(program, Assets())


def test_a_recipe_says_it() -> None:
    recipe = Recipe.parse("meta-8da4w -> xnnpack{group_scales=f32}", Session())
    assert recipe.make_backend(Session()) == OLD
