"""Does an artifact compute what its Program computes? Position by position, each in a process of its own.

The artifact is opened in a child, which continues each prompt greedily and hands back its text and its logits, fed
token by token and fed the prompt at once. The Program reads that text here. Up to the first token that it would have
chosen otherwise, its own greedy text is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drawplate.errors import EvaluationError
from drawplate.evaluate.statistics import quantile
from drawplate.isolate import Subject, isolated, open_runnable
from drawplate.probing import run_pieces
from drawplate.program import Program
from drawplate.runtime import Runnable, generate


@dataclass(frozen=True)
class Distance:
    """Two sets of logits, position by position. relative: |a - b| / |b| in the Euclidean norm over the
    vocabulary. kl: KL(b || a) in nats. agreement: share of positions with the same likeliest token."""

    positions: int
    relative_median: float
    relative_max: float
    absolute_max: float
    kl_mean: float
    kl_max: float
    agreement: float
    relative: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """The first token that greedy generation chose otherwise. step: 0 is the first new token.

    margin: how far the Program's choice stood above the artifact's in the Program's own logits; noise: root mean square
    difference of these and the logits that the artifact chose by. A margin of a few times the noise or less is a
    near-tie.
    """

    prompt: int
    step: int
    program_token: int
    artifact_token: int
    margin: float
    noise: float

    def __str__(self) -> str:
        return (
            f"prompt {self.prompt}, new token {self.step}: {self.artifact_token} for {self.program_token}, "
            f"margin {self.margin:.3g}, noise {self.noise:.3g}"
        )


@dataclass(frozen=True)
class Parity:
    """stepwise: artifact fed token by token; prefill: fed whole prompts (the positions that it answers for).

    floor: the Program in float32 against itself in float64, on the same tokens: what rounding alone does to this
    scheme, since a dynamically quantised activation that is nudged over a half step moves by a whole one.
    equal: prompts whose greedy text is the same to the end; differences: the first difference of each other one.
    """

    stepwise: Distance
    prefill: Distance
    floor: Distance | None
    prompts: int
    new_tokens: int
    equal: int
    differences: tuple[Difference, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, each position's distance included, as JSON can hold it."""
        return asdict(self)


def parity(
    program: Program,
    artifact: Subject,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = 32,
    floor: bool = True,
    threads: int | None = None,
) -> Parity:
    """Compare the artifact with the Program (plain or cached) that it was made from, on these prompts of token ids and
    on the artifact's greedy continuation of each. floor: measure that too. threads: None leaves both as they are."""
    if not prompts or not all(prompts):
        raise EvaluationError("no prompts", why="parity is measured on at least one prompt of at least one token")
    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="drawplate-") as folder:
        answers = str(Path(folder, "logits.safetensors"))
        shape = {"prompts": [list(p) for p in prompts], "new_tokens": new_tokens, "answers": answers}
        texts = isolated("drawplate.parity:answer", {**artifact.request(threads), **shape}, threads=threads)
        theirs = load_file(answers)
    ours = _logits(program, texts)
    differences, stepwise, prefill = [], [], []
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        step, answered, chosen = theirs[f"step.{i}"], theirs[f"prefill.{i}"], theirs[f"chosen.{i}"]
        found = _first_difference(i, text[len(prompt) :], ours[i][len(prompt) - 1 : -1], chosen)
        differences += [] if found is None else [found]
        stepwise.append((step, ours[i]))
        prefill.append((answered, ours[i][len(prompt) - len(answered) : len(prompt)]))
    exact = _logits(program, texts, torch.float64) if floor else []
    return Parity(
        stepwise=distance(stepwise),
        prefill=distance(prefill),
        floor=distance(list(zip(ours, exact, strict=True))) if floor else None,
        prompts=len(prompts),
        new_tokens=new_tokens,
        equal=len(prompts) - len(differences),
        differences=tuple(differences),
    )


def answer(request: dict[str, Any]) -> list[list[int]]:
    """The child's side: each prompt with its greedy continuation. Saved to request["answers"]: the logits of that text,
    token by token ("step.<i>"); of the prompt at once ("prefill.<i>", the positions that the runtime gives); and those
    that each new token was chosen by ("chosen.<i>"), which come after the prompt at once, and so are not step's."""
    runnable = open_runnable(request["opener"], request["folder"], request["threads"], request.get("openmp"))
    logits, texts = {}, []
    for i, prompt in enumerate(request["prompts"]):
        heard = _Heard(runnable)
        texts.append([*prompt, *generate(heard, prompt, request["new_tokens"]).ids])
        logits[f"prefill.{i}"] = heard.logits[0]
        logits[f"chosen.{i}"] = torch.stack([piece[-1] for piece in heard.logits])
        runnable.reset()
        logits[f"step.{i}"] = torch.cat([runnable.step(token).clone() for token in torch.tensor(texts[-1]).split(1)])
    save_file(logits, request["answers"])
    return texts


class _Heard:
    """A Runnable that keeps what it answered: logits, call by call."""

    def __init__(self, runnable: Runnable) -> None:
        self._runnable = runnable
        self.context = runnable.context
        self.logits: list[Tensor] = []

    def reset(self) -> None:
        """Forget what was fed; the answers stay."""
        self._runnable.reset()

    def step(self, ids: Tensor) -> Tensor:
        """See Runnable."""
        self.logits.append(self._runnable.step(ids).clone())
        return self.logits[-1]


def distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Distance:
    """pairs: (logits [n, vocab], the logits they should be). All positions of all pairs together."""
    relative, largest, kls, same = [], 0.0, [], []
    for given, wanted in pairs:
        difference = (given - wanted).float()
        relative += (difference.norm(dim=-1) / wanted.norm(dim=-1)).tolist()
        largest = max(largest, float(difference.abs().max()))
        base = torch.log_softmax(wanted.double(), -1)
        kls += (base.exp() * (base - torch.log_softmax(given.double(), -1))).sum(-1).clamp(min=0).tolist()
        same += (given.argmax(-1) == wanted.argmax(-1)).float().tolist()
    n = len(relative)
    return Distance(
        n, quantile(relative, 0.5), max(relative), largest, sum(kls) / n, max(kls), sum(same) / n, tuple(relative)
    )


def _logits(program: Program, texts: Sequence[Sequence[int]], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The Program's logits [n, vocab] on each text of n tokens: with a cache token by token, else at once."""
    pieces = [part for text in texts for part in _pieces(program, torch.tensor(text))]
    rows = iter(run_pieces(program, pieces, dtype=dtype))
    return [torch.cat([next(rows)[0][0] for _ in _pieces(program, torch.tensor(text))]) for text in texts]


def _pieces(program: Program, text: Tensor) -> list[tuple[Tensor, ...]]:
    """What the program is fed, call by call."""
    positions = torch.arange(len(text))
    if program.state:
        return [(token[None], position) for token, position in zip(text.split(1), positions.split(1), strict=True)]
    return [(text[None], positions[None])[: len(program.inputs)]]


def _first_difference(prompt: int, new: Sequence[int], ours: Tensor, theirs: Tensor) -> Difference | None:
    """new: the tokens that the artifact chose; row i of the logits is what token i is chosen by."""
    for step, (chosen, mine, other) in enumerate(zip(new, ours, theirs, strict=True)):
        best = int(mine.argmax())
        if best != chosen:
            noise = float((mine - other).square().mean().sqrt())
            return Difference(prompt, step, best, chosen, float(mine[best] - mine[chosen]), noise)
    return None
