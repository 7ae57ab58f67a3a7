"""What trainings say while they run: every step once, whether or not they were killed, and nothing of it decides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from architectures import captured
from test_blockap import PASS as BLOCKS
from test_training import PASS as SCALES
from test_training import TEXT, stored

from drawplate.cache import keys
from drawplate.digest import weights_digest
from drawplate.errors import OutputError
from drawplate.metrics import FILE, Metrics, metrics_folder
from drawplate.passbase import Env, Pass
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.rotate import Rotate
from drawplate.runner import run_passes


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def places(folder: Path) -> list[tuple[str, int, bool]]:
    return [(line["part"], line["step"], "held" in line) for line in lines(folder)]


def killed_after(count: int) -> Any:
    def progress(items: Iterable[Any], label: Any) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i == count:
                raise KeyboardInterrupt
            yield item

    return progress


def test_every_step_is_a_line_and_so_is_every_look(tmp_path: Path) -> None:
    env = Env(calibration=TEXT, original=captured("llama"), metrics=tmp_path)
    replace(SCALES, epochs=2, held=1).run(stored(), env)
    (record,) = env.records
    found = lines(tmp_path)
    steps = [line for line in found if "loss" in line]
    assert [line["loss"] for line in steps] == record.data["losses"]
    assert [[line["step"], line["held"]] for line in found if "held" in line] == [list(x) for x in record.data["held"]]
    rates = [line["rate"] for line in steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(SCALES.rate)
    seconds = [line["seconds"] for line in found]
    assert seconds == sorted(seconds)
    assert {line["pass"] for line in found} == {"train-scales"}


@pytest.mark.parametrize(
    ("pass_", "program", "kill"),
    [(replace(SCALES, epochs=6, held=1), stored, 13), (BLOCKS, lambda: captured("llama"), 22)],
    ids=["end to end", "by block"],
)
def test_a_run_that_goes_on_takes_no_step_twice(pass_: Pass, program: Any, kill: int, tmp_path: Path) -> None:
    killed, whole, aside = (tmp_path / name for name in ("killed", "whole", "aside"))
    for folder in (killed, whole, aside):
        folder.mkdir()
    env = Env(calibration=TEXT, original=captured("llama"), checkpoints=aside, metrics=killed)
    with pytest.raises(KeyboardInterrupt):
        pass_.run(program(), replace(env, progress=killed_after(kill)))
    with (killed / FILE).open("a") as file:
        file.write('{"pass": "train-sc')  # what a kill in the middle of a line leaves
    pass_.run(program(), env)
    pass_.run(program(), Env(calibration=TEXT, original=captured("llama"), metrics=whole))
    assert places(killed) == places(whole)
    seconds = [line["seconds"] for line in lines(killed)]
    assert seconds == sorted(seconds)


def test_runs_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    one, two = Metrics(tmp_path, "p", "one"), Metrics(tmp_path, "p", "two")
    one.write("", 0, loss=1.0)
    two.write("", 0, loss=2.0)
    Metrics(tmp_path, "p", "one").write("", 0, loss=3.0)
    assert [(line["run"], line["loss"]) for line in lines(tmp_path)] == [("two", 2.0), ("one", 3.0)]


@pytest.mark.parametrize("kind", ["whip", "cayley"])
def test_learned_rotations_say_it_too(kind: Any, tmp_path: Path) -> None:
    pass_ = Rotate(kind=kind, steps=2, tokens=24)
    run_passes(captured("llama"), [FoldNorms(), pass_], Env(calibration=TEXT, metrics=tmp_path))
    assert {line["step"] for line in lines(tmp_path)} == {0, 1}


def test_nothing_of_it_decides_the_result(tmp_path: Path) -> None:
    program, passes = captured("llama"), [replace(BLOCKS, epochs=1)]
    loud, quiet = (Env(calibration=TEXT, metrics=metrics) for metrics in (tmp_path, None))
    assert keys(program, passes, loud) == keys(program, passes, quiet)
    digests = {weights_digest(run_passes(program, passes, env).program) for env in (loud, quiet)}
    assert len(digests) == 1


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the folder for metrics cannot be made"):
        metrics_folder(tmp_path / "file" / "below")


def test_tensorboard_shows_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run, first in ((0, 0), (1, 3)):  # the second goes on behind the third step
        metrics = Metrics(tmp_path, "p", "run")
        for step in range(first, 5):
            metrics.write("block", step, loss=run + step / 10)
    events = EventAccumulator(str(tmp_path / "p-run" / "block")).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("loss")] == [
        (0, 0.0), (1, 0.1), (2, 0.2), (3, 1.3), (4, 1.4),
    ]  # fmt: skip
