"""Rotations from rows of activations alone: whip (DartQuant) and kurtosis (KurTail), matrices of one size at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drawplate.analysis.rotations import Plan, Rotation
from drawplate.learning.descent import Told, cosine, refuse_divergence
from drawplate.learning.objectives import OBJECTIVES
from drawplate.learning.orthogonal import orthogonal_factor
from drawplate.learning.rows import by_width, gather
from drawplate.learning.state import Aside
from drawplate.metrics import Metrics
from drawplate.passbase import Env
from drawplate.program import Program
from drawplate.streaming import fitting
from drawplate.turning import Matrices

SAVE_EVERY = 50  # steps: what a killed run loses at most


@dataclass(frozen=True)
class Settings:
    """objective: "whip" or "kurtosis". steps. rate: Adam's, of the first step; it falls along a cosine. tokens: of the
    calibration text. batch: rows per step and matrix."""

    objective: str
    steps: int
    rate: float
    tokens: int
    batch: int


def learn_layerwise(
    program: Program, plan: Plan, start: Matrices, windows: Tensor, settings: Settings, aside: Aside, env: Env
) -> dict[str, Tensor]:
    """Matrices for every rotation of the plan, f64 [count, d, d] by key, learned from `start`.

    The program is read once, one weight at a time, for rows of its activations; then it is not needed.
    """
    rows = _rows(program, plan.rotations, windows, settings, aside, env)
    learned: dict[str, Tensor] = {}
    for width, rotations in by_width(plan.rotations).items():
        stacked = torch.cat([start[r.key] for r in rotations]).float()
        fewest = min(rows[r.key].shape[1] for r in rotations)
        shown = torch.cat([rows[r.key][:, :fewest] for r in rotations])
        found = _descend(stacked, shown, settings, aside, f"width-{width}", env)
        parts = found.split([r.count for r in rotations])
        learned.update({r.key: part.double() for r, part in zip(rotations, parts, strict=True)})
    return learned


def _rows(
    program: Program, rotations: Sequence[Rotation], windows: Tensor, settings: Settings, aside: Aside, env: Env
) -> Mapping[str, Tensor]:
    """The rows, or those that a killed run has drawn already."""
    kept = aside.load("rows")
    if kept is not None:
        return kept[0]
    rows = gather(program, rotations, fitting(program, windows, settings.tokens), env)
    aside.save("rows", rows)
    return rows


def _descend(start: Tensor, rows: Tensor, settings: Settings, aside: Aside, name: str, env: Env) -> Tensor:
    """start: f32 [m, d, d], rows: f32 [m, n, d] -> the orthogonal matrices at the end, f32 [m, d, d]."""
    objective = OBJECTIVES[settings.objective]
    z = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=settings.rate)
    done = _resume(aside, name, z, optimiser)
    told = Told("rotate", Metrics(env.metrics, "rotate", aside.purpose))
    told.part = f"{settings.objective}, {start.shape[-1]} wide"
    for step in env.progress(range(done, settings.steps), told):
        rate = settings.rate * cosine(step, settings.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        # the mean over matrices is their sum over a constant, and Adam does not see constants: each learns by itself
        loss = objective(_batch(rows, settings.batch, env.seed, step) @ orthogonal_factor(z))
        loss.backward()
        optimiser.step()
        refuse_divergence(loss.item(), step, settings.rate)
        told.step(step, loss.item(), rate)
        if (step + 1) % SAVE_EVERY == 0:
            _put_aside(aside, name, z, optimiser, step + 1)
    with torch.no_grad():
        return orthogonal_factor(z)


def _batch(rows: Tensor, size: int, seed: int, step: int) -> Tensor:
    """The rows of one step: drawn by the step's number, so that a run that goes on needs no generator's state."""
    if rows.shape[1] <= size:
        return rows
    generator = torch.Generator().manual_seed((seed << 20) + step)
    return rows[:, torch.randint(rows.shape[1], (size,), generator=generator)]


def _put_aside(aside: Aside, name: str, z: Tensor, optimiser: torch.optim.Adam, step: int) -> None:
    moments = optimiser.state[z]
    aside.save(name, {"z": z, **{k: moments[k] for k in ("exp_avg", "exp_avg_sq", "step")}}, step)


def _resume(aside: Aside, name: str, z: Tensor, optimiser: torch.optim.Adam) -> int:
    """Take up what was put aside; the number of steps that are done."""
    kept = aside.load(name)
    if kept is None:
        return 0
    tensors, done = kept
    with torch.no_grad():
        z.copy_(tensors["z"])
    optimiser.state[z] = {k: tensors[k] for k in ("exp_avg", "exp_avg_sq", "step")}
    return done
