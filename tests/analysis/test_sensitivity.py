"""Sensitivities predict what storing a weight does to the cost."""

from __future__ import annotations

import pytest
import torch
from architectures import captured
from torch import Tensor

from drawplate.analysis.sensitivity import Sensitivity, measure
from drawplate.costs import next_token_loss, of_windows, own_labels
from drawplate.encoding import Encoding, encode
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.program import Program

WINDOWS = torch.randint(3, 97, (48, 32), generator=torch.Generator().manual_seed(0))
FRESH = torch.randint(3, 97, (32, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def measured() -> tuple[Program, Sensitivity]:
    program = captured("llama")
    return program, measure(program, of_windows(program, WINDOWS, own_labels(0)), Env())


def logs(program: Program) -> Tensor:
    positions = torch.arange(FRESH.shape[1]).expand_as(FRESH)
    return program.module()(FRESH, positions).log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",  # tied: looked up and multiplied with
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
    ],
)
@pytest.mark.parametrize("bits", [4, 6])
def test_the_expected_damage_is_the_divergence_that_comes(
    measured: tuple[Program, Sensitivity], name: str, bits: int
) -> None:
    program, found = measured
    weight = program.weights[name]
    assert isinstance(weight, Tensor)
    stored = encode(weight, Encoding(bits, (1, 16))).dequantize()
    editor = program.edit()
    editor.weights[name] = stored
    before, after = logs(program), logs(editor.finish())
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    assert found.damage(name, weight, stored) == pytest.approx(divergence, rel=0.5)


def test_a_weight_that_stays_does_no_damage(measured: tuple[Program, Sensitivity]) -> None:
    program, found = measured
    for name in found.readings:
        weight = program.weights[name]
        assert isinstance(weight, Tensor)
        assert found.damage(name, weight, weight) == 0


def test_the_text_s_own_loss_is_a_cost_too() -> None:
    program = captured("qwen2")
    found = measure(program, of_windows(program, WINDOWS[:4], next_token_loss), Env())
    assert found.tokens == 4 * 32
    assert all(float(r.rows.sum()) > 0 and float(r.columns.sum()) > 0 for rs in found.readings.values() for r in rs)


@pytest.mark.parametrize(
    ("cost", "what"),
    [
        (lambda logits, ids: logits.sum() * float("nan"), "the cost is not a finite number\n  why:   it gave nan"),
        (lambda logits, ids: logits[0, 0], "the cost is not one number\n  why:   it gave a tensor of shape [97]"),
        (lambda logits, ids: 3.0, "the cost is no tensor\n  why:   it gave 3.0"),
        (lambda logits, ids: logits.detach().sum(), "the cost does not depend on the logits"),
        (lambda logits, ids: torch.zeros((), requires_grad=True) * 2, "the cost does not depend on the logits"),
        (lambda logits, ids: (logits * 0).sum(), "the cost does not depend on the logits"),
        (lambda logits, ids: logits.sum() + (logits[0, 0, 0] * 0).sqrt(), "has a gradient that is not finite"),
        (
            lambda logits, ids: Broken.apply(logits),
            "the cost cannot be differentiated\n  why:   broken on the way back",
        ),
    ],
    ids=["nan", "vector", "number", "detached", "elsewhere", "zero", "infinite", "broken"],
)
def test_what_is_no_cost_is_refused(cost, what: str) -> None:  # type: ignore[no-untyped-def]
    program = captured("llama")
    with pytest.raises(PassError) as error:
        measure(program, of_windows(program, WINDOWS[:1], cost), Env())
    assert what in str(error.value)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise RuntimeError("broken on the way back")
