"""split-bands: the same function in bands that may be stored differently, the most salient channels first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import captured
from passkit import MLP

from drawplate.analysis.hidden import HiddenAxis, hidden_axes, weight_name
from drawplate.analysis.sensitivity import measure
from drawplate.analysis.sites import sites
from drawplate.calibration import Calibration
from drawplate.costs import samples
from drawplate.errors import RecipeError
from drawplate.passbase import Env, Pass
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.passes.merge_linears import MergeLinears
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.split_bands import SplitBands, axis_costs, by_saliency
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.recipe import Recipe
from drawplate.rehearsal import rehearse
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.text import parse_program

TEXT = Calibration.of(torch.randint(3, 97, (32, 32), generator=torch.Generator().manual_seed(0)), "random")
BITS = (2, 3, 4, 5, 6, 8)
BANDS = SplitBands((1, 4), multiple=16)


def after(program: Program, *passes: Pass) -> Any:
    return run_passes(program, passes, Env(calibration=TEXT))


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi", "phi3", "gpt2", "gemma2", "qwen2-moe", "bert"])
def test_the_function_stays(name: str) -> None:
    before = captured(name)
    outcome = check_pass(SplitBands((2,), multiple=8), before)
    assert len(outcome.program.weights) > len(before.weights)
    assert sum(s.shape[0] * s.shape[1] for s in sites(outcome.program)) == sum(
        s.shape[0] * s.shape[1] for s in sites(before)
    )
    assert outcome.told == ("split-bands: channels are sorted by the weights alone, since there is no text",)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi", "gemma3", "bert"])
def test_the_values_of_heads_are_cut_too(name: str) -> None:
    """Grouped heads and single ones, with biases and without."""
    before = captured(name)
    program = check_pass(SplitBands((2,), "values", multiple=8), before).program
    heads = {n.partition(".band")[0] for n in program.weights.keys() - before.weights.keys()}
    assert len(heads) == 4
    assert all(len(w) for n, w in program.weights.items() if ".band" in n)


def test_heads_that_are_fused_with_others_stay_whole() -> None:
    outcome = check_pass(SplitBands((2,), "values", multiple=8), captured("phi3"))
    assert [str(r) for r in outcome.refusals] == [
        f"model.layers.{i}.self_attn.qkv_proj (aten.linear): not cut into bands: its heads interleave, or are fused "
        "with other rows [modeling_phi3.py:218: `qkv = self.qkv_proj(hidden_states)`]"
        for i in range(2)
    ] + ["phi3: nothing is cut into bands"]


def test_channels_of_heads_that_do_not_divide_are_refused() -> None:
    outcome = after(captured("llama"), SplitBands((2,), "values"))
    assert str(outcome.refusals[0]) == (
        "model.layers.0.self_attn.v_proj.weight (aten.linear): its 8 channels in each of 6 heads cannot be cut into "
        "2 equal bands that are multiples of 64; use a smaller multiple"
    )


def test_bands_hold_the_channels_in_the_order_of_what_they_cost() -> None:
    before = captured("llama")
    readings = measure(before, samples("kl", before, TEXT, BANDS.tokens, 0), Env()).readings
    (first, _) = hidden_axes(before)
    assert isinstance(first, HiddenAxis)
    order = by_saliency(axis_costs(before, first, readings))
    program = after(before, BANDS).program
    for linear in (w.linear for w in first.writers):
        name = weight_name(linear)
        whole, parts = (
            before.weights[name],
            [program.weights[name.replace(".weight", f".band{i}.weight")] for i in (0, 1)],
        )
        assert [len(p) for p in parts] == [16, 64]
        assert torch.equal(torch.cat(parts), whole[order])
    down = weight_name(first.readers[0])
    parts = [program.weights[down.replace(".weight", f".band{i}.weight")] for i in (0, 1)]
    assert torch.equal(torch.cat(parts, 1), before.weights[down][:, order])


def test_a_channel_that_costs_more_comes_first() -> None:
    """Channels whose rows and columns are made large by hand are those of the first band, without a text."""
    program = parse_program(MLP)
    large = torch.tensor([5, 17, 40, 95])
    for name in ("gate", "up"):
        program.weights[name][large] *= 10
    program.weights["down"][:, large] *= 10
    expected = program.weights["up"][large]
    found = check_pass(SplitBands((1, 23), multiple=4), program).program.weights["up.band0"]
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in expected.tolist()}


def uneven(name: str) -> Program:
    """With large hidden channels among small ones: their band takes the bits."""
    program = captured(name)
    weights = dict(program.weights)
    for axis in hidden_axes(program):
        assert isinstance(axis, HiddenAxis)
        for written in (weight_name(w.linear) for w in axis.writers):
            weights[written] = weights[written].clone()
            weights[written][::5] *= 6
    return replace(program, weights=weights)


def test_every_band_may_be_stored_in_its_own_way_and_gate_and_up_agree() -> None:
    program = after(uneven("llama"), BANDS, AllocateBits("5bpw", bits=BITS, group=(1, 16), scale="f32")).program
    encodings = program.encodings
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp."
        for band in (0, 1):
            gate, up = (encodings[f"{stem}{n}_proj.band{band}.weight"] for n in ("gate", "up"))
            assert gate == up
    assert any(encodings[n].bits > encodings[n.replace("band0", "band1")].bits for n in encodings if "band0" in n)


def test_the_expected_damage_is_less_than_without_bands() -> None:
    options = AllocateBits("5bpw", bits=BITS, group=(1, 16), scale="f32")
    plain, banded = (after(uneven("llama"), *passes).records[-1].data for passes in ((options,), (BANDS, options)))

    def damage(record: Any) -> float:
        return sum(i["options"][i["chosen"]]["damage"] for i in record["items"])

    assert damage(banded) < 0.8 * damage(plain)


def test_bands_that_are_stored_alike_are_merged_again() -> None:
    quantised = after(
        captured("llama"), BANDS, AllocateBits("5bpw", bits=BITS, group=(1, 16), scale="f32"), QuantizeActivations()
    ).program
    merged = check_pass(MergeLinears(), quantised).program
    assert len(list(merged.nodes(torch.ops.aten.linear.default))) < len(
        list(quantised.nodes(torch.ops.aten.linear.default))
    )


def test_bytes_are_known_without_contents() -> None:
    program = captured("llama")
    passes = [BANDS, AllocateBits("5bpw", bits=BITS, group=(1, 16), scale="f32")]
    rehearsed = rehearse(program, passes, Env(calibration=TEXT))
    assert rehearsed.program is not None
    assert {n: tuple(w.shape) for n, w in rehearsed.program.weights.items()} == {
        n: tuple(w.shape) for n, w in after(program, *passes).program.weights.items()
    }


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("split-bands{bands=1}", "bands=1 is neither a number of 2 or more nor several shares"),
        ("split-bands{bands=0x4}", "bands=0x4 is neither a number of 2 or more nor several shares"),
        ("split-bands{multiple=0}", "multiple=0 is not above 0"),
        ("split-bands{tokens=1}", "tokens=1 is not above 1"),
    ],
)
def test_options_that_cannot_be(recipe: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Recipe.parse(recipe, Session(environment={"DRAWPLATE_PLUGINS": ""}))


def test_widths_that_do_not_divide_are_refused_with_what_does() -> None:
    outcome = after(captured("llama"), SplitBands((3,), multiple=16))
    assert [str(r) for r in outcome.refusals] == [
        f"model.layers.{i}.mlp.gate_proj.weight (aten.linear): its 80 channels cannot be cut into 3 equal bands that "
        "are multiples of 16; use bands=5"
        for i in range(2)
    ] + ["llama: nothing is cut into bands"]
    assert outcome.program.weights.keys() == captured("llama").weights.keys()
