"""The harm that is expected of weights: of the codes that an artifact has, and of what it could have instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drawplate.analysis.moves import Moves, moves
from drawplate.analysis.sites import Site
from drawplate.calibration import Calibration
from drawplate.costs import of_windows, own_labels
from drawplate.encoding import Encoding
from drawplate.explain.twins import Twins
from drawplate.menu import Menus
from drawplate.passbase import Env, Progress
from drawplate.quantising import Method, candidates


@dataclass(frozen=True)
class Harm:
    """In nats per token, of single weights and of groups. rounded: the encodings that each weight was rounded to, in
    the order of its candidates behind the stored one."""

    moves: Moves
    rounded: Mapping[str, Sequence[Encoding]]

    def stored(self, name: str) -> float:
        """Of the codes that the artifact has."""
        return self.moves.damage({name: 0})

    def __call__(self, group: Sequence[Site], encoding: Encoding) -> float:
        """Of weights rounded to an encoding; the one that they have is rated so too, whatever found its codes."""
        return self.moves.damage({site.name: 1 + self.rounded[site.name].index(encoding) for site in group})


def expect(known: Twins, menus: Menus, text: Calibration, progress: Progress) -> Harm:
    """Measure it. menus: what else each weight could be; none for those that nothing is offered."""
    env, stored = Env(progress=progress), known.stored.encodings
    names = [n for n in known.weights if n in known.floating.weights]
    rounded = {n: [*dict.fromkeys(e for e in (*menus[n], stored[n]) if e is not None)] for n in names if n in menus}
    others = candidates(known.floating, rounded, Method(range=known.range), env, "explain")
    weights: Mapping[str, Any] = known.stored.weights
    every = {name: [weights[name], *others.get(name, ())] for name in names}
    samples = of_windows(known.floating, text.windows, own_labels(0))
    return Harm(moves(known.floating, every, samples, env), rounded)
