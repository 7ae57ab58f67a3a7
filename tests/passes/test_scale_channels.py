"""scale-channels: the factors, what they are worth, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from architectures import captured

from drawplate.analysis.scalings import Scaling, scalings
from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, encode
from drawplate.errors import DrawplateError, PassError
from drawplate.gptq import output_energy
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.rotate import Rotate
from drawplate.passes.scale_channels import ScaleChannels
from drawplate.probing import run
from drawplate.program import Program, rounded
from drawplate.rehearsal import without_contents
from drawplate.runner import run_passes
from drawplate.scaling import Settings, choose, raised
from drawplate.streaming import Reading, inputs_of, second_moments

TEXT = Calibration.of(torch.randint(3, 97, (8, 16), generator=torch.Generator().manual_seed(1)), "random")
THREE = Encoding(3, (1, 16))
PASS = ScaleChannels(bits=3, block=(1, 16))


def with_loud_channels(name: str) -> Program:
    """The model with a few norm channels thirty times larger: what real models are like."""
    program = captured(name)
    editor = program.edit()
    for weight, value in program.weights.items():
        if "layernorm" in weight:
            factor = torch.ones(len(value))
            factor[torch.tensor([3, 17])] = 30.0
            editor.weights[weight] = value * factor  # type: ignore[operator]
    return editor.finish()


def readings(program: Program, scaling: Scaling) -> list[Reading]:
    """What the readers read, from whole runs."""
    seen: dict[object, list[torch.Tensor]] = {}
    for inputs in inputs_of(program, TEXT.windows):
        run(program, inputs, watch=lambda n, _, v: seen.setdefault(n, []).append(v))
    rows = [torch.cat([x.flatten(0, -2) for x in seen[r.all_input_nodes[0]]]) for r in scaling.readers]
    return [Reading(second_moments([x]), x.double().abs().mean(0)) for x in rows]


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gemma2", "qwen3-moe"])
def test_the_function_stays_and_the_certificate_says_so(name: str) -> None:
    certificates = run_passes(captured(name), [PASS], Env(calibration=TEXT)).certificates
    same = next(c for c in certificates if c.invariant == "SAME_FUNCTION")
    assert same.holds
    assert same.error < 1e-12


def test_the_factors_are_those_of_least_error() -> None:
    """Chosen out of the same powers by brute force: a whole run, and the output error of each in turn."""
    program = with_loud_channels("llama")
    scaling = next(s for s in scalings(program) if isinstance(s, Scaling))
    read = readings(program, scaling)
    weights = [program.weights[share.weight] for share in scaling.columns]
    errors = {}
    for step in range(5):
        factors = raised(read[0].size, step / 4).float()
        errors[step / 4] = sum(
            output_energy((w - encode(w * factors, THREE).dequantize() / factors).double(), r.moments)  # type: ignore[operator]
            / output_energy(w.double(), r.moments)  # type: ignore[union-attr]
            for w, r in zip(weights, read, strict=True)
        )
    choice = choose(scaling, weights, read, Settings(THREE, steps=4))  # type: ignore[arg-type]
    assert choice.exponent == min(errors, key=errors.__getitem__) > 0
    assert choice.error == pytest.approx(min(errors.values()) / errors[0], rel=1e-3)
    after = run_passes(program, [ScaleChannels(bits=3, block=(1, 16), steps=4)], Env(calibration=TEXT)).program
    (norm,) = scaling.writers
    expected = program.weights[norm.weight] / raised(read[0].size, choice.exponent).float()  # type: ignore[operator]
    torch.testing.assert_close(after.weights[norm.weight], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [False, True])
def test_it_lessens_the_error_that_rounding_makes(weights: bool) -> None:
    program, inputs = with_loud_channels("llama"), next(iter(inputs_of(captured("llama"), TEXT.windows)))
    scaled = run_passes(program, [ScaleChannels(bits=3, block=(1, 16), weights=weights)], Env(calibration=TEXT)).program
    whole = run(program, inputs)[0]
    plain, better = (
        float((run(QuantizeWeights(bits=3, block=(1, 16)).run(p, Env()), inputs)[0] - whole).square().mean())
        for p in (program, scaled)
    )
    assert better < plain


def test_a_norm_that_was_folded_has_a_weight_again() -> None:
    """And after a rotation too, where no channel is loud any more."""
    passes = [FoldNorms(), Rotate(), PASS]
    after = run_passes(captured("llama"), passes, Env(calibration=TEXT))
    assert all(c.holds for c in after.certificates)
    names = [n for n in after.program.weights if n.endswith("layernorm.weight")]
    assert len(names) == 4
    assert re.search(r"rms_norm\(%\d+, \[48\], @model.layers.0.input_layernorm.weight", str(after.program))


def test_it_is_known_beforehand_what_comes_out() -> None:
    program = rounded(FoldNorms().run(captured("phi3"), Env()))
    hollow = PASS.run(without_contents(program), Env(calibration=TEXT))
    assert str(hollow) == str(PASS.run(program, Env(calibration=TEXT)))


def test_it_says_what_was_scaled() -> None:
    env = Env(calibration=TEXT)
    PASS.run(captured("llama"), env)
    assert env.told[0].startswith("scale-channels: 8 values scaled, by powers from ")


def test_bytes_beyond_the_budget_go_to_disk_and_change_nothing() -> None:
    runs = [
        ScaleChannels(bits=3, block=(1, 16), spill=s).run(captured("llama"), Env(calibration=TEXT))
        for s in (0, 1 << 30)
    ]
    for name, weight in runs[0].weights.items():
        assert torch.equal(weight, runs[1].weights[name])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"steps": 0}, "steps=0 is not above 0"),
        ({"tokens": 1}, "tokens=1 is not above 1"),
        ({"spill": -1}, "spill=-1 is below 0"),
    ],
)
def test_options_that_cannot_be_are_refused(option: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        ScaleChannels(**option)  # type: ignore[arg-type]


def test_a_block_that_divides_nothing_is_an_error() -> None:
    with pytest.raises(PassError) as error:
        ScaleChannels(block=(1, 7)).run(captured("llama"), Env(calibration=TEXT))
    assert str(error.value) == (
        "no weight can be stored as 'i4 block 1x7 sym scale f32'\n"
        "  why:   the block divides no shape; the first is model.layers.0.self_attn.q_proj.weight [48, 48]\n"
        "  do:    give the bits and block that quantize-weights will have"
    )


def test_weights_that_are_stored_already_are_not_scaled() -> None:
    with pytest.raises(DrawplateError, match=r"requires 'weights.float'"):
        run_passes(captured("llama"), [QuantizeWeights(block=(1, 16)), PASS], Env(calibration=TEXT))
