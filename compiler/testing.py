"""The test kit for authors of passes and backends; drawplate's own tests use it.

    def test_it():
        check_pass(FoldScales(), PROGRAM)                     # every promise of the pass, and then some
        check_backend(MyBackend(), PROGRAM, tmp_path)         # every byte accounted for; runs as the program does
        check_golden(Path("golden/fold-scales/one.txt"), session)

A program may be given as text (see drawplate.text); weights of a text that say `= seed(3)` have contents.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drawplate.digest import tensors_of
from drawplate.errors import DrawplateError, RuntimeMissing
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.runner import Outcome, run_passes
from drawplate.text import differences, parse_program

if TYPE_CHECKING:
    from drawplate.backendbase import Backend, Emission
    from drawplate.recipe import Registry
    from drawplate.runtime import Runnable
    from drawplate.sources.source import Assets

SEPARATOR = "-----"


def check_pass(pass_: Pass, program: str | Program, *, seed: int = 0, env: Env | None = None) -> Outcome:
    """Run the pass as the runner does, twice, and hold it to everything that a pass owes.

    The runner looks at facts, invariants and legality; here also: the input is untouched to the last byte, two runs
    give the same bytes and the same refusals, and what comes out can be written as text and read back.
    env: what the pass may use besides (calibration, target); its seed is `seed`. Raises AssertionError, all reasons.
    """
    source = parse_program(program) if isinstance(program, str) else program
    text, contents = str(source), _contents(source)
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(run_passes(source, [pass_], replace(env or Env(), seed=seed, refusals=[])))
        except DrawplateError as error:
            raise AssertionError(str(error)) from error
    first, second = outcomes
    reasons = []
    if str(source) != text or _contents(source) != contents:
        reasons.append("it changed the program that it was given")
    reasons += [f"two runs differ: {d}" for d in differences(first.program, second.program)]
    if _contents(first.program) != _contents(second.program):
        reasons.append(f"two runs differ in {_names(_contents(first.program), _contents(second.program))}")
    if first.refusals != second.refusals:
        reasons.append("two runs refuse different things")
    reasons += text_reasons(first.program)
    _hold(f"pass {pass_.name!r}", reasons)
    return first


def text_reasons(program: Program) -> list[str]:
    """Why the program's text does not read back as the program; none if it does."""
    text = str(program)
    try:
        again = parse_program(text)
    except DrawplateError as error:
        return [f"its text does not parse: {error}"]
    reasons = [f"read back from its text it differs: {d}" for d in differences(program, again)]
    return reasons if reasons or str(again) == text else ["printed again, its text is another"]


def check_backend(
    backend: Backend,
    program: str | Program,
    folder: Path,
    *,
    assets: Assets | None = None,
    prompts: Sequence[Sequence[int]] = ((1, 2, 3, 4, 5), (5, 3)),
    tolerance: float = 1e-3,
) -> Emission:
    """Take a program through the backend as a compile does, and hold it to its account.

    Its own passes run under the runner; check() has no objection and takes nothing away; emit() twice gives the same
    bytes; the files are the ones listed, and the byte rows of each add up to its size and name every weight. Where a
    runtime exists, its logits on the prompts (token ids) differ from the program's by at most `tolerance`: the median
    over positions of the relative error. folder: an empty one. Raises AssertionError with all the reasons.
    """
    from drawplate.sources.source import Assets

    source = parse_program(program) if isinstance(program, str) else program
    try:
        legal = run_passes(source, backend.legalise(), Env(target=backend.target)).program
        text, contents = str(legal), _contents(legal)
        _hold(f"backend {backend.name!r} refuses", [str(r) for r in backend.refusals(legal, assets)])
        emissions = []
        for name in ("artifact", "again"):
            (folder / name).mkdir()
            emissions.append(backend.emit(legal, folder / name, assets or Assets()))
    except DrawplateError as error:
        raise AssertionError(str(error)) from error
    reasons = byte_reasons(emissions[0], folder / "artifact", legal)
    if str(legal) != text or _contents(legal) != contents:
        reasons.append("it changed the program that it was given")
    if changed := _names(_files(folder / "artifact"), _files(folder / "again")):
        reasons.append(f"two emissions differ in {changed}")
    reasons += _parity_reasons(backend, legal, folder / "artifact", prompts, tolerance)
    _hold(f"backend {backend.name!r}", reasons)
    return emissions[0]


