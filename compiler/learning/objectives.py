"""What turned activations should look like: losses of rows alone, without the model behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

UNIFORM_KURTOSIS = 1.8  # of the distribution that uses all levels of a quantiser alike: 9/5


def whip(rows: Tensor) -> Tensor:
    """The mean of exp(-|x|) over all elements (DartQuant, arXiv:2511.04063, sec. 4.1). A rotation keeps each row's
    length, so what pushes small elements away from zero pulls the large ones in.

    rows: [.., n, d] of root mean square 1.

    >>> flat, peaked = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0**0.5, 0.0]])
    >>> bool(whip(flat) < whip(peaked))
    True
    """
    return torch.exp(-rows.abs()).mean()


def kurtosis(rows: Tensor) -> Tensor:
    """The mean distance of each row's kurtosis from that of uniform numbers (KurTail, arXiv:2503.01483, sec. 3.2).

    rows: [.., n, d].

    >>> float(kurtosis(torch.linspace(-1, 1, 10001)[None])) < 1e-3
    True
    """
    centred = rows - rows.mean(-1, keepdim=True)
    square = centred.square()
    return (square.square().mean(-1) / square.mean(-1).square() - UNIFORM_KURTOSIS).abs().mean()


OBJECTIVES: Mapping[str, Callable[[Tensor], Tensor]] = {"whip": whip, "kurtosis": kurtosis}
