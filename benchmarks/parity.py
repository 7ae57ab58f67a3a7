"""Is the .pte the Program? Five prompts, 32 greedy tokens each, every position; in separate processes.

    python benchmarks/parity.py MODEL ARTIFACT --recipe meta-8da4w

Prints the distances, what float32 rounding alone does to the same tokens (the floor), and the first token of each
prompt that was chosen otherwise, with the margin by which the Program preferred its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from drawplate.api import compress
from drawplate.artifact import Artifact
from drawplate.capture import capture
from drawplate.isolate import Subject
from drawplate.parity import parity
from drawplate.plugins.manager import Session
from drawplate.verifying import prompts, summary


def main(
    model: Path, artifact: Path, recipe: str = "meta-8da4w", new_tokens: Annotated[int, typer.Option()] = 32
) -> None:
    """Measure and print, as JSON."""
    program = compress(model, recipe, cache=False)
    opened = Artifact.load(artifact)
    subject = Subject.of(opened.folder, type(opened.backend(Session())))
    found = parity(program, subject, prompts(program, capture(model).assets), new_tokens=new_tokens)
    near = [d.margin / d.noise for d in found.differences]
    print(json.dumps({**summary(found), "margins_over_noise": [round(x, 2) for x in near]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
