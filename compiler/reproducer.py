"""A folder that shows a pass failing again: the program it was given, its options, and what it could see.

program.txt, program.json, weights.safetensors   the program that came in (see storing.py)
pass.json                                        the pass, seed, target, versions, and what happened
calibration.safetensors                          the token windows, if there were any
original/                                        the program before the first pass, if the pass learns from it
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from drawplate.digest import digest
from drawplate.encoding import QTensor
from drawplate.errors import DrawplateError
from drawplate.options import spec
from drawplate.passbase import Env, Pass
from drawplate.recipe import Recipe, Registry
from drawplate.storing import load_program, save_program, weight_bytes
from drawplate.text import print_program
from drawplate.textual.contents import seeded
from drawplate.versions import versions

if TYPE_CHECKING:
    from drawplate.program import Program
    from drawplate.target import Target

ORIGINAL = "original"
LIMIT_BYTES = 1 << 30  # of weights: a crash should not fill the disk


def write_reproducer(crashes: Path, program: Program, pass_: Pass, env: Env, happened: str) -> Path:
    """Write the folder, below `crashes`, and return it. One per pass and program: failing again replaces it.

    Weights of more than LIMIT_BYTES are left out; read_reproducer then makes some up from the seed.
    """
    text = print_program(program)
    folder = crashes / f"{pass_.name}-{digest(spec(pass_), text)[:8]}"
    shutil.rmtree(folder, ignore_errors=True)
    _save(program, folder)
    if pass_.reads_original and env.original is not None:
        _save(env.original, folder / ORIGINAL)
    about: dict[str, Any] = {"pass": spec(pass_), "seed": env.seed, "happened": happened, "versions": versions()}
    if env.target is not None:
        about["target"] = env.target.name
    if env.calibration is not None:
        about["calibration"] = {
            "source": env.calibration.source,
            "digest": env.calibration.digest,
            "questions": [asdict(q) for q in env.calibration.questions],
        }
        save_file({"windows": env.calibration.windows}, folder / "calibration.safetensors")
    (folder / "pass.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return folder


def read_reproducer(folder: Path, session: Registry) -> tuple[Program, Pass, Env]:
    """What the pass was given. Raises DrawplateError if the folder is not whole or the pass is not installed."""
    try:
        about = json.loads((folder / "pass.json").read_text(encoding="utf-8"))
        program = load_program(folder)
        original = load_program(folder / ORIGINAL) if (folder / ORIGINAL).is_dir() else None
    except (OSError, ValueError) as error:
        raise DrawplateError(
            "this is not a reproducer", where=str(folder), why=str(error), fix="give the folder that the error named"
        ) from error
    (pass_,) = Recipe.parse(about["pass"], session).passes
    seed, target = about["seed"], _target(about.get("target"), session)
    original = _with_contents(original, seed) if original else None
    env = Env(seed=seed, target=target, calibration=_calibration(folder, about), original=original)
    return _with_contents(program, seed), pass_, env


def _save(program: Program, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_program(program, folder, weights=weight_bytes(program) <= LIMIT_BYTES)


def _with_contents(program: Program, seed: int) -> Program:
    """Seeded contents for weights that were left out."""
    filled = {}
    for i, (name, w) in enumerate(program.weights.items()):
        inside = w.codes if isinstance(w, QTensor) else w
        kind = w.encoding if isinstance(w, QTensor) else w.dtype
        packed = isinstance(w, QTensor) and w.packed
        filled[name] = seeded(tuple(w.shape), kind, seed + i, packed=packed) if inside.is_meta else w
    return replace(program, weights=MappingProxyType(filled))


def _target(name: str | None, session: Registry) -> Target | None:
    if name is None:
        return None
    targets = {backend.target.name: backend.target for backend in session.backends.values()}
    if name not in targets:
        raise DrawplateError(f"no backend here has the target {name!r}", fix="install the plugin that brings it")
    return targets[name]


def _calibration(folder: Path, about: dict[str, Any]) -> Any:
    if "calibration" not in about:
        return None
    from drawplate.calibration import Calibration, Question

    text = about["calibration"]
    questions = tuple(Question.of(q) for q in text["questions"])
    windows = load_file(folder / "calibration.safetensors")["windows"]
    return Calibration(windows, text["source"], text["digest"], questions)
