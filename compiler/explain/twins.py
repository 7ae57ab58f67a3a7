"""The programs that an artifact is explained by: its recipe again, stopped where weights are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drawplate.api import on_whole_texts
from drawplate.digest import program_digest
from drawplate.errors import EvaluationError
from drawplate.invariants import ROUNDS, STORES
from drawplate.passbase import Env, Pass, Progress
from drawplate.program import Program
from drawplate.progress import quiet
from drawplate.recipe import Recipe, Registry
from drawplate.rehearsal import facts_that_hold
from drawplate.runner import Outcome, run_passes
from drawplate.schedule import schedule
from drawplate.versions import versions

if TYPE_CHECKING:
    from drawplate.artifact import Manifest
    from drawplate.cache import Cache
    from drawplate.calibration import Calibration
    from drawplate.target import Target


@dataclass(frozen=True)
class Twins:
    """original: the model, canonical. floating: after the passes that rewrite, before the first that rounds. stored:
    after the last that rounds, with the codes and scales that are in the artifact. They read whole texts.

    weights: names of those that are integers in `stored` and numbers under the same name in `floating`. notes: what is
    not as it was when the artifact was made, and what the passes say of their result.
    """

    original: Program
    floating: Program
    stored: Program
    target: Target | None
    weights: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
    Raises EvaluationError if this is another model or another text, or if no weight is stored as integers.
    """
    _refuse_other_model(manifest, original)
    _refuse_other_text(manifest, calibration)
    recipe = Recipe.parse(manifest.recipe, session)
    target = recipe.make_backend(session).target if recipe.backend else None
    for pass_ in recipe.passes:
        pass_.check_env(Env(recipe.seed, target, calibration))
    steps = schedule(recipe.passes, facts_that_hold(original, recipe.passes), recipe.pinned)
    before, storing = _cut(on_whole_texts(steps.order))

    def after(passes: Sequence[Pass]) -> Outcome:
        env = Env(recipe.seed, target, calibration, progress=progress)
        return run_passes(original, passes, env, cache)

    done, floating = after([*before, *storing]), after(before).program
    weights = _weights(manifest, floating, done.program)
    notes = (*_notes(manifest), *_left_out(done.program, weights), *done.told)
    return Twins(original, floating, done.program, target, weights, notes)


def _cut(passes: Sequence[Pass]) -> tuple[list[Pass], list[Pass]]:
    """What comes before the first pass that rounds, and from there to the last that does."""
    rounding = [i for i, p in enumerate(passes) if {ROUNDS, STORES} & set(p.promises)]
    if not rounding:
        return list(passes), []
    return list(passes[: rounding[0]]), list(passes[rounding[0] : rounding[-1] + 1])


def _refuse_other_model(manifest: Manifest, original: Program) -> None:
    if program_digest(original) != manifest.source_digest:
        raise EvaluationError(
            "this is not the model that the artifact was made from",
            where=original.name,
            why=f"the digest of its graph and weights is not {manifest.source_digest}",
            fix="give --model the folder that was compiled, as it was; or compile it again",
        )


def _refuse_other_text(manifest: Manifest, calibration: Calibration | None) -> None:
    """One that is missing or superfluous too: some passes do without a text, and do something else then."""
    then = manifest.calibration
    if calibration is None and then:
        raise EvaluationError(
            "the artifact was made with a calibration text, and none is given",
            where=f"recipe {manifest.recipe}",
            why=f"that was {then['source']}; without it passes may give other weights",
            fix="give the same --calibration and --calibration-tokens as the compile (in Python, calibration=..)",
        )
    if calibration is not None and not then:
        raise EvaluationError(
            "the artifact was made without a calibration text, and one is given",
            where=calibration.source,
            why="with it passes may give other weights",
            fix="leave --calibration out (in Python, calibration=None)",
        )
    if calibration is not None and calibration.digest != then["digest"]:
        raise EvaluationError(
            "this is not the calibration text that the artifact was made with",
            where=calibration.source,
            why=f"that was {then['source']}; the digests of the tokens differ",
            fix="give the same --calibration and --calibration-tokens as the compile",
        )


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


def _notes(manifest: Manifest) -> tuple[str, ...]:
    """What may make the codes computed now other than the artifact's."""
    then, now = manifest.versions, versions()
    other = [f"{n} {then[n]} (now {now[n]})" for n in ("drawplate", "torch") if then.get(n, now[n]) != now[n]]
    if not other:
        return ()
    return (f"made with {', '.join(other)}: the weights computed again may differ from those in the artifact",)


def _left_out(stored: Program, weights: Sequence[str]) -> tuple[str, ...]:
    """Stored weights of which it is not known what they were."""
    others = [name for name in stored.encodings if name not in weights]
    if not others:
        return ()
    return (f"not told apart: {len(others)} stored weights that the recipe renamed after its first rounding",)
