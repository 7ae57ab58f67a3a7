"""What the measuring commands are pointed at: a model, or an artifact that a compile left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drawplate.calibration import Calibration
    from drawplate.capture import Captured
    from drawplate.commands.output import Output
    from drawplate.plugins.manager import Session
    from drawplate.program import Program
    from drawplate.runtime import Runnable
    from drawplate.tokens import Tokenizer

LONGEST = 1024  # tokens of a conversation with its answer


@dataclass(frozen=True)
class Opened:
    """A model that can be asked. folder: where its tokenizer is."""

    name: str
    model: Program | Runnable
    folder: Path
    eos: tuple[int, ...]

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises EvaluationError if the folder has none."""
        from drawplate.tokens import Tokenizer

        return Tokenizer.load(self.folder)

    @property
    def runnable(self) -> Runnable:
        """The model token by token; a Program is run again over everything that was fed."""
        from drawplate.program import Program
        from drawplate.runtime import ProgramRunner

        return ProgramRunner(self.model) if isinstance(self.model, Program) else self.model


def open_model(source: str, session: Session, out: Output) -> Opened:
    """A folder, a hub name or a GGUF file, captured; or an artifact, in its backend's runtime on this host."""
    from drawplate.artifact import is_artifact, load_whole

    name = Path(source).name or source
    if is_artifact(source):
        with out.busy(f"open {name}"):
            artifact = load_whole(source)
            return Opened(name, artifact.open(session), artifact.folder, end_tokens(artifact.folder))
    captured = capture_canonical(source, out)
    return Opened(name, captured.program, captured.assets.folder or Path(source), captured.assets.eos)


def read_calibration(
    file: Path | None, model: str, tokens: int, seed: int, task: Path | None = None
) -> Calibration | None:
    """Windows of 512 tokens, drawn by the recipe's seed, and a task's questions. Raises EvaluationError."""
    from drawplate.calibration import load_text
    from drawplate.errors import EvaluationError
    from drawplate.tokens import Tokenizer

    if file is None:
        if task is not None:
            raise EvaluationError(
                "a calibration task without a text", where=str(task), fix="give a text too: --calibration FILE"
            )
        return None
    tokenizer = Tokenizer.load(model)
    try:
        text = load_text(file, tokenizer, 512, max(1, tokens // 512), seed)
    except EvaluationError as error:
        fix = f"{error.fix} (--calibration-tokens says how many in all)" if "ask for" in error.fix else error.fix
        raise EvaluationError(error.what, where=error.where, why=error.why, fix=fix) from error
    if task is None:
        return text
    from drawplate.evaluate.choices import load_items, questions
    from drawplate.evaluate.conversations import are_conversations, load_conversations

    if are_conversations(task):
        found = list(load_conversations(task, tokenizer, longest=LONGEST))
        if not found:
            why = f"each is of more than {LONGEST} tokens"
            raise EvaluationError("there is no conversation to train on", where=str(task), why=why)
        return text.asking(found, f"{len(found)} of {task.name} up to {LONGEST} tokens")
    return text.asking(questions(load_items(task), tokenizer), task.name)


def compressed(
    opened: Opened, recipe: str, session: Session, out: Output, calibration: Calibration | None = None
) -> Opened:
    """The model after the recipe's passes. Raises EvaluationError if it is an artifact, which has had them."""
    from dataclasses import replace

    from drawplate.api import compress
    from drawplate.errors import EvaluationError
    from drawplate.program import Program

    if not isinstance(opened.model, Program):
        raise EvaluationError(
            f"recipe {recipe!r} cannot be tried on an artifact",
            where=opened.name,
            why="its passes have been run",
            fix="name the model that it was made from",
        )
    with out.busy(f"compress {recipe}"):
        program = compress(opened.model, recipe, calibration=calibration, session=session)
    return replace(opened, name=recipe, model=program)


def capture_canonical(source: str, out: Output) -> Captured:
    """The model's program in canonical form, and what came with it."""
    from dataclasses import replace

    from drawplate.canonical import canonicalise
    from drawplate.capture import capture

    with out.busy(f"capture {Path(source).name or source}"):
        captured = capture(source)
        return replace(captured, program=canonicalise(captured.program))


def end_tokens(folder: Path) -> tuple[int, ...]:
    """Token ids that end a text, as generation_config.json or config.json has them."""
    for file in ("generation_config.json", "config.json"):
        path = folder / file
        found: Any = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()
