"""One way to ask any model for its predictions: a Program in batches, an artifact through its runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from drawplate.errors import EvaluationError
from drawplate.evaluate.head import split_head
from drawplate.passbase import Progress
from drawplate.program import Program
from drawplate.runtime import ProgramRunner, Rewindable, Runnable

Model = Program | Runnable
BATCH_TOKENS = 1024  # tokens per forward pass: enough for full speed on two cores, small enough for any memory
CHUNK = 256  # positions whose logits are held at once: 256 x 49,152 x 4 bytes = 50 MB
Request = tuple[Sequence[int], Sequence[int]]  # (context, continuation), neither empty


@dataclass(frozen=True)
class Reading:
    """What a model made of ids [b, s]. hidden: [b, s, d], in front of the head, or logits where that cannot be cut."""

    hidden: Tensor
    head: Callable[[Tensor], Tensor]

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits at these positions (index tensors [n]): f32 [n, vocab]. Entry (r, c) predicts ids[r, c + 1]."""
        with torch.no_grad():
            return self.head(self.hidden[rows, columns][None])[0].float()


@dataclass(frozen=True)
class Score:
    """logprob: of the continuation given its context, in nats. greedy: each of its tokens was the likeliest."""

    logprob: float
    greedy: bool


class Source(Protocol):
    """A model that is asked. context: the most tokens that a window may have, if limited."""

    context: int | None

    def read(self, ids: Tensor) -> Reading:
        """ids: int64 [b, s]."""

    def score(self, requests: Sequence[Request], progress: Progress) -> list[Score]:
        """How likely each continuation is after its context."""


def source_of(model: Model) -> Source:
    """The model as a Source. Raises EvaluationError if it does not read tokens."""
    if not isinstance(model, Program):
        return RunnableSource(model)
    if model.inputs[0].dtype not in (torch.int64, torch.int32):
        raise EvaluationError(
            f"{model.name} cannot be evaluated on text",
            why=f"its first input {model.inputs[0].name!r} is {model.inputs[0].dtype}, not token ids",
        )
    return RunnableSource(ProgramRunner(model)) if model.state else ProgramSource(model)


