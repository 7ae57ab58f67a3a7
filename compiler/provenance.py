"""Which line of the model's own code a value comes from: for messages, never for decisions."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

_HERE = str(Path(__file__).parent)
_NOT_THE_MODEL = (str(Path(torch.__file__).parent), _HERE)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')


def line_of_trace(trace: str | None) -> str:
    """``modeling_x.py:41: `return self.weight * x` `` of the innermost frame that is the model's own, or ''."""
    return _line_of_text(trace) if trace else ""


def line_of_error(error: BaseException) -> str:
    """As line_of_trace, for an exception that was raised while the model was running."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    return _innermost(frames)


def first_line(error: BaseException) -> str:
    """What an exception says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def innermost_module(stack: Iterable[tuple[str, object]], prefix: str) -> str:
    """The qualified name of the last module of torch's nn_module_stack, without the wrapper's prefix."""
    names = [name for name, _ in stack]
    last = names[-1] if names else ""
    # torch marks nodes that it made itself, such as lengths, with the name of a hook
    return "" if last.startswith("_") or f"{last}." == prefix else last.removeprefix(prefix)


@lru_cache(maxsize=8192)
def _line_of_text(trace: str) -> str:
    return _innermost([(file, int(line)) for file, line in _FRAME.findall(trace)])


def _innermost(frames: list[tuple[str, int]]) -> str:
    for file, line in reversed(frames):
        if not file.startswith(_NOT_THE_MODEL) and Path(file).is_file():
            return f"{Path(file).name}:{line}: `{linecache.getline(file, line).strip()}`"
    return ""
