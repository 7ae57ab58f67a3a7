"""What a program is trained for: samples of a text, or of a file of questions with their answers.

Each sample costs a mean, so that a long text and a short answer count alike: per token of a window or an answer, and
per pair of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from drawplate.calibration import Calibration, Question
from drawplate.costs import Sample, divergence, likelihood, next_token_loss, questions_of
from drawplate.errors import PassError
from drawplate.program import Program
from drawplate.streaming import fitting, inputs_of, longest
from drawplate.training import Inputs, Network

Choice = tuple[Sequence[int], Sequence[int]]  # tokens of what was asked, and of an answer
Pair = tuple[Choice, Choice]  # a right answer, and a wrong one
Aim = Literal["kl", "loss", "answers", "dpo"]
BETA = 0.1  # of dpo, as in the paper's experiments


def samples_for(
    aim: Aim, program: Program, original: Program | None, text: Calibration, tokens: int, beta: float = BETA
) -> list[Sample]:
    """What to train on. Raises PassError if the text has not what it needs.

    aim: "kl", to what the original says of the text; "loss", of the text's own next tokens; "answers", of right answers
    alone, what was asked being given; "dpo", that right answers become likelier than wrong ones, compared with the
    program as it is now (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). tokens: of the text, or of questions and
    answers. beta: of dpo.
    """
    if aim in ("kl", "loss"):
        like = _likeness(original) if aim == "kl" else _next_tokens
        return [like(inputs) for inputs in inputs_of(program, fitting(program, text.windows, tokens))]
    if aim == "answers":
        return [_answered(program, question) for question in _questions(aim, program, text, tokens)]
    reference = Network(program, {})
    return [_pair(program, reference, pair, beta) for pair in pairs_for(program, text, tokens)]


def pairs_for(program: Program, text: Calibration, tokens: int) -> list[Pair]:
    """Those of the samples of "dpo", in the same order."""
    return [pair for question in _questions("dpo", program, text, tokens) for pair in _pairs(question)]


def ahead(network: Network, program: Program, pair: Pair) -> float:
    """By how much the right answer is likelier than the wrong one, in nats."""
    right, wrong = (likelihood(*choice, network.output(_inputs(program, *choice))) for choice in pair)
    return float(right - wrong)


def refuse_no_aim(aim: Aim, text: Calibration) -> None:
    """Raise PassError if the text has not what the aim needs."""
    if aim in ("answers", "dpo"):
        _asked(aim, text)


def _asked(aim: Aim, text: Calibration) -> Sequence[Question]:
    questions = questions_of(text, f"loss={aim}")
    if aim == "dpo" and not any(len(question.choices) > 1 for question in questions):
        raise PassError("loss=dpo needs pairs of answers", why="no question has a worse answer beside its best")
    return questions


def _questions(aim: Aim, program: Program, text: Calibration, tokens: int) -> Iterator[Question]:
    """The first ones that the program can read, of so many tokens."""
    return _within(_that_fit(program, _asked(aim, text)), tokens)


def _that_fit(program: Program, questions: Sequence[Question]) -> Sequence[Question]:
    """Those that the program can read."""
    most = longest(program)
    kept = [q for q in questions if max(len(given) + len(rest) for given, rest in q.choices) <= most]
    if not kept:
        raise PassError("no question fits into the model", why=f"it reads {most} tokens at most")
    return kept


def _within(questions: Iterable[Question], tokens: int) -> Iterator[Question]:
    """As many of the first as make up so many tokens, at least one."""
    for question in questions:
        yield question
        tokens -= sum(len(given) + len(rest) for given, rest in question.choices)
        if tokens <= 0:
            return


def _likeness(original: Program | None) -> Callable[[Inputs], Sample]:
    """KL(original || model), of one window."""
    if original is None:
        raise PassError("loss=kl needs the original model", fix="run the pass by run_passes, which knows it")
    if original.encodings:
        why = "the model that came in is stored as integers itself, and would learn from itself"
        raise PassError("loss=kl needs the original model", why=why, fix="begin with it, or use loss=loss")
    teacher = Network(original, {})

    def sample(inputs: Inputs) -> Sample:
        def cost(logits: Sequence[Tensor]) -> Tensor:
            return divergence(teacher.output(inputs).float().log_softmax(-1), logits[0]).mean()

        return Sample([inputs], cost)

    return sample


def _next_tokens(inputs: Inputs) -> Sample:
    ids = inputs[0].reshape(-1, inputs[0].shape[-1])
    return Sample([inputs], lambda logits: next_token_loss(logits[0], ids) / ids[:, 1:].numel())


def _answered(program: Program, question: Question) -> Sample:
    given, rest = question.choices[question.answer]
    return Sample([_inputs(program, given, rest)], lambda logits: -likelihood(given, rest, logits[0]) / len(rest))


def _pairs(question: Question) -> Iterator[Pair]:
    """The right answer with each wrong one."""
    right = question.choices[question.answer]
    return ((right, wrong) for i, wrong in enumerate(question.choices) if i != question.answer)


def _pair(program: Program, reference: Network, choices: Pair, beta: float) -> Sample:
    inputs = [_inputs(program, *choice) for choice in choices]

    def likelihoods(logits: Iterable[Tensor]) -> Tensor:
        return torch.stack([likelihood(*choice, x) for choice, x in zip(choices, logits, strict=True)])

    @cache  # asked for in every epoch
    def before() -> Tensor:
        return likelihoods(reference.output(x) for x in inputs)

    def cost(logits: Sequence[Tensor]) -> Tensor:
        right, wrong = likelihoods(logits) - before()
        return -logsigmoid(beta * (right - wrong))

    return Sample(inputs, cost)


def _inputs(program: Program, given: Sequence[int], rest: Sequence[int]) -> Inputs:
    """Both one after the other, as often as a program of fixed batch wants a row; the first one counts."""
    rows = program.inputs[0].shape[0]
    ids = torch.tensor([[*given, *rest]])
    return next(inputs_of(program, ids.expand(rows, -1) if isinstance(rows, int) else ids))
