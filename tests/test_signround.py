"""Learned rounding: what it starts from, what it may move, and that what is stored is what it saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import captured
from hypothesis import given
from hypothesis import strategies as st

from drawplate.blockwise import Problem
from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.errors import DrawplateError
from drawplate.evaluation import language
from drawplate.learning.descent import Told
from drawplate.passbase import Env
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.program import Program
from drawplate.signround import LearnedRounding, Settings, signround

TEXT = Calibration.of(torch.randint(3, 97, (6, 12), generator=torch.Generator().manual_seed(1)), "random")
WEIGHT = torch.randn(12, 32, generator=torch.Generator().manual_seed(2))
ENCODINGS = [
    Encoding(bits, block, symmetric, scale=scale)
    for bits, block, symmetric, scale in [
        (2, (1, 16), True, "bf16"), (3, (1, 16), False, "f32"), (4, (1, -1), True, "f16"), (8, (-1, -1), False, "f32"),
        (3, (4, 8), True, "f32"),
    ]
] + [Encoding(3, (1, 20), False, scale="bf16", ragged=True)]  # fmt: skip


def stored(method: str, name: str = "llama", seed: int = 0, **options: object) -> Program:
    pass_ = QuantizeWeights(bits=3, block=(1, 16), method=method, **{"steps": 30, "batch": 2, **options})
    return pass_.run(captured(name), Env(calibration=TEXT, seed=seed))


def moved(encoding: Encoding, steps: int) -> LearnedRounding:
    """A weight after steps against random gradients."""
    rounding = LearnedRounding(WEIGHT, encoding, "minmax")
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        rounding.descend(torch.randn(WEIGHT.shape, generator=generator), 0.07)
    return rounding


@given(st.sampled_from(ENCODINGS), st.integers(0, 9))
def test_the_codes_read_back_as_what_training_saw_to_the_last_bit(encoding: Encoding, steps: int) -> None:
    rounding = moved(encoding, steps)
    assert torch.equal(rounding.value(), rounding.stored("w").dequantize())


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("start", ["minmax", "mse"])
def test_it_starts_from_plain_rounding(encoding: Encoding, start: str) -> None:
    first, plain = LearnedRounding(WEIGHT, encoding, start).stored("w"), encode(WEIGHT, encoding, method=start)
    if start == "minmax":
        assert torch.equal(first.codes, plain.codes)
    torch.testing.assert_close(first.grid.scale, plain.grid.scale, rtol=1e-2, atol=0)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_steps_go_against_the_gradient_and_not_beyond_half_a_step(encoding: Encoding) -> None:
    rounding = LearnedRounding(WEIGHT, encoding, "minmax")
    before = rounding.stored("w")
    for _ in range(3):
        rounding.descend(torch.ones_like(WEIGHT), 0.4)
    codes = rounding.stored("w").codes.int() - before.codes.int()
    if encoding.block == (-1, -1):  # one range for all elements hardly moves
        assert set(codes.unique().tolist()) <= {-1, 0}
    assert rounding.value().mean() < before.dequantize().mean()


def test_it_learns_what_one_linear_makes_better_than_rounding() -> None:
    plain, learned = (
        language({"a": captured("llama"), "b": stored(m)}, TEXT.windows, "a")["b"].against.kl.value  # type: ignore[union-attr]
        for m in ("round", "signround")
    )
    assert learned < plain / 3


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2", "phi3", "mixtral"])
def test_every_body_weight_is_stored_on_its_grid(name: str) -> None:
    after = stored("signround", name, steps=2)
    assert after.encodings.keys() == stored("round", name).encodings.keys()


def test_the_seed_decides_every_code() -> None:
    first, same, other = (stored("signround", seed=s).weights for s in (1, 1, 2))
    codes = [torch.cat([w.codes.flatten() for w in ws.values() if hasattr(w, "codes")]) for ws in (first, same, other)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_what_has_no_block_of_its_own_is_rounded_and_told() -> None:
    env = Env(calibration=TEXT)
    program = QuantizeWeights("all", 3, (1, 16), method="signround", steps=1).run(captured("qwen2"), env)
    assert [str(r) for r in env.refusals] == [
        "lm_head.weight (signround): rounded to nearest: it is looked up, or read in several places, or gives logits"
    ]
    expected = encode(captured("qwen2").weights["lm_head.weight"], program.encodings["lm_head.weight"])
    assert torch.equal(program.weights["lm_head.weight"].codes, expected.codes)


def test_a_loss_that_is_no_number_names_block_and_step() -> None:
    program = captured("llama")
    editor = program.edit()
    name = next(n for n in program.weights if "layers.1" in n and "norm" in n)
    editor.weights[name] = torch.full_like(program.weights[name], torch.inf)
    pass_ = QuantizeWeights(bits=3, block=(1, 16), method="signround", steps=4)
    with pytest.raises(DrawplateError) as error:
        pass_.run(editor.finish(), Env(calibration=TEXT))
    assert str(error.value) == (
        "the loss became nan at step 0\n"
        "  where: model.layers.1\n"
        "  why:   a learning rate of 0.25 is too large, or activations of this model are infinite\n"
        "  do:    learn slower: rate=0.0625"
    )


def test_the_best_that_was_looked_at_is_kept() -> None:
    """A rate that throws everything about ends no worse than rounding does."""
    problem = one_linear()
    encodings = {"w": ENCODINGS[0]}
    wild = signround(problem, encodings, Settings(3, rate=50.0, batch=1), 0, Told(""), iter(range(3)))
    plain = encode(WEIGHT, ENCODINGS[0])
    assert problem.loss({"w": wild["w"].dequantize()}) <= problem.loss({"w": plain.dequantize()})


def one_linear() -> Problem:
    from drawplate.analysis.parts import parts
    from drawplate.text import parse_program

    program = parse_program(
        "// drawplate text 1\nprogram one(%x: f32[b, 32]) where 1 <= b <= 64 {\n  weight @w : f32[12, 32] = seed(1)\n"
        "  %y = aten.linear(%x, @w)  // one\n  return %y\n}"
    )
    (part,) = parts(program)
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    return Problem(part, {"w": WEIGHT}, {}, [{part.needs[0]: x}], [{part.gives[0]: x @ WEIGHT.T}])


def test_a_massive_token_counts_as_much_as_any_other() -> None:
    """The loss is the same whatever a token is multiplied by: what reads it norms it first."""
    problem = one_linear()
    ((x,), (y,)) = problem.inputs[0].values(), problem.targets[0].values()
    factors = torch.ones(40, 1)
    factors[3] = 1000
    inputs, targets = ([{next(iter(of)): t * factors}] for of, t in ((problem.inputs[0], x), (problem.targets[0], y)))
    massive = replace(problem, inputs=inputs, targets=targets)
    rounded = {"w": encode(WEIGHT, ENCODINGS[0]).dequantize()}
    assert massive.loss(rounded) == pytest.approx(problem.loss(rounded))
    assert problem.loss({"w": WEIGHT * 0.5}) == pytest.approx(0.25)


def test_a_killed_pass_goes_on_and_ends_with_the_same_codes(tmp_path: Path) -> None:
    pass_, seen = QuantizeWeights(bits=3, block=(1, 16), method="signround", steps=8, batch=2), []

    def counting(items: Iterable[Any], label: Any) -> Iterator[Any]:
        for item in items:
            if len(seen) == 12:  # in the second block
                raise KeyboardInterrupt
            seen.append(label() if callable(label) else label)
            yield item

    with pytest.raises(KeyboardInterrupt):
        pass_.run(captured("llama"), Env(calibration=TEXT, checkpoints=tmp_path, progress=counting))
    seen.clear()
    resumed = pass_.run(captured("llama"), Env(calibration=TEXT, checkpoints=tmp_path, progress=counting))
    assert len(seen) == 8  # of the second block alone
    assert "quantize-weights, model.layers.1, loss " in seen[-1]
    for name, weight in pass_.run(captured("llama"), Env(calibration=TEXT)).weights.items():
        if isinstance(weight, QTensor):
            assert torch.equal(weight.codes, resumed.weights[name].codes)  # type: ignore[union-attr]


def test_allocate_bits_takes_it_too() -> None:
    pass_ = AllocateBits("3.5bpw", bits=(2, 3, 4, 8), group=(1, 16), method="signround", tokens=24)
    env = Env(calibration=TEXT)
    after = pass_.run(captured("qwen2"), env)
    body = next(n for n in after.weights if n.endswith("up_proj.weight"))
    nearest = encode(captured("qwen2").weights[body], after.encodings[body])  # type: ignore[arg-type]
    moved = (after.weights[body].codes.int() - nearest.codes.int()).abs()  # type: ignore[union-attr]
    assert moved.any()
