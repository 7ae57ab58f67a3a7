"""The programs that an artifact is explained by: its recipe again, stopped around what changes the function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from drawplate.analysis.adapters import adapters
from drawplate.api import on_whole_texts
from drawplate.encoding import RangeMethod
from drawplate.errors import EvaluationError
from drawplate.explain.origin import other_versions, refuse_other_model, refuse_other_text, refuse_other_weights
from drawplate.folding import added
from drawplate.invariants import ROUNDS, SAME_FUNCTION, SAME_INTEGERS, STORES
from drawplate.passbase import Env, Pass, Progress
from drawplate.program import Program, Weight
from drawplate.progress import quiet
from drawplate.recipe import Recipe, Registry
from drawplate.rehearsal import facts_that_hold
from drawplate.runner import Outcome, run_passes
from drawplate.schedule import schedule

if TYPE_CHECKING:
    from drawplate.artifact import Manifest
    from drawplate.cache import Cache
    from drawplate.calibration import Calibration
    from drawplate.target import Target


@dataclass(frozen=True)
class Twins:
    """original: the model, canonical. floating: after the passes that rewrite, before the first that rounds. stored:
    after the last that changes the function, with the codes and scales that are in the artifact, and what was trained
    or folded behind the rounding. They read whole texts.

    weights: names of those that are integers in `stored` and numbers under the same name in `floating`. notes: what is
    not as it was when the artifact was made, and what the passes say of their result. range: how those
    that round find each block's range; mse if they do not agree.
    """

    original: Program
    floating: Program
    stored: Program
    target: Target | None
    weights: tuple[str, ...]
    notes: tuple[str, ...] = ()
    range: RangeMethod = "minmax"

    @property
    def restored(self) -> dict[str, Weight]:
        """What to put into `stored` in the place of each weight so that its linear gives what it gives in `floating`:
        the weight there, less what an adapter adds that stands beside it in `stored` alone."""
        found = {name: self.floating.weights[name] for name in self.weights}
        known = {adapter.base for adapter in adapters(self.floating)}
        for adapter in adapters(self.stored):
            if adapter.base in found and adapter.base not in known:
                whole: Any = found[adapter.base]
                found[adapter.base] = (whole - added(self.stored, adapter)).to(whole.dtype)
        return found


def twins(
    manifest: Manifest,
    original: Program,
    session: Registry,
    *,
    calibration: Calibration | None = None,
    progress: Progress = quiet,
    cache: Cache | None = None,
) -> Twins:
    """Run the artifact's passes again on the canonical program that it was made from.

    cache: where the slow results of the compile are found again. calibration: the text that the compile was given.
    Raises EvaluationError if this is another model or another text, if the passes now give other weights than those in
    the artifact, or if no weight is stored as integers.
    """
    refuse_other_model(manifest, original)
    refuse_other_text(manifest, calibration)
    recipe = Recipe.parse(manifest.recipe, session)
    backend = recipe.make_backend(session) if recipe.backend else None
    target = backend.target if backend else None
    for pass_ in recipe.passes:
        pass_.check_env(Env(recipe.seed, target, calibration))
    passes = (*recipe.passes, *(backend.legalise() if backend else ()))
    steps = schedule(passes, facts_that_hold(original, passes), recipe.pinned)
    before, storing = _cut(on_whole_texts(steps.order))

    def after(passes: Sequence[Pass]) -> Outcome:
        env = Env(recipe.seed, target, calibration, progress=progress)
        return run_passes(original, passes, env, cache)

    whole = after(steps.order)
    refuse_other_weights(manifest, whole.program)
    stored, floating = after([*before, *storing]).program, after(before).program
    weights = _weights(manifest, floating, stored)
    notes = (*other_versions(manifest), *_left_out(stored, weights), *whole.told)
    return Twins(original, floating, stored, target, weights, notes, _range(storing))


def _cut(passes: Sequence[Pass]) -> tuple[list[Pass], list[Pass]]:
    """What comes before the first pass that rounds, and from there to the last that changes the function."""
    rounding = [i for i, p in enumerate(passes) if {ROUNDS, STORES} & set(p.promises)]
    if not rounding:
        return list(passes), []
    changing = [i for i, p in enumerate(passes) if not {SAME_FUNCTION, SAME_INTEGERS} & set(p.promises)]
    return list(passes[: rounding[0]]), list(passes[rounding[0] : changing[-1] + 1])


def _range(storing: Sequence[Pass]) -> RangeMethod:
    found = {p.range for p in storing if getattr(p, "range", None) in get_args(RangeMethod)}  # type: ignore[attr-defined]
    return "mse" if "mse" in found else "minmax"


def _weights(manifest: Manifest, floating: Program, stored: Program) -> tuple[str, ...]:
    """Those to compare, in the order of the program."""
    names = list(stored.encodings)
    if not names:
        raise EvaluationError(
            "there is no weight to blame",
            where=f"recipe {manifest.recipe}",
            why="no weight of this artifact is stored as integers",
            fix="'drawplate eval' says how far it is from the original",
        )
    kept = [n for n in names if n in floating.weights and floating.weights[n].shape == stored.weights[n].shape]
    if not kept:
        raise EvaluationError(
            "the stored weights cannot be held against the original's",
            where=f"recipe {manifest.recipe}",
            why=f"between its roundings the recipe renames or reshapes them; the first is {names[0]}",
            fix="write passes such as merge-linears behind those that round",
        )
    return tuple(kept)


def _left_out(stored: Program, weights: Sequence[str]) -> tuple[str, ...]:
    """Stored weights of which it is not known what they were."""
    others = [name for name in stored.encodings if name not in weights]
    if not others:
        return ()
    return (f"not told apart: {len(others)} stored weights that the recipe renamed or added after its first rounding",)
