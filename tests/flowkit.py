"""Small passes and a backend to run the flow on; each does a real thing to a real program, or lies about it."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import pytest
import torch

from drawplate.backendbase import Backend, ByteRow, Emission, weight_rows
from drawplate.capture import Assets
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.errors import Refusal
from drawplate.passbase import Certificate, Env, Fact, Invariant, Pass
from drawplate.plugins import hookimpl
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.target import Target
from drawplate.text import parse_program

TEXT = """// drawplate text 1
program mlp(%x: f32[b, 64]) where 1 <= b <= 64 {
  weight @up.weight : f32[128, 64] = seed(1)
  weight @down.weight : f32[64, 128] = seed(2)
  %0 : f32[b, 128] = aten.linear(%x, @up.weight)  // up
  %1 : f32[b, 128] = aten.silu(%0)
  %2 : f32[b, 64] = aten.linear(%1, @down.weight)  // down
  return %2
}
"""


def mlp() -> Program:
    """Two linears and an activation; the weights are too large to be SCALED."""
    program = parse_program(TEXT)
    return replace(program, weights=MappingProxyType({n: 10 * w for n, w in plain(program).items()}))


def _largest(program: Program) -> list[str]:
    """Every weight's largest element is at most 1."""
    return [f"{n} reaches {w.abs().max():.2f}" for n, w in plain(program).items() if w.abs().max() > 1 + 1e-6]


def plain(program: Program) -> dict[str, torch.Tensor]:
    """The weights that are no integers."""
    return {name: w for name, w in program.weights.items() if not isinstance(w, QTensor)}


SCALED = Fact("weights.scaled", _largest)


class SameShapes(Invariant):
    """Every weight that stays has its shape."""

    name: ClassVar[str] = "same-shapes"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        other = [n for n, w in after.weights.items() if tuple(w.shape) != tuple(before.weights[n].shape)]
        return Certificate("", self.name, not other, float(len(other)), 0.0, ", ".join(other))


