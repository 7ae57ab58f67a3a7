"""Text as token windows: what calibration and perplexity read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drawplate.errors import EvaluationError

if TYPE_CHECKING:
    from drawplate.tokens import Tokenizer


@dataclass(frozen=True)
class Question:
    """A question of a choice task, as tokens. choices: (context, continuation) of each; characters: in each
    continuation; answer: index of the right one."""

    choices: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    characters: tuple[int, ...]
    answer: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Question:
        """From JSON's types."""
        choices = tuple((tuple(given), tuple(rest)) for given, rest in data["choices"])
        return cls(choices, tuple(data["characters"]), data["answer"])


@dataclass(frozen=True)
class Calibration:
    """Windows of tokens. windows: int64 [n, length]. source: for people. digest: of the tokens and questions, for
    caches. questions: of the task that bits are allocated to, if there is one."""

    windows: Tensor = field(compare=False)
    source: str
    digest: str
    questions: tuple[Question, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, windows: Tensor, source: str) -> Calibration:
        """From token windows [n, length] that you already have. Raises EvaluationError if there is nothing to read."""
        if windows.dim() != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
            raise EvaluationError(
                f"token windows of shape {list(windows.shape)}",
                where=source,
                why="windows are [n, length] with at least one window of two tokens",
            )
        windows = windows.to(torch.int64).contiguous()
        digest = hashlib.sha256(str(tuple(windows.shape)).encode() + windows.numpy().tobytes()).hexdigest()
        return cls(windows, source, digest)

    def asking(self, questions: Iterable[Question], source: str) -> Calibration:
        """The same text, and a task."""
        asked = tuple(questions)
        both = hashlib.sha256((self.digest + repr(asked)).encode()).hexdigest()
        return Calibration(self.windows, f"{self.source}, {source}", both, asked)

    @property
    def tokens(self) -> int:
        """How many tokens in all."""
        return self.windows.numel()

    def batches(self, size: int) -> Iterator[Tensor]:
        """The windows in order, `size` at a time: int64 [<= size, length]."""
        yield from self.windows.split(size)


def load_text(
    path: str | Path, tokenizer: Tokenizer, length: int, count: int | None = None, seed: int | None = None
) -> Calibration:
    """Cut a UTF-8 text file into windows of `length` tokens that do not overlap.

    count: how many windows (None: all). seed: which ones; None takes the first, a number draws them, kept in order.
    The ids that the tokenizer puts in front of every text (`prefix`) open each window and count towards its length.
    Raises EvaluationError if the file is not there, is not UTF-8, or is too short for that many windows.
    """
    path = Path(path)
    if length < 2 or (count is not None and count < 1):
        raise EvaluationError(
            f"{count} windows of {length} tokens", why="a window has at least 2 tokens, and there is at least one"
        )
    ids = torch.tensor(tokenizer.encode(read_text(path)), dtype=torch.int64)
    fresh = length - len(tokenizer.prefix)
    available = len(ids) // fresh if fresh > 0 else 0
    wanted = available if count is None else count
    if available < max(wanted, 1):
        raise EvaluationError(
            f"the text is too short: {len(ids)} tokens",
            where=str(path),
            why=f"{max(wanted, 1)} windows of {length} tokens were asked for, and they do not overlap",
            fix=f"ask for {available} windows ({available * length} tokens) or fewer, or give more text"
            if available
            else f"give a text of {length} tokens or more for each window, or ask for fewer",
        )
    if seed is None:
        chosen = torch.arange(wanted)
    else:
        chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values
    windows = ids[: available * fresh].view(available, fresh)[chosen]
    if tokenizer.prefix:
        windows = torch.cat((torch.tensor(tokenizer.prefix).expand(wanted, -1), windows), dim=1)
    return Calibration.of(windows, path.name)


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file. Raises EvaluationError if it is missing, empty, or not UTF-8 (the byte is named)."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise EvaluationError("the text cannot be read", where=str(path), why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            "the text is not UTF-8",
            where=f"{path}, byte {error.start}",
            why=f"{error.reason}: 0x{error.object[error.start]:02x}",
            fix="convert it: iconv -f latin1 -t utf-8",
        ) from error
    if not text.strip():
        raise EvaluationError("the text is empty", where=str(path), fix="give a file of prose in the model's language")
    return text
