"""Rotations that are learned, loaded and taken up again: what they are worth, the bytes they give, what they refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from architectures import captured
from flowkit import Plain, kit_session
from safetensors.torch import save_file

from drawplate.analysis.rotations import plan
from drawplate.api import compile as compile_
from drawplate.artifact import Artifact
from drawplate.cache import keys
from drawplate.calibration import Calibration
from drawplate.capture import Assets, Captured
from drawplate.digest import program_digest
from drawplate.encoding import fake_quantize_dynamic, per_token
from drawplate.errors import DrawplateError, RecipeError
from drawplate.learning.descent import drawn, refuse_divergence
from drawplate.learning.endtoend import Descent, learn_end_to_end
from drawplate.learning.layerwise import Settings, learn_layerwise
from drawplate.learning.network import Rounding
from drawplate.learning.orthogonal import TOLERANCE, departure
from drawplate.learning.rows import gather
from drawplate.learning.state import Aside
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.rotate import Rotate
from drawplate.program import Program, rounded
from drawplate.recipe import Recipe
from drawplate.rehearsal import rehearse
from drawplate.runner import run_passes
from drawplate.testing import check_pass
from drawplate.turning import fixed_matrices

WHIP = Rotate(kind="whip", steps=12, batch=64)
CAYLEY = Rotate(kind="cayley", steps=6, group=(1, 16), activations=4)


def text(length: int = 32, count: int = 8) -> Calibration:
    """Tokens of which few are frequent, as in any language."""
    generator = torch.Generator().manual_seed(1)
    tokens = (torch.rand(count, length, generator=generator) ** 3 * 97).long()
    return Calibration.of(tokens, "some text")


def folded(kind: str = "llama") -> Program:
    return rounded(FoldNorms().run(captured(kind), Env()))


def learned(pass_: Rotate, program: Program | None = None, **env: object):
    return run_passes(program or folded(), [pass_], Env(calibration=text(), **env))  # type: ignore[arg-type]


@pytest.mark.parametrize("pass_", [WHIP, replace(WHIP, kind="kurtosis"), CAYLEY], ids=lambda p: p.kind)
def test_it_keeps_every_promise_and_gives_the_same_bytes_again(pass_):
    outcome = check_pass(pass_, folded(), env=Env(calibration=text()))
    assert [c.invariant for c in outcome.certificates] == ["SIGNATURE", "SAME_FUNCTION", "AS_DEPLOYED"]


@pytest.mark.parametrize("kind", ["whip", "kurtosis"])
def test_layer_by_layer_it_lessens_the_error_of_rounded_activations(kind):
    program, env, windows = folded(), Env(), text().windows
    found = plan(program)
    start, _ = fixed_matrices(found, "hadamard", 0)
    rows = gather(program, found.rotations, windows, env)
    made = learn_layerwise(program, found, start, windows, Settings(kind, 60, 1e-2, 4096, 2048), Aside(None, ""), env)
    for key in (r.key for r in found.rotations if r.kind == "r1"):
        before, after = (_error(rows[key] @ m[key].float()) for m in (start, made))
        assert after < 0.97 * before


def _error(x: torch.Tensor) -> float:
    return float((fake_quantize_dynamic(x, per_token(4)) - x).square().mean())


def test_cayley_lessens_the_distance_to_the_original_and_shows_it():
    """Where one channel is far larger than the others, as in real models, and nothing is turned to begin with."""
    program = folded()
    table = program.weights["model.embed_tokens.weight"].clone()
    table[:, 3] *= 30
    program = replace(program, weights=MappingProxyType({**program.weights, "model.embed_tokens.weight": table}))
    found, told = plan(program), []

    def progress(items, label):
        for item in items:
            yield item
            told.append(label())

    start = {r.key: torch.eye(r.width, dtype=torch.float64).repeat(r.count, 1, 1) for r in found.rotations}
    rounding, settings = Rounding(None, per_token(3)), Descent(steps=30, rate=0.3, tokens=4096, batch=1)
    windows = text(count=1).windows
    made = learn_end_to_end(program, found, start, windows, rounding, settings, Aside(None, ""), Env(progress=progress))
    losses = [float(t.removeprefix("rotate, cayley, loss ").partition(",")[0]) for t in told]
    assert len(losses) == 30
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]
    assert all(departure(m) <= TOLERANCE for m in made.values())


def test_sixteen_bits_are_not_rounded():
    assert Rotate(kind="cayley", weights=16).rounding.weights is None
    assert Rotate(kind="cayley", activations=16).rounding.activations is None


def test_a_step_sees_each_window_before_any_again():
    seen = [i for step in range(4) for i in drawn(6, 3, 0, step)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_the_matrices_are_kept_and_loading_them_gives_the_same_bytes(tmp_path):
    for pass_ in (WHIP, CAYLEY):
        first = learned(pass_)
        (record,) = first.records
        assert record.name == "rotations"
        assert sorted(record.tensors) == sorted(r.key for r in plan(folded()).rotations)
        save_file(dict(record.tensors), tmp_path / "r.safetensors")
        again = run_passes(folded(), [Rotate(kind="load", path=tmp_path / "r.safetensors")], Env())
        assert program_digest(again.program) == program_digest(first.program)
        assert program_digest(first.program) != program_digest(learned(Rotate()).program)


def test_the_artifact_has_them_and_accounts_for_them(tmp_path):
    session = kit_session()
    recipe = Recipe.of([FoldNorms(), WHIP], Plain())
    options = {"session": session, "calibration": text(), "cache": tmp_path / "cache"}
    model = Captured(captured("llama"), Assets())
    artifact = compile_(model, recipe, out=tmp_path / "out", **options)
    file = tmp_path / "out" / "rotations.safetensors"
    assert [(r.role, r.bytes) for r in artifact.manifest.bytes if r.file == file.name] == [
        ("asset", file.stat().st_size)
    ]
    assert Artifact.load(tmp_path / "out").damage() == []
    again = compile_(model, recipe, out=tmp_path / "again", **options)  # from the cache, where it was kept
    assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    assert again.manifest == artifact.manifest
    loaded = Recipe.of([FoldNorms(), Rotate(kind="load", path=file)], Plain())
    compile_(model, loaded, out=tmp_path / "loaded", session=session, cache=False)
    for name in ("weights.bin", file.name):
        assert (tmp_path / "loaded" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_cache_tells_files_apart_by_their_contents(tmp_path):
    file = tmp_path / "r.safetensors"
    found = []
    for value in (1.0, 2.0):
        save_file({"x": torch.tensor([value])}, file)
        found += keys(folded(), [Rotate(kind="load", path=file)], Env())
    assert len(set(found)) == 2


def test_without_a_text_it_says_how_to_give_one():
    with pytest.raises(DrawplateError) as error:
        run_passes(folded(), [Rotate(kind="whip")], Env())
    assert str(error.value) == (
        "pass 'rotate{kind=whip}' cannot be done: kind=whip learns from a text, and there is none\n"
        "  why:   rotations are learned on what the model's activations look like\n"
        "  do:    give one: --calibration FILE (in Python, calibration=load_text(..)), or use kind=hadamard"
    )


def test_a_loss_that_is_no_number_is_told():
    refuse_divergence(1.0, 7, 0.1)
    with pytest.raises(DrawplateError) as error:
        refuse_divergence(float("nan"), 7, 0.1)
    assert str(error.value) == (
        "the loss became nan at step 7\n"
        "  why:   a learning rate of 0.1 is too large, or activations of this model are infinite\n"
        "  do:    learn slower: rate=0.025"
    )


@pytest.mark.parametrize("kind", ["whip", "cayley"])
def test_a_rehearsal_learns_nothing(kind):
    rehearsal = rehearse(folded(), [Rotate(kind=kind)], Env())  # type: ignore[arg-type]
    assert rehearsal.notes == ()
    assert rehearsal.program is not None
    real = learned(replace(WHIP, steps=1)).program
    assert str(rehearsal.program) == str(real)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("kind=load", "path is the file of kind=load: give both or neither"),
        ("path=r.safetensors", "path is the file of kind=load: give both or neither"),
        ("kind=whip,steps=0", "steps=0 is not above 0"),
        ("steps=5", "steps=5 is of learning, and kind=hadamard learns nothing"),
        ("maps=-1", "maps=-1 is below 0"),
        ("r4=true,block=-4", "block=-4 is below 0"),
        ("kind=cayley,weights=1", "weights=1 is not 2 to 16 bits"),
    ],
)
def test_options_that_cannot_be_are_refused(options, why):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(f"rotate{{{options}}}", kit_session())
    assert error.value.why == why


def test_options_are_written_as_they_are_read():
    written = "rotate{kind=cayley,steps=9,rate=0.5,tokens=4096,batch=2,weights=3,group=1x64,activations=16}"
    assert str(Recipe.parse(written, kit_session())).startswith(written)


def refused(tensors: dict[str, torch.Tensor] | bytes, folder: Path) -> DrawplateError:
    path = folder / "r.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    with pytest.raises(DrawplateError) as error:
        run_passes(folded(), [Rotate(kind="load", path=path)], Env())
    assert error.value.where == str(path)
    return error.value


def test_matrices_that_do_not_fit_are_refused_with_all_the_reasons(tmp_path):
    good = dict(learned(replace(WHIP, steps=1)).records[0].tensors)
    r1, first, second = good
    bad = {
        r1: good[r1] * 1.001,
        first: good[first][:, :4, :4].contiguous(),
        "r2.of_another": good[second],
    }
    error = refused(bad, tmp_path)
    assert "the matrices do not fit the program" in error.what
    assert error.why.splitlines() == [
        f"{r1} is not orthogonal: R R^T is 0.002 off, and 1e-05 is allowed",
        f"{first} has shape [2, 4, 4], not [2, 8, 8]",
        f"there is no {second}",
        "r2.of_another is no rotation of this program",
    ]
    assert error.fix == "learn them on this model, with the same r1 and r2"
    nan = {**good, r1: good[r1] * float("nan")}
    assert "R R^T is nan off" in refused(nan, tmp_path).why
    assert "int64, not floating point" in refused({**good, r1: good[r1].long()}, tmp_path).why


def test_a_file_that_is_none_is_refused(tmp_path):
    error = refused(b"no matrices", tmp_path)
    assert "the matrices cannot be read" in error.what
    assert error.fix == "give the rotations.safetensors of an artifact that was compiled with a learned kind"
    (tmp_path / "r.safetensors").unlink()
    with pytest.raises(DrawplateError, match="there is no such file"):
        run_passes(folded(), [Rotate(kind="load", path=tmp_path / "r.safetensors")], Env())


def test_a_text_cannot_run_through_a_program_without_tokens():
    from passkit import WIDTHS

    from drawplate.text import parse_program

    chain = WIDTHS.replace("%3 = aten.add.Tensor(%x, %2)", "%3 = aten.linear(%2, @first)")
    program = parse_program(chain)
    with pytest.raises(DrawplateError) as error:
        list(gather(program, plan(program).rotations, text().windows, Env()))
    assert error.value.what == f"no text can be run through {program.name}"
    assert error.value.why == "its inputs are x"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_rotate_learned import CAYLEY, WHIP, folded, text
from dataclasses import replace
from drawplate.passbase import Env
from drawplate.runner import run_passes

pass_ = replace({name}, steps=120 if {name} is WHIP else 12)

def progress(items, label):
    for item in items:
        if callable(label) and {kill} and item == {kill}:
            os.kill(os.getpid(), signal.SIGKILL)
        if callable(label):
            print(item, flush=True)
        yield item

folder = Path({folder!r})
folder.mkdir(exist_ok=True)
outcome = run_passes(folded(), [pass_], Env(calibration=text(), progress=progress, checkpoints=folder))
from drawplate.digest import program_digest
print(program_digest(outcome.program))
"""


def run_killed(name: str, kill: int, folder: Path) -> subprocess.CompletedProcess[str]:
    code = KILLED.format(
        tests=[str(folder) for folder in Path(__file__).parents[:2]], name=name, kill=kill, folder=str(folder)
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kill", "saved"), [("WHIP", 70, 50), ("CAYLEY", 8, 5)])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(name, kill, saved, tmp_path):
    whole = run_killed(name, 0, tmp_path / "whole").stdout.split()
    killed = run_killed(name, kill, tmp_path / "cache")
    assert killed.returncode == -signal.SIGKILL
    resumed = run_killed(name, 0, tmp_path / "cache").stdout.split()
    assert resumed[-1] == whole[-1]
    # What was put aside is taken up: only the steps behind it are done again, of the sizes that had begun.
    assert str(saved) in resumed
    assert len(resumed) < len(whole)
    assert str(saved - 1) not in resumed[: resumed.index(str(saved))]
