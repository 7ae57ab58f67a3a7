"""A program against the architecture in its config.json: what a checkpoint of it holds, or why there can be none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drawplate.analysis.sites import sites
from drawplate.checkpoints.architecture import Architecture, architecture_of
from drawplate.checkpoints.likeness import Likeness, constants_differ, likeness
from drawplate.checkpoints.origins import is_transpose, stored_in, taken_back
from drawplate.encoding import QTensor
from drawplate.errors import CaptureError, Refusal
from drawplate.program import Program, Weight
from drawplate.sources.source import Assets


@dataclass(frozen=True)
class Match:
    """config: config.json, its tie as the program has it. names: of the program's weights in the checkpoint; those that
    the loader computes itself are left out. refusals: why a checkpoint would not be the program."""

    program: Program
    config: Mapping[str, Any]
    architecture: Architecture
    likeness: Likeness
    names: Mapping[str, str]
    refusals: tuple[Refusal, ...]

    def module(self, weight: str) -> str:
        """The module that holds a weight of the program: its name in the checkpoint up to the last dot."""
        return self.names[weight].rpartition(".")[0]

    def value(self, weight: str, dtype: torch.dtype) -> Tensor:
        """A floating-point weight of the program as the checkpoint has it: `1 + w` as w. Computed in float64."""
        held = self.program.weights[weight]
        assert isinstance(held, Tensor)
        origin = self._origin(weight)
        if origin.name:
            return held.to(dtype)
        return taken_back(origin, held.double(), self.architecture.stored, self.architecture.constant).to(dtype)

    def filled(self) -> dict[str, Tensor]:
        """Weights of the checkpoint that the program has done without, float32."""
        found = {}
        for theirs, number in self.likeness.filled.items():
            origin = self.architecture.origins[theirs]
            full = torch.full(origin.shape, number, dtype=torch.float64)
            name = stored_in(origin, self.architecture.stored)
            value = taken_back(origin, full, self.architecture.stored, self.architecture.constant)
            found[name] = value.float()
        return found

    def shape(self, weight: str) -> tuple[int, ...]:
        """Of a weight as the checkpoint has it."""
        return self.architecture.stored[self.names[weight]]

    def _origin(self, weight: str) -> Any:
        return self.architecture.origins[self.likeness.names[weight]]


def match(program: Program, assets: Assets) -> Match | Refusal:
    """Hold the program against the architecture that came with it; a Refusal if there is none to hold it against."""
    files = [f for f in assets.files if f.name == "config.json"]
    if not files:
        return Refusal(
            program.name, "", "no config.json came with it, which says what a loader builds",
            fix="compile from a Hugging Face folder",
        )  # fmt: skip
    try:
        config = json.loads(files[0].read_text("utf-8"))
        architecture = architecture_of(config)
        if architecture.tied and not any(s.role == "tied" for s in sites(program)):
            config, architecture = _untied(config), architecture_of(config, tied=False)
    except CaptureError as error:
        return Refusal(program.name, "", f"the architecture of its config.json cannot be built: {error.what}")
    return match_with(program, config, architecture)


def match_with(program: Program, config: Mapping[str, Any], architecture: Architecture) -> Match:
    """The same, of an architecture that is at hand."""
    found = likeness(program, architecture.program)
    refusals = list(found.refusals)
    names: dict[str, str] = {}
    constants = {}
    for mine, theirs in found.names.items():
        origin = architecture.origins[theirs]
        name = stored_in(origin, architecture.stored)
        if name:
            names[mine] = name
            refusals += _cannot_turn(mine, program.weights[mine], origin)
        elif origin.names & set(architecture.stored):
            why = f"it is made from {' and '.join(sorted(origin.names))}, in a way that cannot be gone back"
            refusals.append(Refusal(mine, "weight", why))
        else:
            constants[theirs] = architecture.constant(theirs)
    names = {name: names[name] for name in program.weights if name in names}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    refusals += [Refusal(name, "weight", "several weights of the program are made from it") for name in twice]
    if not refusals:
        refusals += constants_differ(program, found, constants)
    return Match(program, config, architecture, found, names, tuple(refusals))


def _cannot_turn(name: str, weight: Weight, origin: Any) -> list[Refusal]:
    if isinstance(weight, QTensor) and not origin.name and not is_transpose(origin):
        return [Refusal(name, "weight", "it is stored as integers, and the checkpoint has it before a computation")]
    return []


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model with a head of its own."""
    inner = {
        key: {**value, "tie_word_embeddings": False}
        for key, value in config.items()
        if isinstance(value, dict) and "tie_word_embeddings" in value
    }
    return {**config, **inner, "tie_word_embeddings": False}