class ProgramSource:
    """A plain Program (input_ids [b, s], position_ids [b, s]) -> logits [b, s, vocab], many positions in one pass."""

    def __init__(self, program: Program) -> None:
        if any(program.nodes(torch.ops.drawplate.last_position.default)):
            raise EvaluationError(
                f"{program.name} computes the logits of the last position only",
                why="a window needs them at every position",
                fix="evaluate the program from before pass last-position, or its cached form",
            )
        self._body, self._head = split_head(program)
        self._inputs = len(program.inputs)
        rows = program.inputs[0].shape[0]
        self._rows = rows if isinstance(rows, int) else None
        self.context = ProgramRunner.limit(program)

    def read(self, ids: Tensor) -> Reading:
        size = self._rows or len(ids)
        missing = -len(ids) % size  # rows that a program of fixed batch size wants beyond ours
        padded = torch.cat((ids, ids[:1].expand(missing, -1))) if missing else ids
        with torch.no_grad():
            hidden = [self._run(part) for part in padded.split(size)]
        return Reading(hidden[0] if len(hidden) == 1 else torch.cat(hidden), self._head)

    def _run(self, ids: Tensor) -> Tensor:
        if self._inputs == 1:
            return self._body(ids)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return self._body(ids, positions)

    def score(self, requests: Sequence[Request], progress: Progress) -> list[Score]:
        """In batches of similar length, padded on the right: later tokens cannot reach back to earlier ones."""
        scores: list[Score] = [Score(0.0, True)] * len(requests)
        for batch in progress(self._batches(shared_rows(requests)), "items"):
            ids = torch.zeros(len(batch), len(batch[0].ids), dtype=torch.int64)
            for i, row in enumerate(batch):
                ids[i, : len(row.ids)] = torch.tensor(row.ids)
            asked = [(i, r) for i, row in enumerate(batch) for r in row.requests]
            ends = [sum(map(len, requests[r])) - 1 for _, r in asked]
            counts = [len(requests[r][1]) for _, r in asked]
            rows = torch.tensor([i for i, _ in asked]).repeat_interleave(torch.tensor(counts))
            columns = torch.cat([torch.arange(end - n, end) for end, n in zip(ends, counts, strict=True)])
            targets = torch.tensor([token for _, r in asked for token in requests[r][1]])
            reading = self.read(ids)
            parts = zip(rows.split(CHUNK), columns.split(CHUNK), targets.split(CHUNK), strict=True)
            chosen = [_chosen(reading.logits(r, c), t) for r, c, t in parts]
            logprobs, greedy = (torch.cat(x) for x in zip(*chosen, strict=True))
            for (_, r), p, g in zip(asked, logprobs.split(counts), greedy.split(counts), strict=True):
                scores[r] = Score(float(p.sum()), bool(g.all()))
        return scores

    def _batches(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Longest first, so that padding is little and the batch that takes most memory comes first."""
        left = sorted(rows, key=lambda row: -len(row.ids))
        batches = []
        while left:
            size = self._rows or max(1, BATCH_TOKENS // len(left[0].ids))
            batches.append(left[:size])
            del left[:size]
        return batches


@dataclass
class Row:
    """One sequence to run, and the requests (by index) that are answered within it."""

    ids: list[int]
    requests: list[int]


def shared_rows(requests: Sequence[Request]) -> list[Row]:
    """The sequences to run for these requests, none twice and none that only begins another: what a token is given does
    not depend on what follows it. Questions whose choices are one token each need one row for all of them.

    >>> [row.ids for row in shared_rows([([1, 2], [3]), ([1, 2], [4]), ([1, 2], [3, 5])])]
    [[1, 2, 3]]
    """
    rows: list[Row] = []
    inputs = [[*context, *rest][:-1] for context, rest in requests]
    for i in sorted(range(len(requests)), key=lambda i: inputs[i], reverse=True):
        if rows and rows[-1].ids[: len(inputs[i])] == inputs[i]:
            rows[-1].requests.append(i)
        else:
            rows.append(Row(inputs[i], [i]))
    return rows


class RunnableSource:
    """An artifact through its runtime, or a cached Program: one sequence at a time, as it would run on the device."""

    def __init__(self, runnable: Runnable) -> None:
        self._runnable = runnable
        self.context = runnable.context
        self._every: bool | None = None  # does step return the logits of every token it is fed?

    def read(self, ids: Tensor) -> Reading:
        rows = []
        for row in ids:
            self._runnable.reset()
            rows.append(self._feed(row))
        return Reading(torch.stack(rows), lambda x: x)

    def _feed(self, ids: Tensor) -> Tensor:
        """Logits [n, vocab] of all of ids [n], in one step or token by token, whatever the model gives."""
        if self._every is None and len(ids) > 1:
            self._every = self._probe(ids)
        if self._every or len(ids) == 1:
            return self._runnable.step(ids).clone()
        return torch.cat([self._runnable.step(token) for token in ids.split(1)])

    def _probe(self, ids: Tensor) -> bool:
        self._runnable.reset()
        every = len(self._runnable.step(ids[:2])) == 2
        self._runnable.reset()
        return every

    def score(self, requests: Sequence[Request], progress: Progress) -> list[Score]:
        """Neighbours with the same context share one pass over it where the runtime can rewind."""
        scores = []
        last, first = None, torch.empty(0)
        for given, continuation in progress(requests, "choices"):
            context, targets = list(given), torch.tensor(continuation)
            if self._every is None:
                self._every = self._probe(torch.tensor([*context, *context][:2]))
            if context == last and isinstance(self._runnable, Rewindable):
                self._runnable.rewind(len(context))
            else:
                self._runnable.reset()
                first = self._runnable.step(torch.tensor(context))[-1:].clone()
                last = context
            logits = torch.cat((first, self._feed(targets[:-1]))) if len(targets) > 1 else first
            logprobs, greedy = _chosen(logits, targets)
            scores.append(Score(float(logprobs.sum()), bool(greedy.all())))
        return scores


def _chosen(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits [n, vocab], targets [n] -> log-probability of each target in nats [n], and was it the likeliest [n]."""
    picked = logits.gather(-1, targets[:, None])[:, 0]
    return picked - logits.logsumexp(-1), logits.argmax(-1) == targets
