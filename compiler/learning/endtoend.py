"""Rotations from the whole model's error: Cayley SGD under the target's own rounding (SpinQuant).

Liu et al. 2024 (arXiv:2405.16406), sec. 3: gradients go straight through the rounding, and each step stays on the
orthogonal matrices. Here the loss is the distance to what the model itself predicts before anything is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drawplate.analysis.rotations import Plan
from drawplate.costs import refuse_no_logits
from drawplate.learning.descent import Told, cosine, drawn, refuse_divergence
from drawplate.learning.network import Rounding, TurnedNetwork
from drawplate.learning.orthogonal import TOLERANCE, cayley_step, departure
from drawplate.learning.state import Aside
from drawplate.metrics import Metrics
from drawplate.passbase import Env
from drawplate.probing import run
from drawplate.program import Program
from drawplate.ranks import add_up, share, total
from drawplate.streaming import fitting, inputs_of
from drawplate.turning import Matrices

SAVE_EVERY = 5  # steps: what a killed run loses at most


@dataclass(frozen=True)
class Descent:
    """steps. rate: of the first step, and falling along a cosine, as is the cap that may hold a step lower. tokens: of
    the calibration text. batch: windows per step."""

    steps: int
    rate: float
    tokens: int
    batch: int


def learn_end_to_end(
    program: Program,
    plan: Plan,
    start: Matrices,
    windows: Tensor,
    rounding: Rounding,
    settings: Descent,
    aside: Aside,
    env: Env,
) -> dict[str, Tensor]:
    """Matrices for every rotation of the plan, f64 [count, d, d] by key, learned from `start`."""
    refuse_no_logits(program)
    network = TurnedNetwork(program, plan, start, rounding)
    pieces = list(inputs_of(program, fitting(program, windows, settings.tokens)))
    kept = aside.load("matrices")
    matrices, done = kept if kept is not None else ({k: m.double() for k, m in start.items()}, 0)
    told = Told("rotate, cayley", Metrics(env.metrics, "rotate", aside.purpose))
    for step in env.progress(range(done, settings.steps), told):
        chosen = [pieces[i] for i in drawn(len(pieces), settings.batch, env.seed, step)]
        loss, gradients = _gradients(program, network, chosen, matrices)
        refuse_divergence(loss, step, settings.rate)
        falling = cosine(step, settings.steps)  # of the cap too: early steps are at it, and late ones should settle
        told.step(step, loss, settings.rate * falling)
        matrices = {k: cayley_step(m, gradients[k], settings.rate * falling, falling) for k, m in matrices.items()}
        assert all(departure(m) <= TOLERANCE for m in matrices.values())
        if (step + 1) % SAVE_EVERY == 0:
            aside.save("matrices", matrices, step + 1)
    return dict(matrices)


def _gradients(
    program: Program, network: TurnedNetwork, pieces: Sequence[Sequence[Tensor]], matrices: Matrices
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of some windows and its gradients, f64."""
    narrow = {k: m.float() for k, m in matrices.items()}
    found = {k: torch.zeros_like(m) for k, m in matrices.items()}
    mean = 0.0
    for inputs in share(pieces):
        teacher = run(program, inputs, dtype=torch.float32)[0].log_softmax(-1)
        loss, gradients = network.gradients(inputs, narrow, lambda logits, t=teacher: divergence(t, logits))
        mean += loss / len(pieces)
        for key, g in gradients.items():
            found[key] += g.double() / len(pieces)
    add_up(*found.values())
    return total(mean), found


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """Mean KL(teacher || model) per token in nats. teacher: log-probabilities; both [.., vocabulary].

    >>> divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[3.0, 3.0]])).item()
    0.0
    """
    log = logits.flatten(0, -2).log_softmax(-1)
    return torch.nn.functional.kl_div(log, teacher.flatten(0, -2), log_target=True, reduction="batchmean")
