"""Allocations that are stored and measured before one of them is taken.

Expected damages are of the second order and are added up; large errors do more than that, together most of all. What
understates them most are the smallest entries of a menu, so the other finalists do without these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from drawplate.allocation import Allocation, Item
from drawplate.budget import Account, Unaffordable
from drawplate.costs import Sample, divergence
from drawplate.probing import run_pieces
from drawplate.program import Program


def finalists(items: Sequence[Item], account: Account, count: int) -> list[Allocation]:
    """The allocation of least expected damage, and up to count - 1 that leave out the fewest bits of the menu, then the
    next ones too, as far as the budget allows. Raises Unaffordable if it allows none."""
    found = [account.spend(items)]
    for lowest in sorted({o.what.bits for i in items for o in i.options if o.what is not None})[:-1]:
        items = [
            replace(i, options=tuple(o for o in i.options if o.what is None or o.what.bits > lowest)) for i in items
        ]
        if len(found) >= count or not all(i.options for i in items):
            break
        try:
            another = account.spend(items)
        except Unaffordable:
            break
        if another.chosen != found[-1].chosen:
            found.append(another)
    return found


def rises(cost: str, program: Program, stored: Sequence[Program], samples: Iterable[Sample]) -> list[float]:
    """By how much the cost is higher per token with the stored weights of each, measured; of "kl" the divergence
    itself."""
    totals, tokens = [0.0] * len(stored), 0
    for sample in samples:
        before = _logits(program, sample)
        for i, one in enumerate(stored):
            totals[i] += _risen(cost, sample, before, _logits(one, sample))
        tokens += sum(inputs[0].numel() for inputs in sample.inputs)
    return [total / tokens for total in totals]


def _risen(cost: str, sample: Sample, before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    if cost != "kl":
        return float(sample.cost(after)) - float(sample.cost(before))
    return sum(float(divergence(a.float().log_softmax(-1), b).sum()) for a, b in zip(before, after, strict=True))


def _logits(program: Program, sample: Sample) -> list[Tensor]:
    return [outputs[0] for outputs in run_pieces(program, sample.inputs)]
