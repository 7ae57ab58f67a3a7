"""What a command says: results to stdout, as tables or as one JSON document; bars and notes to stderr."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.progress import Progress

_NUMBER = re.compile(r"[+\-−]?\d[\d.,]*(e[+-]?\d+)?(\s|$)")
_SPEED_OVER = 600.0  # seconds: a step of training may take a minute, and a speed needs several
_PIPE_WIDTH = 160  # columns where stdout is no terminal, so that tables do not wrap in a file


class Output:
    """One command's voice. `with Output(as_json) as out:`; call `give` once, at the end.

    With as_json, everything that any library prints to stdout meanwhile goes to stderr, so that stdout is the document.
    mute: says nothing, since another process does.
    """

    def __init__(self, as_json: bool = False, mute: bool = False) -> None:
        self.as_json, self._mute = as_json, mute
        self._origin = self._stdout = sys.stdout
        self._saved: int | None = None
        self._bars: Progress | None = None
        self._silence = silence()

    def __enter__(self) -> Output:
        self._silence.__enter__()
        if self.as_json:
            sys.stdout.flush()
            try:
                self._saved = os.dup(sys.stdout.fileno())  # also what C++ prints
                os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
                self._stdout = os.fdopen(os.dup(self._saved), "w", encoding="utf-8")
            except (OSError, ValueError):  # a stdout without a file descriptor: a test's, a notebook's
                self._stdout = sys.stdout
            sys.stdout = sys.stderr
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from drawplate.errors import DrawplateError

        self.stop()
        if self.as_json:
            if isinstance(error, DrawplateError):
                self._document({"error": describe(error)})
            if self._saved is not None:
                self._stdout.close()
                os.dup2(self._saved, self._origin.fileno())
                os.close(self._saved)
            sys.stdout = self._origin
        self._silence.__exit__(kind, error, trace)

    def give(self, data: Any, *shown: RenderableType) -> None:
        """The result: `data` as JSON, or what is shown to people."""
        if self.as_json or self._mute:
            self._document(data)
            return
        console = self._console()
        for part in shown:
            console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))

    def note(self, text: str) -> None:
        """Something that the user should know, to stderr."""
        if not self._mute:
            sys.stderr.write(text + "\n")

    def progress(self, items: Iterable[Any], label: str | Callable[[], str]) -> Iterator[Any]:
        """A bar over the items (drawplate.passbase.Progress), with the time that has passed and the time that is left.
        Silent where stderr is no terminal."""
        bars = self._shared_bars()
        total = len(items) if isinstance(items, Sized) else None
        told = label if callable(label) else lambda: label
        task = bars.add_task(told(), total=total)
        try:
            for item in items:
                yield item
                bars.update(task, advance=1, description=told())
        finally:
            bars.remove_task(task)

    @contextmanager
    def busy(self, label: str) -> Iterator[None]:
        """A spinner with the time that has passed, for work without countable parts."""
        bars = self._shared_bars()
        task = bars.add_task(label, total=None)
        try:
            yield
        finally:
            bars.remove_task(task)

    def stop(self) -> None:
        """Take the bars away, before something else writes to the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _shared_bars(self) -> Progress:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            console = Console(stderr=True)
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                speed_estimate_period=_SPEED_OVER,
                console=console,
                transient=True,
                disable=self._mute or not console.is_terminal,
            )
            self._bars.start()
        return self._bars

    def _console(self) -> Console:
        from rich.console import Console

        return Console(width=None if self._stdout.isatty() else _PIPE_WIDTH)

    def _document(self, data: Any) -> None:
        if self._mute:
            return
        self._stdout.write(json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        self._stdout.flush()


def describe(error: Any) -> dict[str, str]:
    """A DrawplateError as JSON has it."""
    return {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}


def plain(value: Any) -> Any:
    """Anything that a command reports -> what JSON can hold: dataclasses are objects; paths and infinities text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf and nan are not JSON
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A table; a column whose cells are all numbers, units or not, is aligned to the right."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cells = [["" if c is None else str(c) for c in row] for row in rows]
    made = Table(header_style="bold")
    for i, column in enumerate(columns):
        texts = [row[i] for row in cells if row[i]]
        number = bool(texts) and all(_NUMBER.match(t) for t in texts)
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))
    return Group(Text(title, style="bold"), made) if title else made


def count(number: float) -> str:
    """A number of things.

    >>> count(134_515_008), count(36_864), count(7)
    ('134.5 M', '36.9 k', '7')
    """
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f}"


def percent(share: float) -> str:
    """A share of one.

    >>> percent(0.4371)
    '43.7 %'
    """
    return f"{100 * share:.1f} %"


@contextmanager
def silence() -> Iterator[None]:
    """Keep libraries from chatting on stderr: their warnings are about their own insides. `--debug` lets them."""
    if os.environ.get("DRAWPLATE_DEBUG"):
        yield
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loggers = [logging.getLogger(name) for name in (None, "torchao", "torch.utils._pytree", "gguf")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
