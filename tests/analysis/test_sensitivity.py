"""What sensitivities are measured by, and what is no cost."""

from __future__ import annotations

import pytest
import torch
from architectures import captured
from torch import Tensor

from drawplate.analysis.sensitivity import measure
from drawplate.costs import next_token_loss, of_windows
from drawplate.errors import PassError
from drawplate.passbase import Env

WINDOWS = torch.randint(3, 97, (48, 32), generator=torch.Generator().manual_seed(0))


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
