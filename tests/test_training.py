"""Training end to end: gradients are those of the whole program, the best state is kept, a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import captured
from torch import Tensor

from drawplate.aims import samples_for
from drawplate.calibration import Calibration, Question
from drawplate.encoding import QTensor, as_read
from drawplate.errors import PassError
from drawplate.evaluation import language
from drawplate.learning.state import Aside
from drawplate.leaves import Scales, Whole
from drawplate.passbase import Env, Pass
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.train_blocks import TrainBlocks
from drawplate.passes.train_scales import TrainScales
from drawplate.passes.train_weights import TrainWeights
from drawplate.program import Program
from drawplate.runner import run_passes
from drawplate.training import Network, Settings, train

TEXT = Calibration.of(torch.randint(3, 97, (6, 12), generator=torch.Generator().manual_seed(1)), "random")
STORE = QuantizeWeights("all", 2, (1, 16), symmetric=False, range="mse")
PASS = TrainScales(epochs=20, held=0, rate=0.01)


def stored(name: str = "llama") -> Program:
    return run_passes(captured(name), [STORE], Env()).program


def trained(name: str = "llama", seed: int = 0, **options: Any) -> Program:
    passes = (STORE, replace(PASS, **options))
    return run_passes(captured(name), passes, Env(calibration=TEXT, seed=seed)).program


def scales_of(program: Program) -> Network:
    return Network(program, {n: Scales(w) for n, w in program.weights.items() if isinstance(w, QTensor)})


def divergence(program: Program, name: str = "llama") -> float:
    found = language({"a": captured(name), "b": program}, TEXT.windows, "a")["b"].against
    assert found is not None
    return float(found.kl.value)


def test_gradients_are_those_of_the_whole_program() -> None:
    program = captured("llama")
    weights = {n: w for n, w in program.weights.items() if isinstance(w, Tensor) and w.is_floating_point()}
    network = Network(program, {n: Whole(w) for n, w in weights.items()})
    sample = samples_for("loss", program, program, TEXT, 12)[0]
    value = network.backward(sample, 0.5)

    module = program.module().requires_grad_()
    expected = sample.cost([module(*sample.inputs[0])])
    (0.5 * expected).backward()
    assert value == pytest.approx(expected.item())
    parameters = dict(module.named_parameters())
    for name in weights:
        torch.testing.assert_close(network.numbers[f"{name}!weight"].grad, parameters[name].grad)


def test_a_scale_s_gradient_is_that_of_the_weight_as_it_reads_back() -> None:
    program = stored()
    network = scales_of(program)
    sample = samples_for("kl", program, captured("llama"), TEXT, 12)[0]
    network.backward(sample, 1.0)
    name = next(n for n in program.weights if n.endswith("down_proj.weight"))
    gradient = network.numbers[f"{name}!scale"].grad
    assert gradient is not None
    at = int(gradient.abs().argmax())

    def moved(by: float) -> float:
        weight: Any = program.weights[name]
        scale = weight.grid.scale.double().clone()
        scale.view(-1)[at] *= 1 + by
        grid = replace(weight.grid, scale=scale.float())
        other = replace(program, weights={**program.weights, name: replace(weight, grid=grid)})
        return scales_of(other).loss(sample)

    slope = (moved(0.02) - moved(-0.02)) / 0.04
    assert slope == pytest.approx(float(gradient.view(-1)[at]), rel=0.05)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_scales_learn_and_integers_stay(name: str) -> None:
    before, after = stored(name), trained(name)
    assert divergence(after, name) < 0.75 * divergence(before, name)
    for weight, other in ((w, after.weights[n]) for n, w in before.weights.items() if isinstance(w, QTensor)):
        assert isinstance(other, QTensor)
        assert torch.equal(weight.codes, other.codes)
        assert torch.equal(weight.grid.zero_point, other.grid.zero_point)
        assert weight.nbytes == other.nbytes


@pytest.mark.parametrize(
    "passes",
    [
        (STORE, PASS),
        (TrainBlocks(bits=3, block=(1, 16), held=0),),
        (TrainWeights(bits=3, block=(1, 16), rate=1e-3, epochs=10, held=0),),
    ],
    ids=["scales", "blocks", "weights"],
)
def test_in_bf16_it_learns_as_much_and_stores_in_full(passes: tuple[Pass, ...]) -> None:
    """What is stored is held to its grid by the runner, as ever."""
    *before, last = passes

    def after(precision: str) -> Program:
        now: Any = replace(last, precision=precision)  # type: ignore[call-arg, type-var]
        return run_passes(captured("llama"), [*before, now], Env(calibration=TEXT)).program

    full, half = after("f32"), after("bf16")
    assert divergence(half) < 1.1 * divergence(full)
    different = False
    for name, encoding in full.encodings.items():
        other = half.weights[name]
        assert isinstance(other, QTensor)
        assert other.encoding == encoding
        assert other.grid.scale.dtype == torch.float32
        different |= not torch.equal(other.dequantize(), as_read(full.weights[name]))
    assert different


def test_a_text_s_own_tokens_can_be_learned() -> None:
    def perplexity(program: Program) -> float:
        return float(language({"a": program}, TEXT.windows)["a"].perplexity.value)

    assert perplexity(trained(loss="loss")) < 0.9 * perplexity(stored())


def test_body_alone_leaves_tables() -> None:
    before, after = stored(), trained(where="body", epochs=1)
    pairs = [(n, w, after.weights[n]) for n, w in before.weights.items() if isinstance(w, QTensor)]
    same = {n: torch.equal(w.grid.scale, other.grid.scale) for n, w, other in pairs}  # type: ignore[union-attr]
    assert all(kept == ("layers" not in name) for name, kept in same.items())


def test_what_was_best_on_what_was_held_back_is_kept() -> None:
    """A rate that throws everything about leaves the scales as they were."""
    program = stored()
    network, env = scales_of(program), Env(calibration=TEXT)
    settings = Settings(2, rate=30.0, batch=1, held=1)
    samples = samples_for("kl", program, captured("llama"), TEXT, 72)
    after = train(network, samples, settings, Aside(None, ""), env, "x")
    for name, weight in after.items():
        assert torch.equal(weight.grid.scale, program.weights[name].grid.scale)  # type: ignore[union-attr]
    (record,) = env.records
    assert len(record.data["losses"]) == 2 * 5
    assert record.data["held"][0][1] == min(loss for _, loss in record.data["held"])


def test_a_killed_run_goes_on_and_ends_with_the_same_scales(tmp_path: Path) -> None:
    seen: list[object] = []

    def counting(items: Iterable[Any], label: Any) -> Iterator[Any]:
        for item in items:
            if len(seen) == 13:
                raise KeyboardInterrupt
            seen.append(item)
            yield item

    program, pass_ = stored(), replace(PASS, epochs=6, held=1)
    env = Env(calibration=TEXT, checkpoints=tmp_path, progress=counting, original=captured("llama"))
    with pytest.raises(KeyboardInterrupt):
        pass_.run(program, env)
    seen.clear()
    resumed = pass_.run(program, env)
    assert seen == list(range(10, 18))
    alone = Env(calibration=TEXT, original=captured("llama"))
    whole = pass_.run(program, alone)
    assert env.records[-1].data == alone.records[-1].data
    for name, weight in whole.weights.items():
        if isinstance(weight, QTensor):
            assert torch.equal(weight.grid.scale, resumed.weights[name].grid.scale)  # type: ignore[union-attr]


def test_an_encoder_has_nothing_to_be_trained_for() -> None:
    with pytest.raises(PassError, match="gives no logits"):
        trained("bert")


def test_of_questions_as_many_are_read_as_make_up_the_tokens() -> None:
    questions = [Question((((5, 6), (7,)), ((5, 6), (8, 9))), (1, 1), 0) for _ in range(5)]  # 7 tokens each
    text, program = TEXT.asking(questions, "five"), captured("llama")
    counts = [len(samples_for(aim, program, program, text, n)) for aim in ("answers", "dpo") for n in (1, 8, 99)]  # type: ignore[arg-type]
    assert counts == [1, 2, 5, 1, 2, 5]


def test_a_stored_model_does_not_learn_from_itself() -> None:
    with pytest.raises(PassError, match="would learn from itself"):
        run_passes(stored(), [PASS], Env(calibration=TEXT))


def test_there_must_be_something_to_train() -> None:
    table = run_passes(captured("qwen2"), [QuantizeWeights("head", 8, (1, -1))], Env()).program
    with pytest.raises(PassError, match="train-scales has nothing to train"):
        replace(PASS, where="body").run(table, Env(calibration=TEXT))


def test_pairs_are_asked_for_before_anything_runs() -> None:
    one = TEXT.asking([Question((((5, 6), (7,)),), (1,), 0)], "answers")
    with pytest.raises(PassError, match="loss=dpo needs pairs of answers"):
        replace(PASS, loss="dpo").check_env(Env(calibration=one))
    with pytest.raises(PassError, match="loss=answers needs a task"):
        replace(PASS, loss="answers").check_env(Env(calibration=TEXT))


@pytest.mark.parametrize("aim", ["answers", "dpo"])
def test_a_question_longer_than_the_model_reads_is_left_out(aim: Any) -> None:
    long = tuple(range(5, 70))
    questions = [Question(((given, (7,)), (given, (8,))), (1, 1), 0) for given in ((5, 6), long)]
    program = captured("gpt2")
    assert len(samples_for(aim, program, program, TEXT.asking(questions, "two"), 999)) == 1
    with pytest.raises(PassError, match="no question fits into the model"):
        samples_for(aim, program, program, TEXT.asking(questions[1:], "one"), 999)
