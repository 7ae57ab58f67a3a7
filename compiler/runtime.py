"""Running a model token by token: the protocol that every runtime speaks, programs behind it, and generation.

Only torch is imported here, so that a process that measures an artifact's memory loads nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from drawplate.errors import EvaluationError

if TYPE_CHECKING:
    from drawplate.program import Program


class Runnable(Protocol):
    """A model in a runtime, with its memory of what was fed. context: the most tokens that it can hold, if limited."""

    @property
    def context(self) -> int | None: ...

    def reset(self) -> None:
        """Forget everything that was fed."""

    def step(self, ids: Tensor) -> Tensor:
        """Feed ids (int64 [n]) after what was fed before. Returns logits f32 [m, vocab] of the last m of them: m is n,
        or 1 where the model computes the last position only."""


@runtime_checkable
class Rewindable(Protocol):
    """A Runnable that can also go back, so that several continuations share one pass over their prompt."""

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens that were fed and forget the rest."""


class CacheRunner:
    """What Runnables share whose runtime keeps a cache of fixed length, and which only count what is in it."""

    _fed = 0  # tokens

    def reset(self) -> None:
        """A cache is written before it is read, so what it still holds is never seen."""
        self._fed = 0

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens that were fed."""
        self._fed = min(self._fed, length)


class ProgramRunner:
    """A Program as a Runnable: a cached one keeps its cache; a plain one is run again over everything that was fed.

    threads: set for the whole process before anything runs (None: as it is). dtype: what to compute in, if not in the
    dtypes of the weights.
    """

    def __init__(self, program: Program, threads: int | None = None, dtype: torch.dtype | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._module = program.module(dtype=dtype)
        self._cached = bool(program.state)
        self._fed = torch.empty(0, dtype=torch.int64)
        self._inputs = len(program.inputs)
        self.context = self.limit(program)
        self._chunk = _high(program, program.inputs[0].shape[-1]) if self._cached else None

    @staticmethod
    def limit(program: Program) -> int | None:
        """The most tokens that the program takes: its caches' length [1, context, ..], or its longest input."""
        if program.state:
            return min(int(s.shape[1]) for s in program.state)
        return _high(program, program.inputs[0].shape[-1])

    def reset(self) -> None:
        """A cache is written before it is read, so what it still holds is never seen."""
        self._fed = self._fed[:0]

    def rewind(self, length: int) -> None:
        self._fed = self._fed[:length]

    def step(self, ids: Tensor) -> Tensor:
        check_room(len(self._fed), len(ids), self.context)
        if not self._cached:
            self._fed = torch.cat((self._fed, ids))
            return self._run(self._fed[None], torch.arange(len(self._fed))[None])[-len(ids) :]
        rows = []
        for part in ids.split(self._chunk or len(ids)):
            positions = torch.arange(len(self._fed), len(self._fed) + len(part))
            self._fed = torch.cat((self._fed, part))
            rows.append(self._run(part[None], positions))
        return torch.cat(rows) if len(rows[0]) > 1 or len(ids) == 1 else rows[-1]

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids: [1, n] -> logits [m, vocab]."""
        with torch.no_grad():
            out = self._module(ids, positions) if self._inputs > 1 else self._module(ids)
        logits: Tensor = out[0] if isinstance(out, (tuple, list)) else out
        return logits[0].float()


def _high(program: Program, length: int | str) -> int | None:
    """The largest value of a length of the program's inputs; None where torch gave no bound."""
    if isinstance(length, int):
        return length
    return next((d.high for d in program.dims if d.name == length and d.high < 1 << 31), None)


def check_room(fed: int, more: int, context: int | None) -> None:
    """Raises EvaluationError if `more` tokens do not fit after `fed` ones, or if there is nothing to feed."""
    if more < 1:
        raise EvaluationError("nothing to feed: no tokens", why="a step takes at least one token")
    if context is not None and fed + more > context:
        raise EvaluationError(
            f"the context is full: {fed} tokens were fed and {more} more do not fit",
            why=f"this model was compiled for a context of {context} tokens",
            fix="shorten the text, or compile with a larger context",
        )


@dataclass(frozen=True)
class Generation:
    """What was generated. ids: the new tokens (a final end token included). margins: how far the best logit stood above
    the second at each. first_seconds: from the prompt to the first token; seconds: all of it."""

    ids: tuple[int, ...]
    stopped: Literal["end", "length", "context"]
    first_seconds: float
    seconds: float
    margins: tuple[float, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 is greedy. top_p: sample among the likeliest tokens that hold this share of the probability
    (Holtzman et al. 2020, arXiv:1904.09751). seed: same seed, same text."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise EvaluationError(
                f"temperature {self.temperature}, top-p {self.top_p}",
                why="a temperature is at least 0 and top-p lies in (0, 1]",
            )

    def picker(self) -> Callable[[Tensor], int]:
        """A function from logits [vocab] to a token id, with its own stream of random numbers."""
        random = torch.Generator().manual_seed(self.seed)

        def pick(logits: Tensor) -> int:
            if self.temperature == 0:
                return int(logits.argmax())
            p = torch.softmax(logits.double() / self.temperature, dim=-1)
            if self.top_p < 1:
                p, order = nucleus(p, self.top_p)
                return int(order[torch.multinomial(p, 1, generator=random)])
            return int(torch.multinomial(p, 1, generator=random))

        return pick


def nucleus(p: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest likeliest entries of p [vocab] that hold at least top_p: (their probabilities, their indices).

    >>> nucleus(torch.tensor([0.2, 0.5, 0.3]), 0.6)[1].tolist()
    [1, 2]
    """
    sorted_p, order = p.sort(descending=True, stable=True)
    keep = sorted_p.cumsum(0) - sorted_p < top_p
    return sorted_p[keep], order[keep]


def generate(
    runnable: Runnable,
    ids: Sequence[int],
    max_new_tokens: int,
    eos: Sequence[int] = (),
    sampling: Sampling | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue the prompt `ids`, greedily unless told otherwise, until an end token, max_new_tokens or a full context.

    on_token: called with each new token as it comes (Tokenizer.stream turns them into text).
    """
    if max_new_tokens < 1:
        raise EvaluationError(f"{max_new_tokens} new tokens", why="generation gives at least one")
    tokens, margins, start, first = [], [], time.perf_counter(), 0.0
    stopped: Literal["end", "length", "context"] = "length"
    for token, margin in stream(runnable, ids, sampling):
        first = first or time.perf_counter() - start
        tokens.append(token)
        margins.append(margin)
        if on_token is not None:
            on_token(token)
        if token in eos:
            stopped = "end"
            break
        if len(tokens) >= max_new_tokens:
            break
    else:
        stopped = "context"
    return Generation(tuple(tokens), stopped, first, time.perf_counter() - start, tuple(margins))


def stream(runnable: Runnable, ids: Sequence[int], sampling: Sampling | None = None) -> Iterator[tuple[int, float]]:
    """New tokens after the prompt, each with its margin over the runner-up in logits, until the context is full."""
    pick = (sampling or Sampling()).picker()
    runnable.reset()
    logits = runnable.step(torch.tensor(ids, dtype=torch.int64))[-1]
    fed = len(ids)
    while True:
        token = pick(logits)
        best = logits.topk(2).values
        yield token, float(best[0] - best[1])
        if runnable.context is not None and fed >= runnable.context:
            return
        logits = runnable.step(torch.tensor([token]))[-1]
        fed += 1
