"""The cache: what is kept, when it is found again, and what a damaged or half-finished entry does (nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import pytest
import torch
from flowkit import AddNoise, RoundWeights, ScaleWeights, mlp, plain

from drawplate.cache import ENTRY, Cache, keys
from drawplate.calibration import Calibration
from drawplate.digest import program_digest, tensor_digest
from drawplate.encoding import Encoding, Grid, QTensor, encode
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.runner import Outcome, run_passes
from drawplate.storing import load_program, save_program
from drawplate.text import print_program


def equal(p: Program, q: Program) -> bool:
    """The same text, lines of the model, and contents."""
    return program_digest(p) == program_digest(q) and [n.meta.get("source") for n in p.nodes()] == [
        n.meta.get("source") for n in q.nodes()
    ]


def entries(folder: Path) -> list[Path]:
    return [e.parent for e in folder.glob(f"*/{ENTRY}")]


def run(folder: Path, *passes: Pass, seed: int = 0, **options: float) -> Outcome:
    return run_passes(mlp(), passes, Env(seed=seed), cache=Cache(folder, **options))  # type: ignore[arg-type]


def test_a_slow_pass_runs_once(tmp_path: Path) -> None:
    noise = AddNoise(folder=tmp_path)
    first = run(tmp_path / "cache", ScaleWeights(), noise, ScaleWeights(), RoundWeights(skip=("up.weight",)))
    second = run(tmp_path / "cache", ScaleWeights(), noise, ScaleWeights(), RoundWeights(skip=("up.weight",)))
    assert (tmp_path / "runs").read_text() == "x"
    assert [t.resumed for t in first.timings] == [False] * 4
    assert [t.resumed for t in second.timings] == [True, True, False, False]
    assert equal(first.program, second.program)
    assert (first.certificates, first.refusals) == (second.certificates, second.refusals)


def test_quick_passes_are_not_kept_and_slow_ones_are(tmp_path: Path) -> None:
    run(tmp_path, ScaleWeights())
    assert entries(tmp_path) == []
    run(tmp_path, ScaleWeights(), slow_seconds=0.0)
    assert len(entries(tmp_path)) == 1


def test_a_result_that_is_quicker_computed_than_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drawplate.cache.WORTH_BYTES_PER_SECOND", 1)
    run(tmp_path, ScaleWeights(), slow_seconds=0.0)
    assert entries(tmp_path) == []


def test_refusals_of_a_resumed_pass_are_reported_again(tmp_path: Path) -> None:
    passes = ScaleWeights(), RoundWeights(skip=("up.weight",))
    run(tmp_path, *passes, slow_seconds=0.0)
    env = Env()
    outcome = run_passes(mlp(), passes, env, cache=Cache(tmp_path))
    assert [t.resumed for t in outcome.timings] == [True, True]
    assert [r.site for r in env.refusals] == ["up.weight"]
    assert isinstance(outcome.program.weights["down.weight"], QTensor)


def test_a_key_holds_everything_that_decides(tmp_path: Path) -> None:
    passes = (ScaleWeights(), RoundWeights())
    program = mlp()
    other = replace(program, weights=MappingProxyType({n: 2 * w for n, w in plain(program).items()}))
    calibrated = Env(calibration=Calibration.of(torch.zeros(1, 2), "zeros"))
    found = [
        keys(program, passes, Env()),
        keys(other, passes, Env()),
        keys(program, (ScaleWeights(by=2.0), RoundWeights()), Env()),
        keys(program, passes, Env(seed=1)),
        keys(program, passes, calibrated),
    ]
    assert len({key for pair in found for key in pair}) == 10
    assert keys(mlp(), passes, Env()) == found[0]
    assert keys(program, (ScaleWeights(), RoundWeights(bits=8)), Env())[0] == found[0][0]


def test_keys_are_the_same_in_another_process() -> None:
    code = (
        "from flowkit import *; from drawplate.cache import keys;"
        "print(*keys(mlp(), [ScaleWeights(), RoundWeights()], Env(seed=5)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == keys(mlp(), [ScaleWeights(), RoundWeights()], Env(seed=5))


def test_an_edit_of_the_code_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drawplate.cache import code_digest

    source = tmp_path / "edited_pass.py"
    source.write_text("# one\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("edited_pass")
    before = code_digest("edited_pass")
    source.write_text("# two\n")
    code_digest.cache_clear()
    assert code_digest("edited_pass") != before
    del sys.modules["edited_pass"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "garble"])
def test_a_damaged_entry_is_noted_and_computed_again(tmp_path: Path, damage: str) -> None:
    first = run(tmp_path, AddNoise())
    (entry,) = entries(tmp_path)
    weights = entry / "weights.safetensors"
    match damage:
        case "flip":
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.write_bytes(data)
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "remove":
            weights.unlink()
        case "garble":
            (entry / ENTRY).write_text("{")
    again = run(tmp_path, AddNoise())
    assert [t.resumed for t in again.timings] == [False]
    assert again.notes[0].startswith(f"cache entry {entry.name} was damaged and is computed again: ")
    assert equal(first.program, again.program)
    assert run(tmp_path, AddNoise()).timings[0].resumed


def test_a_cache_that_cannot_be_written_costs_a_note(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    outcome = run(tmp_path / "cache", AddNoise())
    assert len(outcome.program.weights) == 2
    assert outcome.notes[0].startswith("the result of 'add-noise' could not be kept: ")


def test_the_oldest_entries_make_room(tmp_path: Path) -> None:
    for seed in range(3):
        run(tmp_path, AddNoise(), seed=seed)
        time.sleep(0.02)
    assert len(entries(tmp_path)) == 3
    one = sum(f.stat().st_size for f in entries(tmp_path)[0].iterdir())
    run(tmp_path, AddNoise(), seed=0)  # used just now
    run(tmp_path, AddNoise(), seed=3, limit_bytes=int(2.5 * one))
    assert len(entries(tmp_path)) == 2
    assert run(tmp_path, AddNoise(), seed=0).timings[0].resumed
    assert run(tmp_path, AddNoise(), seed=3).timings[0].resumed


@dataclass(frozen=True)
class CountUp(Pass):
    """Puts its progress aside, block by block, and goes on there."""

    name: ClassVar[str] = "count-up"
    slow: ClassVar[bool] = True
    die_at: int | None = None

    def run(self, program: Program, env: Env) -> Program:
        assert env.checkpoints is not None
        for block in range(4):
            file = env.checkpoints / str(block)
            if block == self.die_at:
                raise KeyboardInterrupt
            if not file.exists():
                file.write_text("done")
        return program


def test_a_pass_finds_its_own_checkpoints_and_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, CountUp(die_at=2))
    assert sorted(f.name for f in tmp_path.glob("work/*/*")) == ["0", "1"]
    run(tmp_path, CountUp())
    assert sorted(f.parent.name for f in tmp_path.glob("work/*/*")) == [keys(mlp(), [CountUp(die_at=2)], Env())[0]] * 2


def test_a_killed_compile_goes_on_where_it_was(tmp_path: Path) -> None:
    """The second pass sleeps long enough to be killed in; the first is not run again."""
    code = f"""
