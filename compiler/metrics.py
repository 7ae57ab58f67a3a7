"""What a training says of itself while it runs, for people and their charts.

<folder>/metrics.jsonl            a line for each step, and one for each look at what was held back
<folder>/<pass>-<run>/<part>/     the same as TensorBoard's event files, where `tensorboard` is installed

    {"pass": "train-scales", "run": "3f2a..", "part": "", "step": 7, "loss": 0.31, "rate": 0.0019, "seconds": 12.4}
    {"pass": "train-scales", "run": "3f2a..", "part": "", "step": 8, "held": 0.29, "seconds": 14.1}

step: how many were done before. seconds: since the first step, without the time in which nothing ran. A run that was
killed and goes on takes its last steps again; what they said before is dropped. Nothing here decides a result.
"""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drawplate.errors import OutputError
from drawplate.files import write_text
from drawplate.ranks import leads

FILE = "metrics.jsonl"


def metrics_folder(folder: str | Path | None) -> Path | None:
    """The folder, made if it is not there. Raises OutputError."""
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("the folder for metrics cannot be made", where=str(folder), why=str(error)) from error
    return Path(folder)


class Metrics:
    """The log of one training. folder: None keeps nothing. run: what tells it from others, such as a digest."""

    def __init__(self, folder: Path | None = None, pass_name: str = "", run: str = "") -> None:
        self._folder, self._pass, self._run = folder, pass_name, run[:12]
        self._start: float | None = None  # time at which it would have begun, had it run without a break
        self._board: Any = None
        self._part: str | None = None  # that the board is of

    def write(self, part: str, step: int, **figures: float) -> None:
        """A line of these figures."""
        if self._folder is None or not leads():
            return
        line: dict[str, Any] = {"pass": self._pass, "run": self._run, "part": part, "step": step, **figures}
        if self._start is None:
            self._start = time.monotonic() - _drop_from(self._folder / FILE, line)
        line["seconds"] = round(time.monotonic() - self._start, 3)
        with (self._folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if find_spec("tensorboard"):
            self._show(self._folder / f"{self._pass}-{self._run}" / part, part, step, figures)

    def _show(self, folder: Path, part: str, step: int, figures: dict[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if part != self._part:
            if self._board is not None:
                self._board.close()
            # what a killed run showed from this step on is not shown any more
            self._board, self._part = SummaryWriter(folder, purge_step=step), part
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()


def _drop_from(path: Path, line: dict[str, Any]) -> float:
    """Take out what the same run wrote from this line on, and a last line that a kill cut short. Returns the seconds
    of its last line that is left, 0 if there is none."""
    if not path.is_file():
        return 0.0
    kept, seconds, dropping = [], 0.0, False
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            other = json.loads(text)
        except ValueError:
            continue
        mine = other["run"] == line["run"]
        dropping = dropping or (mine and _place(other) == _place(line))
        if not (mine and dropping):
            kept.append(text + "\n")
            seconds = other["seconds"] if mine else seconds
    write_text(path, "".join(kept))
    return seconds


def _place(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["part"], line["step"], "held" in line
