"""What a backend's hardware or runtime can hold, as data. Passes ask this, never the backend's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from drawplate.encoding import Encoding


@dataclass(frozen=True)
class Choice:
    """One entry of a menu: a weight's encoding (None: floating point) and the activation encoding it needs.

    weight.block entries that vary are given by `group_multiple`: 32 means groups of 32, 64, 96, ..
    """

    weight: Encoding | None
    activation: Encoding | None = None
    group_multiple: int | None = None

    def admits(self, weight: Encoding | None, activation: Encoding | None) -> bool:
        """Is this pair of encodings this entry of the menu?"""
        if activation != self.activation or (weight is None) != (self.weight is None):
            return False
        if weight is None or self.weight is None:
            return True
        if self.group_multiple and len(weight.block) == 2 and weight.block[1] > 0:
            same = replace(weight, block=self.weight.block)
            return same == self.weight and weight.block[1] % self.group_multiple == 0
        return weight == self.weight

    def __str__(self) -> str:
        weight = str(self.weight) if self.weight else "float"
        group = f" (groups of {self.group_multiple} k)" if self.group_multiple else ""
        return weight + group + (f" with activations {self.activation}" if self.activation else "")


@dataclass(frozen=True)
class Target:
    """menu: per role ("linear", "embedding") what a weight may be. float_dtypes: what computes in floating point and
    does not fall back. tied_bits: at which a table that is embedding and head at once is in the file once; at others
    each has a copy of its own. operator_bytes: about what an operator of the canonical graph takes beside its weights.
    rotates: does it run drawplate.hadamard, which turns activations while the model runs? Not a matter of course: there
    is no such operator in most formats, and what stands in for it may cost more than the linear behind it."""

    name: str
    menu: Mapping[str, tuple[Choice, ...]]
    float_dtypes: tuple[str, ...] = ("f32",)
    tied_bits: tuple[int, ...] = tuple(range(1, 17))
    rotates: bool = False
    operator_bytes: int = 0
