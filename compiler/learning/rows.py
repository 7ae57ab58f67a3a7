"""Rows of the activations that a rotation turns, drawn from a calibration text as it streams through the program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.rotations import Rotation
from drawplate.passbase import Env
from drawplate.probing import Enough, run_pieces
from drawplate.program import Program
from drawplate.streaming import inputs_of

ROWS_PER_CHANNEL, MOST_ROWS = 32, 32_768  # drawn for a matrix, by its width: bounded memory whatever the text's length
SMALLEST = 1e-6  # of a row's root mean square: what is shorter counts as so long


def gather(program: Program, rotations: Sequence[Rotation], windows: Tensor, env: Env) -> dict[str, Tensor]:
    """For each rotation rows of what it turns: f32 [its matrices, rows, width], root mean square 1.

    The rows are drawn evenly from all of the rotation's values and all tokens; a dynamic scale is per row, so their
    lengths do not matter. windows: int64 [n, length]. Memory: the largest values of all windows, one weight, the rows.
    """
    wanted = {value: r for r in rotations for value in r.values}
    places = {
        value: _places(
            windows.numel(), min(MOST_ROWS, ROWS_PER_CHANNEL * r.width) // len(r.values), f"{env.seed} {r.key} {i}"
        )
        for r in rotations
        for i, value in enumerate(r.values)
    }
    pieces = list(inputs_of(program, windows))
    left = len(wanted) * len(pieces)
    taken: dict[fx.Node, list[Tensor]] = {value: [] for value in wanted}
    bar = iter(env.progress(range(left), "activations"))

    def watch(node: fx.Node, _: tuple[Any, ...], value: Any) -> None:
        nonlocal left
        if node in wanted:
            rows = _as_rows(value, wanted[node])
            start = len(pieces[0][0].flatten()) * _seen(node)
            mine = places[node][(places[node] >= start) & (places[node] < start + rows.shape[1])] - start
            taken[node].append(rows[:, mine])
            next(bar)
            left -= 1
            if not left:
                raise Enough

    def _seen(node: fx.Node) -> int:
        return len(taken[node])

    with suppress(Enough):  # what follows is the head, whose logits nobody asked for
        run_pieces(program, pieces, dtype=torch.float32, watch=watch)
    next(bar, None)
    return {r.key: unit(torch.cat([part for v in r.values for part in taken[v]], dim=1)) for r in rotations}


def unit(rows: Tensor) -> Tensor:
    """Each row [.., n, d] divided by its root mean square.

    >>> unit(torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
    tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=SMALLEST)


def _count(rotation: Rotation) -> int:
    return min(MOST_ROWS, ROWS_PER_CHANNEL * rotation.width)


def _places(tokens: int, count: int, seed: str) -> Tensor:
    """Which tokens' rows are taken, in order."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7]))
    return torch.randperm(tokens, generator=generator)[: max(1, count)].sort().values


def _as_rows(value: Tensor, rotation: Rotation) -> Tensor:
    """[b, s, d] -> [1, b s, d]; the values of an attention [b, heads, s, d] -> [heads, b s, d]."""
    if rotation.kind == "r2":
        return value.transpose(0, 1).reshape(rotation.count, -1, rotation.width).float()
    return value.reshape(1, -1, rotation.width).float()


def by_width(rotations: Sequence[Rotation]) -> Mapping[int, list[Rotation]]:
    """Rotations whose matrices are of one size can be learned at once."""
    found: dict[int, list[Rotation]] = {}
    for rotation in rotations:
        found.setdefault(rotation.width, []).append(rotation)
    return found
