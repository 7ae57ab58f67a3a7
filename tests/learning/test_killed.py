"""Killed in the middle of putting something aside: what was whole before is taken up, and the bytes end the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import captured

from drawplate.calibration import Calibration
from drawplate.digest import program_digest
from drawplate.passbase import Env
from drawplate.passes.add_lora import AddLora
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.train_blocks import TrainBlocks
from drawplate.passes.train_lora import TrainLora
from drawplate.runner import run_passes

TEXT = Calibration.of(torch.randint(3, 97, (6, 12), generator=torch.Generator().manual_seed(1)), "random")
STORED = QuantizeWeights("body", 2, (1, 16), symmetric=False)
# The passes in front, the one that is killed, steps until its second file is written, and those done when the first is.
CASES: dict[str, tuple[list[Any], Any, int, int]] = {
    "train-lora": ([STORED, AddLora(4)], TrainLora(epochs=2, batch=1, held=0, rate=0.01), 10, 5),
    "train-blocks": ([], TrainBlocks(bits=2, block=(1, 16), epochs=1, batch=2, held=0), 6, 3),
}

KILLED = """
import sys
sys.path[:0] = {tests!r}
from pathlib import Path
from test_killed import die
die({name!r}, {how!r}, Path({folder!r}))
"""


def ran(name: str, folder: Path | None, step: Callable[[int], None] = lambda _: None) -> str:
    """The digest of what comes out. step: called with each step of the pass before it is done."""

    def progress(items: Iterable[Any], label: Any) -> Iterator[Any]:
        for i, item in enumerate(items):
            if callable(label):
                step(i)
            yield item

    before, killed, _, _ = CASES[name]
    made = run_passes(captured("llama"), before, Env(calibration=TEXT)).program
    env = Env(calibration=TEXT, checkpoints=folder, original=captured("llama"), progress=progress)
    return program_digest(run_passes(made, [killed], env).program)


def die(name: str, how: str, folder: Path) -> None:
    """Run until the second file is put aside, and be killed by the system where it would grow beyond half its size, or
    by a signal when it is written and has not its name yet."""

    def step(i: int) -> None:
        if i + 1 != CASES[name][2]:
            return
        (first,) = folder.glob("*.safetensors")
        if how == "written":
            limit_files(first.stat().st_size // 2)
        else:
            Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]

    ran(name, folder, step)


def limit_files(count: int) -> None:
    """Whoever makes a file longer than so many bytes is killed, and the file is not (setrlimit(2))."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("how", "by"), [("written", signal.SIGXFSZ), ("renamed", signal.SIGKILL)])
@pytest.mark.parametrize("name", list(CASES))
def test_killed_while_a_file_is_put_aside(name: str, how: str, by: signal.Signals, tmp_path: Path) -> None:
    tests = [str(folder) for folder in Path(__file__).parents[:2]]
    code = KILLED.format(tests=tests, name=name, how=how, folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -by
    (first,) = tmp_path.glob("*.safetensors")
    (left,) = (file for file in tmp_path.iterdir() if file != first)
    assert (left.stat().st_size < first.stat().st_size) == (how == "written")
    whole: list[int] = []
    resumed: list[int] = []
    assert ran(name, tmp_path, resumed.append) == ran(name, None, whole.append)
    assert len(whole) - len(resumed) == CASES[name][3]