def byte_reasons(emission: Emission, folder: Path, program: Program) -> list[str]:
    """Why the byte table is not that of the files; none if it is, exactly."""
    reasons = []
    listed = {f.relative_to(folder).as_posix() if f.is_absolute() else f.as_posix() for f in emission.files}
    there = _files(folder)
    reasons += [f"{name} is there and not listed" for name in sorted(there.keys() - listed)]
    reasons += [f"{name} is listed and not there" for name in sorted(listed - there.keys())]
    sums: Counter[str] = Counter()
    for row in emission.bytes:
        if row.bytes < 0:
            reasons.append(f"the row '{row.name}' has {row.bytes} bytes")
        if (row.role == "state") != (row.file == ""):
            reasons.append(f"the row '{row.name}' of role {row.role} is in file '{row.file}'")
        if row.file:
            sums[row.file] += row.bytes
    for name in sorted({*sums, *there}):
        size = len(there.get(name, b""))
        if sums[name] != size:
            reasons.append(f"the rows of {name} add up to {sums[name]} bytes, it has {size}")
    named = {row.name for row in emission.bytes}
    reasons += [f"no row is of weight {name}" for name in program.weights if name not in named]
    return reasons


def _parity_reasons(
    backend: Backend, program: Program, folder: Path, prompts: Sequence[Sequence[int]], tolerance: float
) -> list[str]:
    """Where the runtime computes something else than the program. None where this host has no runtime."""
    from drawplate.parity import distance
    from drawplate.runtime import ProgramRunner

    try:
        theirs = backend.open(folder)
    except RuntimeMissing:
        return []
    ours = ProgramRunner(program)
    reasons = []
    for way, whole in (("token by token", False), ("fed a prompt at once", True)):
        pairs = []
        for prompt in prompts:
            given, wanted = (_fed(runnable, prompt, whole) for runnable in (theirs, ours))
            last = min(len(given), len(wanted))  # either may give the last position only
            pairs.append((given[-last:], wanted[-last:]))
        error = distance(pairs).relative_median
        if not error <= tolerance:
            what = f"its logits differ from the program's by {error:.3g} (median), more than {tolerance:g}"
            reasons.append(f"{way}, {what}")
    return reasons


def _fed(runnable: Runnable, prompt: Sequence[int], whole: bool) -> Tensor:
    """Logits [m, vocab] of the prompt, fed at once or token by token."""
    runnable.reset()
    ids = torch.tensor(prompt, dtype=torch.int64)
    return runnable.step(ids).clone() if whole else torch.cat([runnable.step(i).clone() for i in ids.split(1)])


# Golden files: text, compared to the letter. The sections are divided by a line `-----`; the last is what should come.


def read_golden(path: Path) -> list[str]:
    """The sections of a golden file, without the line ends around them."""
    return [part.strip("\n") for part in path.read_text("utf-8").split(f"\n{SEPARATOR}\n")]


def compare_golden(path: Path, actual: str, *, update: bool = False) -> None:
    """Hold `actual` against the last section of the file. Raises AssertionError with a diff.

    update: write it there first; the comparison still fails, so that nobody updates without looking.
    """
    *given, expected = read_golden(path)
    if actual.strip("\n") == expected:
        return
    if update:
        path.write_text(f"\n{SEPARATOR}\n".join([*given, actual.strip("\n")]) + "\n", "utf-8")
    lines = difflib.unified_diff(
        expected.splitlines(), actual.strip("\n").splitlines(), "expected", "actual", lineterm=""
    )
    verb = "was rewritten: look at the change, and run again" if update else "is not what came"
    raise AssertionError("\n".join([f"{path} {verb}", *lines]))


def check_golden(path: Path, registry: Registry, *, update: bool = False) -> None:
    """A golden file of three sections: a program, the passes of a recipe, and what comes out.

    Each pass goes through check_pass, so the file is a differential test as well. What comes out is the program's
    text and a comment per refusal, or the text of the error.
    """
    from drawplate.recipe import Recipe

    text, recipe_text, _ = read_golden(path)
    recipe = Recipe.parse(recipe_text, registry)
    program = parse_program(text)
    refusals = []
    try:
        for pass_ in recipe.passes:
            outcome = check_pass(pass_, program, seed=recipe.seed)
            program = outcome.program
            refusals += [f"// refused: {refusal}" for refusal in outcome.refusals]
    except AssertionError as error:
        if not isinstance(error.__cause__, DrawplateError):
            raise
        compare_golden(path, str(error), update=update)
        return
    compare_golden(path, "\n".join([str(program), *refusals]), update=update)


def _contents(program: Program) -> dict[str, tuple[bytes, ...]]:
    """The bytes of every weight that has contents."""
    found = {}
    for name, weight in program.weights.items():
        tensors = [t.detach().cpu().contiguous() for t in tensors_of(weight) if not t.is_meta]
        found[name] = tuple(t.reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    return found


def _files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def _names(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    """The names under which two mappings hold different things."""
    return ", ".join(sorted(name for name in {*a, *b} if a.get(name) != b.get(name)))


def _hold(what: str, reasons: Sequence[str]) -> None:
    if reasons:
        raise AssertionError(f"{what}:\n" + "\n".join(f"  - {reason}" for reason in reasons))
