"""Block-AP: what it starts from, that what is stored is what it saw, and that it stores better than rounding."""

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
from test_signround import ENCODINGS, TEXT, WEIGHT, one_linear

from drawplate.blockap import Settings, Trained, blockap
from drawplate.blockwise import Problem
from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.errors import DrawplateError
from drawplate.evaluation import language
from drawplate.learning.descent import Told
from drawplate.passbase import Env
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.passes.train_blocks import TrainBlocks
from drawplate.program import Program

PASS = TrainBlocks(bits=3, block=(1, 16), symmetric=False, scale="bf16", epochs=6, held=0)


def stored(name: str = "llama", seed: int = 0, **options: Any) -> Program:
    return replace(PASS, **options).run(captured(name), Env(calibration=TEXT, seed=seed))


def trained(encoding: Encoding, steps: int) -> Trained:
    """A weight and its grid after steps in random directions."""
    found, generator = Trained(WEIGHT, encoding, "mse"), torch.Generator().manual_seed(steps)
    with torch.no_grad():
        for x in (found.weight, *found.grid) * steps:
            x += 0.1 * torch.randn(x.shape, generator=generator)
    return found


@given(st.sampled_from(ENCODINGS), st.integers(0, 9))
def test_the_codes_read_back_as_what_training_saw_to_the_last_bit(encoding: Encoding, steps: int) -> None:
    found = trained(encoding, steps)
    assert torch.equal(found.value(), found.stored("w").dequantize())


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("start", ["minmax", "mse"])
def test_it_starts_from_plain_rounding(encoding: Encoding, start: Any) -> None:
    first, plain = Trained(WEIGHT, encoding, start).stored("w"), encode(WEIGHT, encoding, method=start)
    assert torch.equal(first.grid.scale, plain.grid.scale)
    assert torch.equal(first.grid.zero_point, plain.grid.zero_point)
    torch.testing.assert_close(first.dequantize(), plain.dequantize())


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_weights_scales_and_zero_points_have_gradients(encoding: Encoding) -> None:
    found = trained(encoding, 1)
    (found.value() * torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(9))).sum().backward()
    assert len(found.grid) == (1 if encoding.symmetric else 2)
    assert all(x.grad is not None and bool(x.grad.any()) for x in (found.weight, found.grid[0]))


def test_blocks_make_what_they_made_better_than_by_rounding() -> None:
    rounded = stored(epochs=1, rate=1e-9, grid_rate=1e-9)
    found = language({"a": captured("llama"), "b": stored(epochs=20, batch=1), "c": rounded}, TEXT.windows, "a")
    learned, plain = (found[k].against.kl.value for k in "bc")  # type: ignore[union-attr]
    assert learned < plain / 3


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "phi3", "mixtral", "bert"])
def test_any_architecture_goes_through(name: str) -> None:
    before, after = captured(name), stored(name, epochs=1)
    assert after.encodings
    assert set(after.encodings.values()) == {PASS.encoding}
    assert before.weights.keys() == after.weights.keys()


def test_the_seed_decides_every_code() -> None:
    first, same, other = (stored(seed=s).weights for s in (1, 1, 2))
    codes = [torch.cat([w.codes.flatten() for w in ws.values() if hasattr(w, "codes")]) for ws in (first, same, other)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_a_loss_that_is_no_number_names_block_and_step() -> None:
    program = captured("llama")
    editor = program.edit()
    name = next(n for n in program.weights if "layers.1" in n and "norm" in n)
    editor.weights[name] = torch.full_like(program.weights[name], torch.inf)  # type: ignore[arg-type]
    with pytest.raises(DrawplateError) as error:
        PASS.run(editor.finish(), Env(calibration=TEXT))
    assert str(error.value) == (
        "the loss became nan at step 0\n"
        "  where: model.layers.1\n"
        "  why:   a learning rate of 0.02 is too large, or activations of this model are infinite\n"
        "  do:    learn slower: rate=0.005"
    )


def test_the_best_that_was_looked_at_is_kept_and_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that throws everything about ends no worse than rounding does, and soon."""
    problem, seen = one_linear(), []
    gradients = Problem.gradients
    monkeypatch.setattr(Problem, "gradients", lambda *given: seen.append(0) or gradients(*given))
    wild = blockap(problem, {"w": ENCODINGS[0]}, Settings(50, rate=50.0, batch=1, patience=2), 0, Told(""), iter(()))
    plain = encode(WEIGHT, ENCODINGS[0], method="mse")
    assert problem.loss({"w": wild["w"].dequantize()}) <= problem.loss({"w": plain.dequantize()})
    assert len(seen) == 2  # epochs of one window


def test_a_killed_pass_goes_on_and_ends_with_the_same_codes(tmp_path: Path) -> None:
    seen: list[object] = []

    def counting(items: Iterable[Any], label: Any) -> Iterator[Any]:
        for item in items:
            if len(seen) == 22:  # in the second block, of 18 steps each
                raise KeyboardInterrupt
            seen.append(label() if callable(label) else label)
            yield item

    with pytest.raises(KeyboardInterrupt):
        PASS.run(captured("llama"), Env(calibration=TEXT, checkpoints=tmp_path, progress=counting))
    seen.clear()
    resumed = PASS.run(captured("llama"), Env(calibration=TEXT, checkpoints=tmp_path, progress=counting))
    assert len(seen) == 18  # of the second block alone
    assert "train-blocks, model.layers.1, loss " in str(seen[-1])
    for name, weight in PASS.run(captured("llama"), Env(calibration=TEXT)).weights.items():
        if isinstance(weight, QTensor):
            assert torch.equal(weight.codes, resumed.weights[name].codes)  # type: ignore[union-attr]


def test_what_was_allocated_is_trained_too() -> None:
    program = captured("qwen2")
    way = AllocateBits("3.5bpw", bits=(2, 3, 4, 8), group=(1, 16), method="gptq", tokens=144)
    twice = Calibration.of(TEXT.windows.repeat(2, 1), "random")  # what is held back was seen
    ways = (way, replace(way, method="block-ap"))
    compensated, trained = (w.run(program, Env(calibration=twice)) for w in ways)
    assert compensated.encodings == trained.encodings
    found = language({"a": program, "g": compensated, "b": trained}, TEXT.windows, "a")
    assert found["b"].against.kl.value < found["g"].against.kl.value  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0 is not above 0"),
        ({"rate": -1.0}, "rate=-1.0 is not above 0"),
        ({"held": -1}, "held=-1 is below 0"),
        ({"tokens": 1}, "tokens=1 is not above 1"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainBlocks(**options)
