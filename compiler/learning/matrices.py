"""Learned matrices as a file: safetensors, one tensor [count, d, d] for each rotation, named by its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from drawplate.analysis.rotations import Plan, Rotation
from drawplate.errors import PassError
from drawplate.learning.orthogonal import TOLERANCE, departure, nearest_orthogonal


def stored(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they are kept: float32, half of what they take while they are learned."""
    return {key: m.float().contiguous() for key, m in matrices.items()}


def exact(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they are applied: float64, and orthogonal to its last digits again. What has just been learned goes this way
    too, so it gives the same bytes as what is loaded."""
    return {key: nearest_orthogonal(m) for key, m in kept.items()}


def load_matrices(path: Path, plan: Plan) -> dict[str, Tensor]:
    """The matrices in the file, for every rotation of the plan. Raises PassError with everything that does not fit."""
    if not path.is_file():
        fix = "give the rotations.safetensors of an artifact that was compiled with a learned kind"
        raise PassError("the matrices cannot be read", where=str(path), why="there is no such file", fix=fix)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        fix = "give the rotations.safetensors of an artifact that was compiled with a learned kind"
        raise PassError("the matrices cannot be read", where=str(path), why=why, fix=fix) from error
    wrong = list(_wrong(found, plan))
    if wrong:
        fix = "learn them on this model, with the same r1 and r2"
        raise PassError("the matrices do not fit the program", where=str(path), why="\n".join(wrong), fix=fix)
    return found


def _wrong(found: Mapping[str, Tensor], plan: Plan) -> Iterator[str]:
    wanted = {r.key: r for r in plan.rotations}
    for key, rotation in wanted.items():
        if key in found:
            yield from _wrong_matrix(found[key], rotation)
        else:
            yield f"there is no {key}"
    yield from (f"{key} is no rotation of this program" for key in found if key not in wanted)


def _wrong_matrix(m: Tensor, rotation: Rotation) -> Iterator[str]:
    shape = [rotation.count, rotation.width, rotation.width]
    if list(m.shape) != shape:
        yield f"{rotation.key} has shape {list(m.shape)}, not {shape}"
    elif not m.is_floating_point():
        yield f"{rotation.key} is {str(m.dtype).removeprefix('torch.')}, not floating point"
    elif not (error := departure(m)) <= TOLERANCE:  # nan is not, either
        yield f"{rotation.key} is not orthogonal: R R^T is {error:.2g} off, and {TOLERANCE:g} is allowed"
