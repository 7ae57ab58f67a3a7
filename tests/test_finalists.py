"""Allocations that are measured before one of them is taken."""

from __future__ import annotations

import pytest
import torch
from architectures import captured

from drawplate.allocation import Item, Option
from drawplate.budget import Account, Budget, Unaffordable, no_time
from drawplate.costs import next_token_loss, of_windows, own_labels
from drawplate.encoding import Encoding, encode
from drawplate.finalists import finalists, rises

WINDOWS = torch.randint(3, 97, (4, 32), generator=torch.Generator().manual_seed(0))
TWO, THREE, FOUR = (Encoding(bits, (1, 16)) for bits in (2, 3, 4))


def account(limit: int) -> Account:
    return Account(Budget.parse(f"{limit}B"), 8, 0, no_time)


def items(*dear: float) -> list[Item]:
    """The first bit that each gets is worth so much."""
    return [
        Item(str(i), (Option(2, 1.1 * d, TWO), Option(3, d, THREE), Option(4, 0.0, FOUR))) for i, d in enumerate(dear)
    ]


def test_the_others_leave_out_the_smallest_entries() -> None:
    among = finalists(items(1.0, 50.0), account(6), 3)
    assert [[o.what for o in a.chosen.values()] for a in among] == [[TWO, FOUR], [THREE, THREE]]
    assert [a.damage for a in among] == [pytest.approx(1.1), pytest.approx(51.0)]


def test_no_more_than_asked_and_none_that_does_not_fit() -> None:
    assert len(finalists(items(1.0, 50.0), account(6), 1)) == 1
    assert len(finalists(items(1.0, 50.0), account(5), 3)) == 1
    with pytest.raises(Unaffordable):
        finalists(items(1.0, 50.0), account(3), 3)


def test_the_rise_is_measured() -> None:
    """Of KL the divergence, of a loss the difference; nothing if nothing moved."""
    program = captured("llama")
    name = "model.layers.0.mlp.down_proj.weight"
    weight = program.weights[name]
    assert isinstance(weight, torch.Tensor)
    editor = program.edit()
    editor.weights[name] = encode(weight, TWO)
    stored = editor.finish()
    positions = torch.arange(32).expand_as(WINDOWS)
    before, after = (p.module()(WINDOWS, positions).log_softmax(-1) for p in (program, stored))
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    kl, loss = (list(of_windows(program, WINDOWS, cost)) for cost in (own_labels(0), next_token_loss))
    moved, same = rises("kl", program, [stored, program], kl)
    assert moved == pytest.approx(divergence, rel=1e-3)
    assert same == pytest.approx(0, abs=1e-7)
    lost = [float(next_token_loss(x, WINDOWS)) for x in (before, after)]
    assert rises("loss", program, [stored], loss)[0] == pytest.approx((lost[1] - lost[0]) / WINDOWS.numel(), rel=1e-3)
