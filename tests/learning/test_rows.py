"""Rows of activations: the ones that the program computes, as many as asked for, whatever the batch."""

import torch
from architectures import captured

from drawplate.analysis.rotations import plan
from drawplate.learning.rows import MOST_ROWS, ROWS_PER_CHANNEL, gather, unit
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.probing import run
from drawplate.program import rounded
from drawplate.streaming import fitting, inputs_of

PROGRAM = rounded(FoldNorms().run(captured("llama"), Env()))
WINDOWS = torch.randint(0, 97, (4, 24), generator=torch.Generator().manual_seed(0))


def test_every_row_is_one_that_the_program_computes():
    rotations = plan(PROGRAM).rotations
    rows = gather(PROGRAM, rotations, WINDOWS, Env())
    seen: dict[object, list[torch.Tensor]] = {}
    for inputs in inputs_of(PROGRAM, WINDOWS):
        run(PROGRAM, inputs, watch=lambda node, _, value: seen.setdefault(node, []).append(value))
    for rotation in rotations:
        found = rows[rotation.key]
        assert found.shape[0] == rotation.count
        assert found.shape[2] == rotation.width
        assert found.shape[1] <= min(MOST_ROWS, ROWS_PER_CHANNEL * rotation.width)
        values = torch.cat([v for node in rotation.values for v in seen[node]], dim=0)
        if rotation.kind == "r2":
            values = values.transpose(0, 1)
        every = unit(values.reshape(rotation.count, -1, rotation.width).float())
        for mine, all_rows in zip(found, every, strict=True):
            assert float(torch.cdist(mine, all_rows).amin(1).max()) < 1e-2


def test_the_same_seed_draws_the_same_and_another_others():
    rotations = plan(PROGRAM).rotations
    (first, again, other) = (gather(PROGRAM, rotations, WINDOWS, Env(seed=s)) for s in (0, 0, 1))
    for key in first:
        assert torch.equal(first[key], again[key])
    longer = torch.randint(0, 97, (200, 24), generator=torch.Generator().manual_seed(0))
    first, other = (gather(PROGRAM, rotations, longer, Env(seed=s)) for s in (0, 1))
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_windows_are_cut_to_what_the_program_takes_and_to_the_tokens_asked_for():
    (high,) = {d.high for d in PROGRAM.dims if d.name == PROGRAM.inputs[0].shape[1]}
    long = torch.zeros(9, high + 5, dtype=torch.int64)
    assert fitting(PROGRAM, long, 3 * high).shape == (3, high)
    assert fitting(PROGRAM, long, 1).shape == (1, high)