from flowkit import *; from drawplate.cache import Cache; from drawplate.runner import run_passes
from pathlib import Path; import sys
folder = Path({str(tmp_path)!r})
slow = AddNoise(strength=0.2, sleep_seconds=float(sys.argv[1]))
run_passes(mlp(), [AddNoise(folder=folder), slow], Env(), cache=Cache(folder / "cache"))
print("done")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen([sys.executable, "-c", code, "60"], env=environment)
    deadline = time.monotonic() + 100
    while not entries(tmp_path / "cache") and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(entries(tmp_path / "cache")) == 1
    passes = [AddNoise(folder=tmp_path), AddNoise(strength=0.2, sleep_seconds=60.0)]
    resumed = Cache(tmp_path / "cache").open(mlp(), passes, Env()).resume()
    assert resumed[1] == 1
    assert (tmp_path / "runs").read_text() == "x"


def test_a_program_is_stored_in_full(tmp_path: Path) -> None:
    program = run_passes(mlp(), [ScaleWeights(), RoundWeights(kind="asym", skip=("up.weight",))], Env()).program
    for i, node in enumerate(program.nodes()):
        node.meta["source"] = f'model.py:{i}: `x + "1"`'
    save_program(program, tmp_path)
    again = load_program(tmp_path)
    assert equal(program, again)
    assert print_program(again) == print_program(program)
    assert again.facts == program.facts
    assert list(again.weights) == list(program.weights)


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    program = mlp()
    both = torch.arange(2 * 128 * 64, dtype=torch.float32)
    up, down = both[: 128 * 64].view(128, 64), both[128 * 64 :].view(64, 128)
    program = replace(program, weights=MappingProxyType({"up.weight": up, "down.weight": down}))
    save_program(program, tmp_path)
    assert equal(program, load_program(tmp_path))


def test_digests_see_contents_dtype_and_shape() -> None:
    x = torch.arange(8, dtype=torch.float32)
    assert tensor_digest(x) == tensor_digest(x.clone())
    others = [x + 1, x.view(2, 4), x.to(torch.float64), x.to(torch.bfloat16), x.to(torch.int8), x[::2], torch.zeros(())]
    assert len({tensor_digest(t) for t in [x, *others]}) == 8


def test_a_digest_is_taken_again_after_a_write() -> None:
    x = torch.zeros(4)
    before = tensor_digest(x)
    x[0] = 1
    assert tensor_digest(x) != before


def test_digests_tell_encodings_apart() -> None:
    q = encode(torch.randn(4, 32), Encoding(4, (1, 32)))
    other = QTensor(q.codes, Grid(q.grid.scale, q.grid.zero_point), Encoding(4, (1, 16)), q.shape)
    programs = [replace(mlp(), weights=MappingProxyType({"up.weight": w})) for w in (q, other)]
    assert program_digest(programs[0]) != program_digest(programs[1])


def test_entries_say_what_they_are(tmp_path: Path) -> None:
    run(tmp_path, AddNoise())
    (entry,) = entries(tmp_path)
    about = json.loads((entry / ENTRY).read_text())
    assert sorted(about["files"]) == ["program.json", "program.txt", "weights.safetensors"]
    assert about["timings"][0]["pass_name"] == "add-noise"
