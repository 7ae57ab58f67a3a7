"""Allocations that are stored and measured before one of them is taken.

Expected damages are of the second order and are added up; large errors do more than that, together most of all. What
understates them most are the smallest entries of a menu, so the other finalists do without these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from drawplate.allocation import Allocation, Item
from drawplate.analysis.parts import Part, parts
from drawplate.budget import Account, Unaffordable
from drawplate.costs import Sample
from drawplate.encoding import as_read
from drawplate.partwise import Values, forward, run_part
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


def rise(cost: str, program: Program, stored: Program, samples: Iterable[Sample]) -> float:
    """By how much the cost is higher per token with the stored weights, measured; of "kl" the divergence itself."""
    total, tokens = 0.0, 0
    for sample in samples:
        before, after = ([_logits(p, inputs) for inputs in sample.inputs] for p in (program, stored))
        if cost == "kl":
            total += sum(_divergence(a, b) for a, b in zip(before, after, strict=True))
        else:
            total += float(sample.cost(after)) - float(sample.cost(before))
        tokens += sum(inputs[0].numel() for inputs in sample.inputs)
    return total / tokens


def _divergence(original: Tensor, stored: Tensor) -> float:
    ours, theirs = (t.float().log_softmax(-1) for t in (stored, original))
    return float(kl_div(ours, theirs, reduction="sum", log_target=True))


def _logits(program: Program, inputs: Sequence[Tensor]) -> Tensor:
    (output,) = program.graph.output_node().all_input_nodes[:1]

    def run(part: Part, values: Values) -> Values:
        return run_part(part, values, {name: as_read(program.weights[name]) for name in part.weights})

    with torch.no_grad():
        logits: Tensor = forward(parts(program), run, program.graph, inputs)[output]
    return logits
