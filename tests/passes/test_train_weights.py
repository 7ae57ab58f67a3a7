"""train-weights: what is trained is what is stored, it beats rounding, and its numbers are torchao's."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import captured
from torch import Tensor

from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, QTensor, fake_quantize_dynamic, per_token
from drawplate.errors import PassError
from drawplate.evaluation import language
from drawplate.leaves import Rounded, RoundedLowRank
from drawplate.passbase import Env
from drawplate.passes.cast import Cast
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.train_weights import TrainWeights
from drawplate.program import Program
from drawplate.rehearsal import rehearse
from drawplate.runner import run_passes

TEXT = Calibration.of(torch.randint(3, 97, (6, 12), generator=torch.Generator().manual_seed(1)), "random")
TRAIN = TrainWeights(bits=2, block=(1, 16), epochs=15, held=0, rate=0.005)
TABLE = {"bits": 8, "block": (1, -1)}
ROUND = (QuantizeWeights("body", 2, (1, 16)), QuantizeEmbedding(**TABLE), QuantizeWeights("head", **TABLE))  # type: ignore[arg-type]


def after(*passes: Any, name: str = "llama", seed: int = 0) -> Program:
    return run_passes(captured(name), [*passes, QuantizeActivations()], Env(calibration=TEXT, seed=seed)).program


def divergence(program: Program, name: str = "llama") -> float:
    found = language({"a": captured(name), "b": program}, TEXT.windows, "a")["b"].against
    assert found is not None
    return float(found.kl.value)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_it_beats_rounding_and_stores_the_same_way(name: str, rank: int) -> None:
    rounded, trained = after(*ROUND, name=name), after(replace(TRAIN, rank=rank), name=name)
    assert trained.encodings == rounded.encodings
    assert str(replace(trained, facts=frozenset())) == str(replace(rounded, facts=frozenset()))
    assert divergence(trained, name) < 0.7 * divergence(rounded, name)


def test_a_change_of_low_rank_is_folded_exactly() -> None:
    """What is stored reads back as what was trained, to the last bit; and the change has that rank."""
    random = torch.Generator().manual_seed(3)
    weight, encoding = torch.randn(24, 32, generator=random), Encoding(4, (1, 16), scale="bf16")
    leaf = RoundedLowRank(weight, encoding, 2, 0.5, random)
    assert torch.equal(leaf.stored().dequantize(), Rounded(weight, encoding).stored().dequantize())
    with torch.no_grad():
        leaf.numbers["lora_B"].normal_(generator=random)
    assert torch.equal(leaf.value(), leaf.stored().dequantize())
    (leaf.value() * torch.randn(24, 32, generator=random)).sum().backward()
    assert {n: x.grad is not None and bool(x.grad.any()) for n, x in leaf.numbers.items()} == {
        "lora_A": True,
        "lora_B": True,
    }
    change = 0.5 * leaf.numbers["lora_B"] @ leaf.numbers["lora_A"]
    assert torch.linalg.matrix_rank(change) == 2
    assert torch.equal(leaf.value(), Rounded((weight + change).detach(), encoding).value())


def test_with_a_rank_tables_stay_as_they_are_rounded() -> None:
    rounded, trained = after(*ROUND), after(replace(TRAIN, rank=2, epochs=1))
    tables = [n for n in rounded.encodings if "layers" not in n]
    assert tables
    for name in tables:
        assert torch.equal(rounded.weights[name].codes, trained.weights[name].codes)  # type: ignore[union-attr]


def test_nothing_is_rounded_that_is_not_asked_for() -> None:
    trained = run_passes(
        captured("llama"), [replace(TRAIN, vocabulary=0, activations=0, epochs=1)], Env(calibration=TEXT)
    )
    assert {n for n, w in trained.program.weights.items() if isinstance(w, QTensor)} == {
        n for n in trained.program.encodings if "layers" in n
    }


def test_the_seed_decides_every_code_and_a_rehearsal_knows_the_shapes() -> None:
    first, same, other = (after(replace(TRAIN, epochs=2), seed=s) for s in (1, 1, 2))
    codes = [
        torch.cat([w.codes.flatten() for w in p.weights.values() if isinstance(w, QTensor)])
        for p in (first, same, other)
    ]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    rehearsed = rehearse(captured("llama"), [TRAIN, QuantizeActivations()], Env(calibration=TEXT)).program
    assert str(rehearsed) == str(first)


def test_a_block_that_fits_nothing_is_refused() -> None:
    with pytest.raises(PassError, match="no weight of a linear can be stored as 'i2 block 1x7 sym scale f32'"):
        after(replace(TRAIN, block=(1, 7)))


def test_numbers_are_torchao_s() -> None:
    """8da4w of torchao's QAT: weights to the last bit; activations by the runtime's rule, a step away at most."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import PerGroup, PerToken
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

        weights = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, PerGroup(32), is_symmetric=True))
        activations = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, PerToken(), is_symmetric=False))
        weight, x = (torch.randn(48, 64, generator=torch.Generator().manual_seed(i)) for i in (4, 5))
        theirs = weights(weight)
        read = activations(x)
    leaf = Rounded(weight, Encoding(4, (1, 32)))
    assert torch.equal(leaf.value(), theirs)
    step = (x.amax(-1) - x.amin(-1)) / 255
    assert bool(((fake_quantize_dynamic(x, per_token(8)) - read).abs() <= 1.01 * step[:, None]).all())
    gradient = torch.randn(48, 64, generator=torch.Generator().manual_seed(6))
    leaf.value().backward(gradient)
    found: Tensor | None = leaf.numbers["weight"].grad
    assert found is not None
    own = weight.clone().requires_grad_()
    weights(own).backward(gradient)
    torch.testing.assert_close(found, own.grad)


def test_what_linears_read_is_rounded_while_it_trains() -> None:
    def first(activations: int) -> float:
        outcome = run_passes(
            captured("llama"), [replace(TRAIN, epochs=1, activations=activations)], Env(calibration=TEXT)
        )
        return float(outcome.records[-1].data["losses"][0])

    assert first(2) > 1.5 * first(8)


def test_a_model_of_bf16_is_refused_before_it_is_trained() -> None:
    program = run_passes(captured("llama"), [Cast("bf16")], Env()).program
    with pytest.raises(PassError, match="no weight of a linear can be stored"):
        replace(TRAIN).run(program, Env(calibration=TEXT))
