"""What both ways of learning share: the rate's schedule, the bar's label, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from drawplate.errors import PassError


class Told:
    """The label of a bar, with the loss as it is: what env.progress asks again after each step."""

    def __init__(self, what: str) -> None:
        self.what, self.loss = what, math.nan

    def __call__(self) -> str:
        return self.what if math.isnan(self.loss) else f"{self.what}, loss {self.loss:.4g}"


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
