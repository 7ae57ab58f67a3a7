"""What both ways of learning share: the rate's schedule, the bar's label, and when to give up."""

from __future__ import annotations

import math

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


def refuse_divergence(loss: float, step: int, rate: float) -> None:
    """Raise PassError if the loss is no number any more."""
    if not math.isfinite(loss):
        raise PassError(
            f"the loss became {loss} at step {step}",
            why=f"a learning rate of {rate:g} is too large, or activations of this model are infinite",
            fix=f"learn slower: rate={rate / 4:g}",
        )
