"""Budgets: bytes of the files, bits per weight, or milliseconds per token on a device."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from drawplate.allocation import BYTES, NANOSECONDS, Allocation, Item, Price, allocate
from drawplate.analysis.sites import Site
from drawplate.device import Device
from drawplate.encoding import Encoding
from drawplate.errors import PassError, RecipeError
from drawplate.planning import parse_bytes
from drawplate.program import Program
from drawplate.roofline import seconds, weight_seconds
from drawplate.target import Target

BITS = re.compile(r"\s*(\d+(?:\.\d+)?) ?bpw\s*")
TIME = re.compile(r"\s*(\d+(?:\.\d+)?) ?ms/token\s*")


@dataclass(frozen=True)
class Budget:
    """text: as it was given. amount: bytes, bits per weight, or nanoseconds per token; unit says of what."""

    text: str
    amount: float
    unit: Literal["bytes", "bits", "time"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`90MB`, `4.25bpw` or `12ms/token`. Raises RecipeError."""
        if bits := BITS.fullmatch(text):
            return cls(text, float(bits[1]), "bits")
        if time := TIME.fullmatch(text):
            return cls(text, 1e6 * float(time[1]), "time")
        try:
            return cls(text, parse_bytes(text), "bytes")
        except RecipeError as error:
            kinds = "bytes (90MB), nor bits per weight (4.25bpw), nor time (12ms/token)"
            raise RecipeError(f"{text!r} is neither {kinds}") from error

    @property
    def price(self) -> Price:
        """What it counts."""
        return NANOSECONDS if self.unit == "time" else BYTES


class Unaffordable(PassError):
    """The smallest that the menu allows is above the budget. least: the budget that would do, as text."""

    least = ""


@dataclass(frozen=True)
class Account:
    """A budget for one program. weights: how many are allocated. around: what all else takes of the budget, in bytes or
    nanoseconds. time: of a weight under an encoding, in nanoseconds per token; 0 where no device was named."""

    budget: Budget
    weights: int
    around: int
    time: Callable[[Site, Encoding | None], int]

    @classmethod
    def of(
        cls,
        budget: Budget,
        program: Program,
        found: Sequence[Site],
        target: Target | None,
        device: Device | None,
        context: int,
    ) -> Account:
        """found: what is allocated. context: positions of the cache that a token reads."""
        weights = sum(math.prod(s.shape) for s in found)
        if budget.unit == "bits":
            return cls(budget, weights, 0, no_time)
        if budget.unit == "bytes" or device is None:
            return cls(budget, weights, bytes_around(program, found, target), no_time)

        def time(site: Site, encoding: Encoding | None) -> int:
            nbytes = encoding.nbytes(site.shape) if encoding else program.weights[site.name].nbytes
            return math.ceil(1e9 * weight_seconds(site, nbytes, device, integer=encoding is not None))

        everything = math.ceil(1e9 * seconds(program, device, context=context))
        return cls(budget, weights, max(0, everything - sum(time(s, None) for s in found)), time)

    @property
    def limit(self) -> int:
        """What may be spent on the weights, in bytes or nanoseconds."""
        amount = self.budget.amount * self.weights / 8 if self.budget.unit == "bits" else self.budget.amount
        return int(amount) - self.around

    def spend(self, items: Sequence[Item]) -> Allocation:
        """The allocation of least damage. Raises Unaffordable, with the least budget that would do."""
        price = self.budget.price
        smallest = sum(min(map(price, i.options)) for i in items)
        if smallest > self.limit:
            least = self._written(smallest)
            error = Unaffordable(
                f"a budget of {self.budget.text} cannot be met",
                why=f"the smallest that the menu allows is {least}",
                fix=f"give at least budget={least}, or a menu with smaller entries",
            )
            error.least = least
            raise error
        return allocate(items, self.limit, price)

    def told(self, items: Sequence[Item], allocation: Allocation) -> str:
        """How much of the budget was spent, what that is in bits per weight, and why more than 1 % was left."""
        bits = f"{8 * allocation.bytes / self.weights:.3f} bits per weight{self._left(items, allocation)}"
        if self.budget.unit == "time":
            spent = sum(o.nanoseconds for o in allocation.chosen.values()) + self.around
            of = f"{spent / 1e6:.3f} of {self.budget.amount / 1e6:g} ms per token"
            return f"{of}, {allocation.bytes:,} bytes, {bits}"
        return f"{allocation.bytes:,} of {self.limit:,} bytes, {bits}"

    def _left(self, items: Sequence[Item], allocation: Allocation) -> str:
        """What the next better entry of the menu would take, where more than 1 % of the budget is left."""
        price, chosen = self.budget.price, allocation.chosen
        left = self.limit - sum(map(price, chosen.values()))
        if 100 * left <= self.limit + self.around:
            return ""
        better = [(i.name, o) for i in items for o in i.options if o.damage < chosen[i.name].damage]
        share = f"{100 * left / (self.limit + self.around):.1f} % is left"
        if not better:
            return f" ({share}: every weight is the best that the menu has)"
        more, name = min((price(o) - price(chosen[name]), name) for name, o in better)
        step = f"{more / 1e6:.3g} ms" if self.budget.unit == "time" else f"{more:,} bytes"
        return f" ({share}: the next step up, {name}, takes {step} more)"

    def _written(self, spent: int) -> str:
        """The budget that just covers so much and what is around it, rounded up."""
        if self.budget.unit == "bits":
            return f"{math.ceil(8000 * spent / self.weights) / 1000}bpw"
        if self.budget.unit == "time":
            return f"{math.ceil((spent + self.around) / 1e3) / 1e3:.3f}ms/token"
        return f"{math.ceil((spent + self.around) / 1e3) / 1e3:.3f}MB"


def no_time(site: Site, encoding: Encoding | None) -> int:
    """Where none is asked."""
    return 0


def bytes_around(program: Program, found: Sequence[Site], target: Target | None) -> int:
    """Bytes of the file that are not allocated: other weights, and about what the graph takes."""
    names = {s.name for s in found}
    others = sum(w.nbytes for n, w in program.weights.items() if n not in names)
    return others + (target.operator_bytes * len(list(program.nodes())) if target else 0)
