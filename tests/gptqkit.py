"""Tiny checkpoints of several architectures for the tests of what writes and reads checkpoints; made once per run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from architectures import build

from drawplate.canonical import canonicalise
from drawplate.capture import Captured, capture
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.runner import run_passes
from drawplate.sources.quiet import quiet_transformers

FOLDERS = tempfile.TemporaryDirectory(prefix="drawplate-tests-")


@cache
def source(name: str) -> Path:
    """A folder of the architecture's model in float16, as save_pretrained leaves it."""
    folder = Path(FOLDERS.name, name)
    with quiet_transformers():
        build(name).to(torch.float16).save_pretrained(folder)
    return folder


@cache
def opened(name: str) -> Captured:
    """source(name), captured and canonical."""
    captured = capture(source(name), name=name)
    return Captured(canonicalise(captured.program), captured.assets)


def after(program: Program, *passes: Pass) -> Program:
    """The program behind these passes."""
    return run_passes(program, passes, Env()).program
