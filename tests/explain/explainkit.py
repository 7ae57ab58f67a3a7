"""A small artifact, and what explains it."""

from __future__ import annotations

from pathlib import Path

import torch
from architectures import captured, eager

import drawplate
from drawplate.artifact import Artifact
from drawplate.calibration import Calibration
from drawplate.capture import capture
from drawplate.explain.report import Explanation
from drawplate.explain.twins import Twins, twins
from drawplate.explaining import explain
from drawplate.plugins.manager import Session

BITS4 = "quantize-embedding,quantize-weights{block=1x-1},quantize-weights{where=head,bits=8,block=1x-1}"
BACKEND = "add-kv-cache{context=32},last-position,pack-weights -> xnnpack"
ROUNDED = f"{BITS4},quantize-activations,merge-linears,{BACKEND}"
ROTATED = f"fold-norms,rotate{{r3=false,r4=false}},{BITS4},quantize-activations,{BACKEND}"
ALLOCATED = f"allocate-bits{{budget=60kB,tokens=128}},quantize-activations,merge-linears,{BACKEND}"
TEXT = Calibration.of(torch.randint(3, 97, (4, 32), generator=torch.Generator().manual_seed(0)), "random.txt")
SESSION = Session()


def artifact(
    folder: Path, recipe: str = ROUNDED, name: str = "llama", calibration: Calibration | None = None
) -> Artifact:
    """The tiny model compiled into the folder."""
    model = capture(eager(name), name=name)
    return drawplate.compile(model, recipe, out=folder, session=SESSION, cache=False, calibration=calibration)


def explained(made: Artifact, *, name: str = "llama", measured: int = 99) -> Explanation:
    """On TEXT."""
    return explain(made, captured(name), TEXT, SESSION, measured=measured, calibration=read(made))


def pair(made: Artifact, name: str = "llama") -> Twins:
    """Its programs before and after storing."""
    return twins(made.manifest, captured(name), SESSION, calibration=read(made))


def read(made: Artifact) -> Calibration | None:
    """The text that it was compiled with: TEXT, if any."""
    return TEXT if made.manifest.calibration else None
