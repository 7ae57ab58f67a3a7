"""Is this what the artifact was made from? Its model, its text, and the weights that its passes give now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from drawplate.backendbase import encoding_of
from drawplate.digest import program_digest, weights_digest
from drawplate.errors import EvaluationError
from drawplate.program import Program
from drawplate.versions import versions

if TYPE_CHECKING:
    from drawplate.artifact import Manifest
    from drawplate.calibration import Calibration

SHOWN = 3  # weights that differ, in a message


def refuse_other_model(manifest: Manifest, original: Program) -> None:
    """Raises EvaluationError."""
    if program_digest(original) != manifest.source_digest:
        raise EvaluationError(
            "this is not the model that the artifact was made from",
            where=original.name,
            why=f"the digest of its graph and weights is not {manifest.source_digest}",
            fix="give --model the folder that was compiled, as it was; or compile it again",
        )


def refuse_other_text(manifest: Manifest, calibration: Calibration | None) -> None:
    """Nor one that is missing or superfluous: some passes do without, and do something else then. Raises
    EvaluationError."""
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


def refuse_other_weights(manifest: Manifest, again: Program) -> None:
    """again: the program after all passes, run now. Raises EvaluationError with what differs from the artifact."""
    if manifest.weights_digest == weights_digest(again):
        return
    differing = list(_differing(manifest, again))
    if not differing and not manifest.weights_digest:
        return
    more = [f"and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    what = differing[:SHOWN] + more or ["every weight is stored in the same encoding, and contents differ"]
    raise EvaluationError(
        "the recipe now gives other weights than those in the artifact",
        where=f"recipe {manifest.recipe}",
        why="\n".join([*what, *_made_with(manifest)]),
        fix="put back what the recipe reads, such as its files, as it was when compiled; or compile it again",
    )


def other_versions(manifest: Manifest) -> tuple[str, ...]:
    """What may make the weights computed now other than the artifact's, if it is not known that they are the same."""
    if manifest.weights_digest:
        return ()
    return tuple(
        f"{made}: the weights computed again may differ from those in the artifact" for made in _made_with(manifest)
    )


def _differing(manifest: Manifest, again: Program) -> Iterator[str]:
    """In how they are stored, as far as the byte table knows it."""
    then = {row.name: row.encoding for row in manifest.bytes if row.role == "weight"}
    now = {name: encoding_of(weight) for name, weight in again.weights.items()}
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            yield f"{name}: {then.get(name, 'absent')} in the artifact, {now.get(name, 'absent')} now"


def _made_with(manifest: Manifest) -> list[str]:
    """Other versions of what computes weights, in one line."""
    then, now = manifest.versions, versions()
    other = [f"{n} {then[n]} (now {now[n]})" for n in ("drawplate", "torch") if then.get(n, now[n]) != now[n]]
    return [f"made with {', '.join(other)}"] if other else []