@dataclass(frozen=True)
class ScaleWeights(Pass):
    """Divide each weight by its largest element times `by`."""

    name: ClassVar[str] = "scale-weights"
    provides: ClassVar[frozenset[Fact]] = frozenset({SCALED})
    keeps: ClassVar[tuple[Invariant, ...]] = (SameShapes(),)
    by: float = 1.0

    def run(self, program: Program, env: Env) -> Program:
        edit = program.edit()
        for name, w in plain(program).items():
            edit.weights[name] = w / (w.abs().max() * self.by)
        return edit.finish()


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Store the weights as integers, in groups."""

    name: ClassVar[str] = "round-weights"
    requires: ClassVar[frozenset[Fact]] = frozenset({SCALED})
    bits: int = 4
    block: tuple[int, ...] = (1, 32)
    kind: Literal["sym", "asym"] = "sym"
    skip: tuple[str, ...] = ()

    def run(self, program: Program, env: Env) -> Program:
        edit = program.edit()
        for name, w in plain(program).items():
            if name in self.skip:
                env.refuse(Refusal(name, "", "the recipe skips it"))
            elif w.dim() == 2:
                edit.weights[name] = encode(w, Encoding(self.bits, self.block, self.kind == "sym"))
        return edit.finish()


@dataclass(frozen=True)
class AddNoise(Pass):
    """Adds random numbers: deterministic only because the runner sets the seed."""

    name: ClassVar[str] = "add-noise"
    preserves: ClassVar[frozenset[Fact]] = frozenset()
    slow: ClassVar[bool] = True
    note: str | None = None
    strength: float = 0.1
    folder: Path | None = None
    sleep_seconds: float = 0.0

    def run(self, program: Program, env: Env) -> Program:
        time.sleep(self.sleep_seconds)
        if self.folder is not None:
            with (self.folder / "runs").open("a") as file:
                file.write("x")
        edit = program.edit()
        for name, w in plain(program).items():
            edit.weights[name] = w + self.strength * torch.randn_like(w)
        return edit.finish()


@dataclass(frozen=True)
class TellLies(Pass):
    """Breaks its word in the way that is asked for."""

    name: ClassVar[str] = "tell-lies"
    how: Literal["provides", "preserves", "keeps", "changes", "writes", "illegal", "raises", "none"] = "none"

    @property
    def requires(self) -> frozenset[Fact]:  # type: ignore[override]
        return frozenset()

    @property
    def provides(self) -> frozenset[Fact]:  # type: ignore[override]
        return frozenset({SCALED} if self.how == "provides" else ())

    @property
    def preserves(self) -> frozenset[Fact]:  # type: ignore[override]
        return frozenset({SCALED} if self.how == "preserves" else ())

    @property
    def keeps(self) -> tuple[Invariant, ...]:  # type: ignore[override]
        return (SameShapes(),)

    def run(self, program: Program, env: Env) -> Program:
        edit = program.edit()
        match self.how:
            case "provides" | "preserves":
                edit.weights["up.weight"] = 5 + plain(program)["up.weight"]
            case "keeps":
                (first, *_) = edit.nodes(torch.ops.aten.linear.default)
                with edit.graph.inserting_before(first):
                    wide = edit.weight("up.weight", torch.ones(128, 65))
                    narrow = edit.call(torch.ops.aten.slice.Tensor, wide, 1, 0, 64, like=first)
                first.args = (first.args[0], narrow)
            case "changes":
                program.graph.erase_node(next(iter(reversed(program.graph.nodes))))
            case "writes":
                plain(program)["up.weight"].mul_(2)
            case "illegal":
                return replace(program, weights=MappingProxyType({**program.weights, "idle": torch.zeros(2)}))
            case "raises":
                raise IndexError("there is no seventh layer")
        return edit.finish()


@dataclass(frozen=True)
class Plain(Backend):
    """Writes each weight's bytes one behind the other, dequantised, and nothing else."""

    name: ClassVar[str] = "plain"
    target: ClassVar[Target] = Target("plain", {})
    context: int = 128
    refuses: bool = False
    lies: int = 0

    def check(self, program: Program) -> list[Refusal]:
        return [Refusal(n, "weight", "is integers") for n in program.encodings] if self.refuses else []

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        rows = [replace(r, encoding="f32", file="weights.bin") for r in weight_rows(program)]
        return tuple(replace(r, bytes=4 * math.prod(program.weights[r.name].shape)) for r in rows)

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        path, rows = into / "weights.bin", []
        with path.open("wb") as file:
            for name, w in program.weights.items():
                values = w.dequantize() if isinstance(w, QTensor) else w
                size = file.write(values.numpy().tobytes())
                rows.append(ByteRow(name, "weight", "f32", "weights.bin", size + self.lies))
        return Emission((path,), tuple(rows), notes=("plain bytes",))


PASSES: dict[str, type[Pass]] = {p.name: p for p in (ScaleWeights, RoundWeights, AddNoise, TellLies)}
SMALL = """description = "scaled and rounded"
[backend]
name = "plain"
[[passes]]
name = "scale-weights"
[[passes]]
name = "round-weights"
block = [1, 64]
"""


class Kit:
    """The things above as a plugin."""

    @hookimpl
    def drawplate_passes(self) -> list[type[Pass]]:
        return list(PASSES.values())

    @hookimpl
    def drawplate_backends(self) -> list[type[Backend]]:
        return [Plain]

    @hookimpl
    def drawplate_recipes(self) -> dict[str, str]:
        return {"small": SMALL}


def kit_session(**more: object) -> Session:
    """A session with the kit, the built-ins and nothing else. more: further plugins by name."""
    return Session({"kit": Kit(), **more}, environment={"DRAWPLATE_PLUGINS": ""})


@contextmanager
def tiny_disk(place: Path) -> Iterator[Path]:
    """A file system of 64 kB, mounted at a new folder; skips the test where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
