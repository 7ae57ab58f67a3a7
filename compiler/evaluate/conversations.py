"""Conversations and preferences as questions: what was asked, the answer to learn, and one that is worse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drawplate.calibration import Question
from drawplate.errors import EvaluationError
from drawplate.evaluate.choices import task_text
from drawplate.tokens import Message, Tokenizer

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def load_conversations(path: Path, tokenizer: Tokenizer, longest: int) -> Iterator[Question]:
    """Questions with one answer, or with a better and a worse one, under the model's own chat template. Those of more
    than `longest` tokens are left out.

    A JSON list, or an object per line, each in one of four ways: {"instruction", "input", "output"} (Alpaca);
    {"messages": [..]} whose last one is the answer; {"prompt", "chosen", "rejected"}, texts or lists of messages;
    {"conversations": [{"from", "value"}], "chosen", "rejected"} (ShareGPT). Raises EvaluationError with the entry that
    is wrong.
    """
    for number, row in enumerate(_rows(path), 1):
        try:
            asked, answers = _read(row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise EvaluationError(
                "not a conversation with an answer",
                where=f"{path}, entry {number}",
                why=f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error),
                fix='write {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}',
            ) from error
        try:
            choices = tuple(_tokens(tokenizer, asked, answer) for answer in answers)
        except EvaluationError as error:
            why = ": ".join(filter(None, (error.what, error.why)))
            raise EvaluationError(
                "not a conversation for this model", where=f"{path}, entry {number}", why=why
            ) from error
        if max(len(given) + len(rest) for given, rest in choices) <= longest:
            yield Question(choices, tuple(map(len, answers)), 0)


def are_conversations(path: Path) -> bool:
    """Is it a file of these, and no choice task?"""
    try:
        row: Any = next(iter(_rows(path)), {})
    except EvaluationError:
        return False  # what reads a choice task says what is wrong, and in which line
    return isinstance(row, Mapping) and bool(row.keys() & {"instruction", "messages", "chosen"})


def _rows(path: Path) -> Sequence[Any]:
    """Of a JSON list, or of lines of JSON."""
    text = task_text(path)
    try:
        return list(json.loads(text)) if text.lstrip().startswith("[") else list(map(json.loads, _lines(text)))
    except ValueError as error:
        raise EvaluationError("the task is no JSON", where=str(path), why=str(error)) from error


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _read(row: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    """What was asked, and the answers, best first."""
    if "instruction" in row:
        asked = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        return [_message("user", asked)], [_text(row["output"])]
    if "messages" in row:
        *before, last = map(_said, row["messages"])
        if last["role"] != "assistant":
            raise ValueError(f"the last message is of the {last['role']}, and not an answer")
        return before, [last["content"]]
    asked = row["conversations"] if "conversations" in row else row["prompt"]
    messages = [_message("user", asked)] if isinstance(asked, str) else [_said(m) for m in asked]
    return messages, [_answer(row["chosen"]), _answer(row["rejected"])]


def _answer(said: Any) -> str:
    """A text, a message, or messages of which the last counts."""
    last = said[-1] if isinstance(said, list) else said
    if isinstance(last, str):
        return _text(last)
    message = _said(last)
    if message["role"] != "assistant":
        raise ValueError(f"an answer of the {message['role']}")
    return _text(message["content"])


def _said(message: Mapping[str, str]) -> Message:
    """{"role", "content"}, or ShareGPT's {"from", "value"}."""
    role, content = ("role", "content") if "role" in message else ("from", "value")
    return _message(message[role], message[content])


def _message(role: str, content: str) -> Message:
    if role not in ROLES:
        raise ValueError(f"a message of {role!r}, and not of user, assistant or system")
    if not isinstance(content, str):
        raise ValueError(f"a message that is {content!r}")
    return {"role": ROLES[role], "content": content}


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError(f"an answer that is {text!r}")
    return text


def _tokens(tokenizer: Tokenizer, asked: list[Message], answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """As tokens: what was asked, ready for the answer, and the answer with what ends it."""
    given = tokenizer.render(asked, today=False)
    whole = tokenizer.render([*asked, {"role": "assistant", "content": answer}], reply=False, today=False)
    if not whole.startswith(given):
        why = "with an answer behind it, what was asked reads otherwise"
        raise EvaluationError("the model's chat template cannot be used for training", why=why)
    return tuple(tokenizer.encode(given)), tuple(tokenizer.encode(whole.removeprefix(given)))
