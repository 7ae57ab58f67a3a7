"""How far a model that was trained on preferences has taken them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drawplate.aims import Pair, ahead
from drawplate.folding import without_adapters
from drawplate.program import Program
from drawplate.training import Network


@dataclass(frozen=True)
class Rewards:
    """Of pairs of answers. margin: the mean of how far the right answer's implicit reward is ahead of the wrong one's,
    in nats. accuracy: the share of pairs in which it is; where both are equal, half a pair."""

    margin: float
    accuracy: float


@dataclass(frozen=True)
class Preferences:
    """Before and after a training. pairs: how many. held: were they held back from it? beta: see aims.samples_for."""

    pairs: int
    held: bool
    beta: float
    before: Rewards
    after: Rewards

    def __str__(self) -> str:
        which = "held back" if self.held else "trained on"
        return (
            f"of {self.pairs} pairs {which}, the right answer's implicit reward is ahead in {self.after.accuracy:.0%} "
            f"(before: {self.before.accuracy:.0%}), by {self.after.margin:.3g} nats (before: {self.before.margin:.3g})"
        )

    @property
    def data(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self)


class Referee:
    """Gives implicit rewards, beta log(p / p_reference), of answers (Rafailov et al. 2023, arXiv:2305.18290, sec. 5.1).
    The reference is the same graph without adapters, so what an earlier training made of them counts too."""

    def __init__(self, program: Program, pairs: Sequence[Pair], beta: float) -> None:
        reference = Network(without_adapters(program), {})
        self._program, self._pairs, self._beta = program, pairs, beta
        self._before = [ahead(reference, program, pair) for pair in pairs]

    def rewards(self, network: Network) -> Rewards:
        """As the network is now."""
        now = [ahead(network, self._program, pair) for pair in self._pairs]
        margins = [self._beta * (a - b) for a, b in zip(now, self._before, strict=True)]
        won = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
        return Rewards(sum(margins) / len(margins), won / len(margins))
