"""What all ways of learning share: the rate's schedule, the precision, what is said meanwhile, when to give up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch

from drawplate.errors import PassError
from drawplate.metrics import Metrics

Precision = Literal["f32", "bf16"]


def computing(precision: Precision) -> AbstractContextManager[object]:
    """Where gradients are computed. "bf16": products and attention in bfloat16, all else in float32 (autocast)."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


class Told:
    """What a training says of itself: the label of a bar, which env.progress asks again after each step, and a line of
    metrics for each step and for each look at what was held back. part: of the program, that it is at."""

    def __init__(self, what: str, metrics: Metrics | None = None) -> None:
        self.what, self.part = what, ""
        self._metrics = metrics or Metrics()
        self._figures = ""

    def step(self, step: int, loss: float, rate: float) -> None:
        """With so many steps done before."""
        self._figures = f", loss {loss:.4g}, rate {rate:.2g}"
        self._metrics.write(self.part, step, loss=loss, rate=rate)

    def look(self, step: int, held: float) -> None:
        """The loss of what was held back, after so many steps."""
        self._metrics.write(self.part, step, held=held)

    def __call__(self) -> str:
        return (f"{self.what}, {self.part}" if self.part else self.what) + self._figures


def cosine(step: int, steps: int) -> float:
    """The share of the learning rate that is left at a step: 1 at the first, near 0 at the last.

    >>> cosine(0, 10), round(cosine(5, 10), 3)
    (1.0, 0.5)
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def falling(step: int, steps: int) -> float:
    """The same, down to a twentieth (EfficientQAT: Chen et al. 2024, arXiv:2407.11062).

    >>> falling(0, 10), round(falling(10, 10), 3)
    (1.0, 0.05)
    """
    return 1 / 20 + (1 - 1 / 20) * cosine(step, steps)


def halves(count: int, held: int) -> tuple[Sequence[int], Sequence[int]]:
    """Windows that are trained on, and those that are held back: the last ones, at most a quarter. With none held back
    all of them are both.

    >>> halves(8, 4), halves(1, 4)
    ((range(0, 6), range(6, 8)), (range(0, 1), range(0, 1)))
    """
    held = min(held, count // 4)
    return range(count - held), range(count - held, count) if held else range(count)


def drawn(count: int, size: int, seed: int, step: int) -> list[int]:
    """Which of `count` windows a step sees: each once before any again, in a new order every time.

    >>> sorted(drawn(4, 2, 0, 0) + drawn(4, 2, 0, 1))
    [0, 1, 2, 3]
    """
    chosen = []
    for i in range(step * size, (step + 1) * size):
        generator = torch.Generator().manual_seed((seed << 20) + i // count)
        chosen.append(int(torch.randperm(count, generator=generator)[i % count]))
    return chosen


def refuse_divergence(loss: float, step: int, rate: float, where: str = "") -> None:
    """Raise PassError if the loss is no number any more."""
    if not math.isfinite(loss):
        raise PassError(
            f"the loss became {loss} at step {step}",
            where=where,
            why=f"a learning rate of {rate:g} is too large, or activations of this model are infinite",
            fix=f"learn slower: rate={rate / 4:g}",
        )
