"""train-lora, fold-lora and PEFT's files: what is trained helps, what is folded is the same or says what it lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from architectures import captured
from safetensors.torch import load_file, save_file

from drawplate.activations import ENCODE
from drawplate.analysis.adapters import adapters
from drawplate.calibration import Calibration, Question
from drawplate.canonical.match import is_call
from drawplate.costs import likelihood
from drawplate.digest import program_digest
from drawplate.encoding import QTensor, per_channel
from drawplate.errors import PassError
from drawplate.evaluation import language
from drawplate.leaves import Whole
from drawplate.passbase import Env, Pass
from drawplate.passes.add_lora import AddLora
from drawplate.passes.cast import Cast
from drawplate.passes.fold_lora import FoldLora
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.train_lora import TrainLora
from drawplate.plugins import hookimpl
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.runner import Outcome, replay, run_passes
from drawplate.streaming import inputs_of

RANDOM = torch.Generator().manual_seed(1)
TEXT = Calibration.of(torch.randint(3, 97, (6, 12), generator=RANDOM), "random")
PAIRS = [torch.randint(3, 97, (3, 6), generator=RANDOM).tolist() for _ in range(12)]
ASKED = TEXT.asking(
    [Question(((tuple(q), tuple(good)), (tuple(q), tuple(bad))), (1, 1), 0) for q, good, bad in PAIRS], "pairs"
)
STORE = QuantizeWeights("body", 2, (1, 16), symmetric=False)
TRAIN = TrainLora(epochs=12, batch=2, held=0, rate=0.01)


def run(*passes: Any, text: Calibration = TEXT) -> Outcome:
    return run_passes(captured("llama"), passes, Env(calibration=text))


def divergence(program: Program) -> float:
    found = language({"a": captured("llama"), "b": program}, TEXT.windows, "a")["b"].against
    assert found is not None
    return float(found.kl.value)


def likelihoods(program: Program, which: int) -> torch.Tensor:
    """Of these answers, one by one."""
    module, found = program.module(), []
    for question in ASKED.questions:
        given, rest = question.choices[which]
        with torch.no_grad():
            found.append(likelihood(given, rest, module(*next(inputs_of(program, torch.tensor([[*given, *rest]]))))))
    return torch.stack(found)


def test_adapters_make_up_for_rounding_and_nothing_else_changes() -> None:
    before, after = run(STORE, AddLora(4)).program, run(STORE, AddLora(4), TRAIN).program
    assert divergence(after) < 0.5 * divergence(before)
    trained = {name for a in adapters(after) for name in (a.down, a.up)}
    for name, weight in before.weights.items():
        same = weight.codes if isinstance(weight, QTensor) else weight
        now: Any = after.weights[name]
        assert torch.equal(same, now.codes if isinstance(weight, QTensor) else now) == (name not in trained)


def test_answers_become_likelier() -> None:
    before, after = run(AddLora(4)).program, run(AddLora(4), replace(TRAIN, loss="answers"), text=ASKED).program
    assert likelihoods(after, 0).mean() > likelihoods(before, 0).mean() + 3


def test_dpo_widens_the_margin_from_where_it_began() -> None:
    before = run(AddLora(4)).program
    outcome = run(AddLora(4), replace(TRAIN, loss="dpo"), text=ASKED)
    margins = [likelihoods(p, 0) - likelihoods(p, 1) for p in (before, outcome.program)]
    assert bool((margins[1] > margins[0]).all())
    (told,) = [r.data for r in outcome.records if r.name == "preferences"]
    assert (told["pairs"], told["held"], told["beta"]) == (12, False, 0.1)
    assert told["before"] == {"margin": 0.0, "accuracy": 0.5}  # against itself
    change = 0.1 * (margins[1] - margins[0])
    assert told["after"] == {"margin": pytest.approx(float(change.mean()), rel=1e-3), "accuracy": 1.0}
    losses = next(r for r in outcome.records if r.name == "training").data["losses"]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-3)  # nothing was learned yet: ln 2
    assert losses[-1] < 0.5 * losses[0]


def test_rewards_are_told_of_pairs_held_back_against_the_model_without_adapters() -> None:
    answers, dpo = replace(TRAIN, loss="answers", epochs=4), replace(TRAIN, loss="dpo", epochs=4, held=3)
    outcome = run(AddLora(4), answers, dpo, text=ASKED)
    (data,) = [r.data for r in outcome.records if r.name == "preferences"]
    assert (data["pairs"], data["held"]) == (3, True)
    plain, first, last = run().program, run(AddLora(4), answers, text=ASKED).program, outcome.program
    without, before, after = ((likelihoods(p, 0) - likelihoods(p, 1))[-3:] for p in (plain, first, last))
    for found, wanted in ((data["before"], before - without), (data["after"], after - without)):
        assert found["margin"] == pytest.approx(0.1 * float(wanted.mean()), rel=1e-3, abs=1e-5)
        assert found["accuracy"] == pytest.approx(float((wanted > 0).float().mean()))
    assert data["before"]["margin"] != 0
    (told,) = [t for t in outcome.told if "pairs" in t]
    assert told.startswith("train-lora: of 3 pairs held back, the right answer's implicit reward is ahead in ")


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_what_was_trained_loads_again_from_peft_s_files(dtype: Any, tmp_path: Path) -> None:
    outcome = run(STORE, AddLora(4, 0.5, dtype=dtype), TRAIN)
    assert divergence(outcome.program) < 0.5 * divergence(run(STORE).program)
    for record in outcome.records:
        record.write(tmp_path / f"{record.name}{record.suffix}")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 2.0)
    left = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in left
    assert {w.dtype for w in left.values()} == {torch.bfloat16 if dtype else torch.float32}
    again = run(STORE, AddLora(adapters=str(tmp_path))).program
    for name, weight in outcome.program.weights.items():
        if isinstance(weight, torch.Tensor):
            assert torch.equal(weight, again.weights[name])  # type: ignore[arg-type]
    assert divergence(again) == pytest.approx(divergence(outcome.program), rel=1e-6)


def test_adapters_for_another_model_are_refused_with_all_reasons(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    made = {}
    for module, rows in (("model.layers.0.self_attn.q_proj", 7), ("model.layers.9.mlp.up_proj", 64)):
        made[f"base_model.model.{module}.lora_A.weight"] = torch.ones(2, 32)
        made[f"base_model.model.{module}.lora_B.weight"] = torch.ones(rows, 2)
    save_file(made, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PassError) as error:
        AddLora(adapters=str(tmp_path)).run(captured("llama"), Env())
    assert "model.layers.0.self_attn.q_proj is [" in str(error.value)
    assert "there is no linear model.layers.9.mlp.up_proj here" in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "its peft_type is IA3"),
        ({"peft_type": "LORA", "use_dora": True}, "use_dora is True"),
        (None, "the adapter cannot be read"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    save_file({}, tmp_path / "adapter_model.safetensors")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PassError, match=message):
        AddLora(adapters=str(tmp_path)).check_env(Env())


def test_folding_into_numbers_is_the_same_function() -> None:
    outcome = run(AddLora(4), replace(TRAIN, epochs=2), FoldLora())
    assert adapters(outcome.program) == ()
    assert outcome.program.weights.keys() == captured("llama").weights.keys()
    (certificate,) = [c for c in outcome.certificates if c.invariant == "SAME_FUNCTION" and c.pass_name == "fold-lora"]
    assert certificate.error < 1e-12


def folding(outcome: Outcome) -> dict[str, Any]:
    """What was recorded of it."""
    (record,) = [r.data for r in outcome.records if r.name == "folding"]
    return record  # type: ignore[no-any-return]


def test_what_is_lost_of_a_change_to_coarse_numbers_is_told() -> None:
    train = replace(TRAIN, epochs=2, loss="loss")
    fine, coarse = (run(*front, AddLora(4), train, FoldLora()) for front in ([], [Cast("bf16")]))
    assert 0 < max(folding(fine)["residuals"].values()) < 1e-4
    assert min(folding(coarse)["residuals"].values()) > 0.01
    assert folding(fine)["kl"] < 1e-6 < folding(coarse)["kl"]


@pytest.mark.parametrize("rounded", ["no", "in front", "behind"])
def test_kept_as_integers_they_are_read_as_what_they_stand_beside(rounded: str) -> None:
    before = [STORE, *([QuantizeActivations()] if rounded == "in front" else []), AddLora(4, dtype="bf16"), TRAIN]
    behind = [QuantizeActivations()] if rounded == "behind" else []
    outcome = run(*before, FoldLora("keep", bits=8), *behind)
    found = adapters(outcome.program)
    assert len(found) == 14
    for adapter in found:
        for name in (adapter.down, adapter.up):
            assert outcome.program.encodings[name] == per_channel(8)
        for place in adapter.places:
            encoded = [is_call(n.args[0], ENCODE) for n in (place.linear, place.inner, place.outer)]
            assert encoded == [rounded != "no"] * 3
            assert place.linear.args[0] is place.inner.args[0]
    data = folding(outcome)
    assert data["method"] == "keep"
    assert len(data["residuals"]) == 14
    assert 0 < max(data["residuals"].values()) < 0.05
    assert 0 < data["kl"] < 0.1 * divergence(run(STORE).program)
    (told,) = [t for t in outcome.told if t.startswith("fold-lora")]
    assert told.startswith("fold-lora: 14 adapters stored in 8 bits; the residual of the worst, model.layers.")
    holds = {c.invariant: c.holds for c in outcome.certificates if c.pass_name == "fold-lora"}
    assert holds == {"SIGNATURE": True, "ROUNDS": True}


def test_kept_as_they_are_nothing_changes() -> None:
    kept, left = run(STORE, AddLora(4)).program, run(STORE, AddLora(4), FoldLora("keep")).program
    assert str(kept) == str(left)


def test_kept_beside_floating_point_as_integers() -> None:
    program = run(AddLora(4), FoldLora("keep", bits=8)).program
    assert "weights.float" not in program.facts
    with pytest.raises(PassError, match="an adapter is stored as integers already"):
        run(AddLora(4), FoldLora("keep", bits=8), FoldLora("keep", bits=8))
    with pytest.raises(ValueError, match="bits=8 is of method=keep"):
        FoldLora("round", bits=8)


@pytest.mark.parametrize("method", ["round", "gptq"])
def test_folding_into_integers_stores_again_and_says_what_it_lost(method: Any) -> None:
    store = replace(STORE, bits=4)
    kept = run(store, AddLora(4), TRAIN)
    outcome = run(store, AddLora(4), TRAIN, FoldLora(method))
    assert outcome.program.encodings == kept.program.encodings
    assert adapters(outcome.program) == ()
    (told,) = [t for t in outcome.told if t.startswith("fold-lora")]
    assert "14 weights stored again" in told
    assert "KL to the model as it came in" in told
    data = folding(outcome)
    assert set(data["residuals"]) == {a.base for a in adapters(kept.program)}
    assert (
        f"{max(data['residuals'].values()):.3g} of its change; KL to the model as it came in {data['kl']:.3g}" in told
    )


def test_integers_cannot_be_folded_into_exactly() -> None:
    with pytest.raises(PassError, match="an adapter cannot be folded into integers exactly"):
        run(STORE, AddLora(4), FoldLora())


@dataclass(frozen=True)
class TrainAndFail(TrainLora):
    """Fails with what it has learned."""

    name: ClassVar = "train-and-fail"

    def run(self, program: Program, env: Env) -> Program:
        raise IndexError(program_digest(super().run(program, env)))


class Kit:
    @hookimpl
    def drawplate_passes(self) -> list[type[Pass]]:
        return [TrainAndFail]


@pytest.mark.parametrize("loss", ["kl", "loss"])
def test_a_failure_is_shown_again_with_the_original_to_learn_from(loss: Any, tmp_path: Path) -> None:
    fails = TrainAndFail(loss, epochs=1, held=0, rate=0.01)
    with pytest.raises(PassError) as first:
        run_passes(captured("llama"), [STORE, AddLora(2), fails], Env(calibration=TEXT), crashes=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert (folder / "original").is_dir() == (loss == "kl")
    with pytest.raises(PassError) as again:
        replay(folder, Session({"kit": Kit()}))
    assert again.value.why == first.value.why
    assert again.value.why.startswith("IndexError: ")


def test_there_must_be_adapters() -> None:
    with pytest.raises(PassError, match="train-lora has nothing to train"):
        run(TRAIN)
    with pytest.raises(PassError, match="there are no adapters to fold"):
        run(FoldLora())


def test_preferences_need_a_task() -> None:
    with pytest.raises(PassError, match="loss=dpo needs a task, and there is none"):
        run(AddLora(2), replace(TRAIN, loss="dpo"))


def test_of_two_trainings_the_last_one_s_adapters_are_left() -> None:
    outcome = run(AddLora(4), replace(TRAIN, epochs=1), replace(TRAIN, epochs=2))
    (left,) = [r for r in outcome.records if r.name == "adapter_model"]
    for adapter in adapters(outcome.program):
        module = adapter.base.removesuffix(".weight")
        assert torch.equal(
            left.tensors[f"base_model.model.{module}.lora_B.weight"], outcome.program.weights[adapter.up]
        )  # type: ignore[arg-type]
    assert len([r for r in outcome.records if r.name == "training"]) == 2


def test_small_steps_are_not_lost_in_bf16() -> None:
    leaf = Whole(torch.ones(3, dtype=torch.bfloat16))
    with torch.no_grad():
        for _ in range(16):
            leaf.numbers["weight"] += 1e-3
    assert leaf.value().dtype == leaf.stored().dtype == torch.bfloat16
    torch.testing.assert_close(leaf.stored().float(), torch.full((3,), 1.016), rtol=0, atol=4e-3)
