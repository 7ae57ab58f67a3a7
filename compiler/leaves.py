"""What is trained of a weight: a leaf has the numbers, and says what operators read while they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from drawplate.encoding import Encoding, Grid, QTensor, dequantize, encode, fake_quantize, minmax_grid, nearest_grid
from drawplate.program import Weight


class Leaf(Protocol):
    """One weight of which something is trained."""

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """What is trained, by name."""

    def value(self) -> Tensor:
        """The weight as operators read it, differentiable in the numbers."""

    def stored(self) -> Weight:
        """What value() reads, as it is kept."""


class Scales:
    """A stored weight whose codes and zero points stay, and whose scales are trained: as shares of what they were."""

    def __init__(self, weight: QTensor) -> None:
        self._weight = weight
        self._share = torch.ones_like(weight.grid.scale).requires_grad_()
        self.numbers = {"scale": self._share}

    def value(self) -> Tensor:
        """As operators read it."""
        return dequantize(self._weight.integers(), self._grid(), self._weight.encoding)

    def stored(self) -> QTensor:
        """The same codes on the new scales."""
        with torch.no_grad():
            return replace(self._weight, grid=self._grid())

    def _grid(self) -> Grid:
        grid, encoding = self._weight.grid, self._weight.encoding
        return Grid(nearest_grid(grid.scale * self._share, grid.zero_point, encoding).scale, grid.zero_point)


class Whole:
    """A weight in floating point that is trained as it is, and read and kept in the dtype that it has."""

    def __init__(self, weight: Tensor) -> None:
        self._dtype = weight.dtype
        self._weight = weight.detach().float().clone().requires_grad_()  # in bf16 small steps would be lost
        self.numbers = {"weight": self._weight}

    def value(self) -> Tensor:
        """Itself."""
        return self._weight.to(self._dtype)

    def stored(self) -> Tensor:
        """Without its gradient."""
        return self._weight.detach().to(self._dtype, copy=True)


class Rounded:
    """A weight that is trained as it will be rounded: the gradient goes straight through (Bengio et al. 2013,
    arXiv:1308.3432), and each value's grid covers what the weight has become."""

    def __init__(self, weight: Tensor, encoding: Encoding) -> None:
        self._encoding = encoding
        self._weight = weight.detach().float().clone().requires_grad_()

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """The weight before it is rounded."""
        return {"weight": self._weight}

    def value(self) -> Tensor:
        """The weight as it will read back."""
        whole = self._whole()
        return fake_quantize(whole, minmax_grid(whole.detach(), self._encoding), self._encoding)

    def stored(self) -> QTensor:
        """What value() reads, as codes."""
        with torch.no_grad():
            return encode(self._whole(), self._encoding)

    def _whole(self) -> Tensor:
        return self._weight


def fresh_adapter(rows: int, columns: int, rank: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A [rank, columns], uniform within 1 / sqrt(columns), and B [rows, rank] of zeros: they add nothing yet."""
    return (2 * torch.rand(rank, columns, generator=random) - 1) / columns**0.5, torch.zeros(rows, rank)


class RoundedLowRank(Rounded):
    """The same, of which a change of low rank is trained: Q(W + scale * B A). So it is folded exactly: what is stored
    is what was trained. B starts as zeros."""

    def __init__(self, weight: Tensor, encoding: Encoding, rank: int, scale: float, random: torch.Generator) -> None:
        super().__init__(weight, encoding)
        self._weight.requires_grad_(False)
        rows, columns = weight.shape
        self._down, self._up = (x.requires_grad_() for x in fresh_adapter(rows, columns, rank, random))
        self._scale = scale

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """A and B."""
        return {"lora_A": self._down, "lora_B": self._up}

    def _whole(self) -> Tensor:
        return self._weight + self._scale * (self._up @ self._down)
