"""Costs: what a model's quality is measured by while bits are chosen. Each is a number to keep low, of logits.

A cost is asked of one sample at a time: sequences that are run, and a function of all their logits. Of a text a sample
is one window; of a choice task it is one question with all its choices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from drawplate.analysis.sites import sites
from drawplate.calibration import Calibration, Question
from drawplate.errors import PassError
from drawplate.program import Program
from drawplate.streaming import fitting, inputs_of

Cost = Callable[[Tensor, Tensor], Tensor]
"""(logits [b, s, vocabulary], ids [b, s]) -> a number to keep low, summed over the tokens."""


NAMED = ("kl", "loss", "choices")


@dataclass(frozen=True)
class Sample:
    """inputs: of the program, for each sequence. cost: of the logits [1, s, vocabulary] of each, in nats or the user's
    own unit."""

    inputs: Sequence[Sequence[Tensor]]
    cost: Callable[[Sequence[Tensor]], Any]


def samples(name: str, program: Program, text: Calibration, tokens: int, seed: int) -> Iterator[Sample]:
    """What there is to run for a cost. Raises PassError if the text has not what it needs.

    name: "kl" to the original, per token; "loss" of the text's next tokens; "choices": how far a task's right answers
    are from being the likeliest, the negative log of their share of probability per character; or "FILE.py:function",
    a Cost.
    """
    refuse_no_logits(program)
    if name == "choices":
        yield from _choices(program, questions_of(text))
        return
    cost = {"kl": own_labels(seed), "loss": next_token_loss}.get(name) or users_cost(name)
    yield from of_windows(program, fitting(program, text.windows, tokens), cost)


def has_logits(program: Program) -> bool:
    """Is what the program gives a score of every token of a vocabulary?"""
    return any(site.role in ("head", "tied") for site in sites(program))


def refuse_no_logits(program: Program) -> None:
    """Raise PassError if it is not."""
    if not has_logits(program):
        raise PassError(
            f"{program.name} gives no logits",
            why="no linear over its vocabulary makes its output, so there is nothing to compare word by word",
            fix="leave out what reads the whole model's output; what works block by block needs none",
        )


def of_windows(program: Program, windows: Tensor, cost: Cost) -> Iterator[Sample]:
    """A sample for each window of tokens [n, length]."""
    for inputs in inputs_of(program, windows):
        ids = inputs[0].reshape(-1, inputs[0].shape[-1])
        yield Sample([inputs], partial(_of_one, cost, ids))


def _of_one(cost: Cost, ids: Tensor, logits: Sequence[Tensor]) -> Tensor:
    return cost(logits[0], ids)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The text's own next tokens: their negative log-likelihood in nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def divergence(logs: Tensor, logits: Tensor) -> Tensor:
    """KL(original || logits) at each token, f64 [.., s] in nats. logs: the original's log-probabilities
    [.., s, vocabulary]."""
    return kl_div(logits.float().log_softmax(-1), logs, reduction="none", log_target=True).sum(-1).double()


def likelihood(given: Sequence[int], rest: Sequence[int], logits: Tensor) -> Tensor:
    """The log-probability of the tokens `rest` behind those that were given, in nats. logits: [1, s, vocabulary], of
    both one after the other."""
    predicted = logits.reshape(-1, logits.shape[-1])[len(given) - 1 : len(given) + len(rest) - 1]
    return -cross_entropy(predicted, torch.tensor(rest, device=logits.device), reduction="sum")


def own_labels(seed: int) -> Cost:
    """Next tokens that the model draws itself: the squared gradients of this are those of KL to the original."""
    generator = torch.Generator().manual_seed(seed)

    def cost(logits: Tensor, ids: Tensor) -> Tensor:
        flat = logits.flatten(0, 1)
        labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
        return cross_entropy(flat, labels, reduction="sum")

    return cost


def users_cost(name: str) -> Cost:
    """The function of "FILE.py:function". What it raises becomes a PassError that names it."""
    path, function = cost_file(name), name.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise PassError(f"{path} is no Python file", fix="give cost=FILE.py:function")
    module = importlib.util.module_from_spec(spec)
    _guarded(name, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    found: Any = getattr(module, function, None)
    if not callable(found):
        raise PassError(f"there is no function {function!r} to ask for the cost", where=str(path))
    return lambda logits, ids: _guarded(name, lambda: found(logits, ids))


def cost_file(name: str) -> Path:
    """The file of "FILE.py:function". Raises PassError if it is not there."""
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise PassError(
            f"no cost {name!r}",
            why=f"there is no file {str(path)!r}" if path.name else "",
            fix="give cost=kl, cost=loss, cost=choices (with a task), or cost=FILE.py:function",
        )
    return path


def _guarded(name: str, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Exception as error:
        raise PassError(
            f"the cost {name} failed",
            why=f"{type(error).__name__}: {error}",
            fix="a cost takes (logits [b, s, vocabulary], ids [b, s]) and returns one number, summed over the tokens",
        ) from error


def questions_of(text: Calibration, wanted: str = "cost=choices") -> Sequence[Question]:
    """Raises PassError if there are none. wanted: who asks."""
    if not text.questions:
        raise PassError(
            f"{wanted} needs a task, and there is none",
            why="it is about how likely right answers are",
            fix="give one: --calibration-task FILE.jsonl (in Python, calibration.asking(questions(..), name))",
        )
    return text.questions


def _choices(program: Program, questions: Sequence[Question]) -> Iterator[Sample]:
    for question in questions:
        inputs = [next(inputs_of(program, torch.tensor([[*given, *rest]]))) for given, rest in question.choices]
        yield Sample(inputs, partial(_margin, question))


def _margin(question: Question, logits: Sequence[Tensor]) -> Tensor:
    """-log softmax over the choices of their log-probability per character, at the right one."""
    scores = []
    for (given, rest), out, length in zip(question.choices, logits, question.characters, strict=True):
        scores.append(likelihood(given, rest, out) / max(length, 1))
    return cross_entropy(torch.stack(scores)[None], torch.tensor([question.answer]), reduction="sum")
