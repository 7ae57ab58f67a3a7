"""What a backend is, and how it accounts for the bytes it writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from drawplate.encoding import QTensor
from drawplate.errors import Refusal, RuntimeMissing
from drawplate.textual.words import DTYPES, operator_name

if TYPE_CHECKING:
    import torch

    from drawplate.capture import Assets
    from drawplate.passbase import Pass
    from drawplate.program import Program, Weight
    from drawplate.runtime import Runnable
    from drawplate.target import Target

Role = Literal["weight", "asset", "graph", "padding", "state"]


@dataclass(frozen=True)
class ByteRow:
    """One line of the byte table. The rows of a file add up to its size exactly.

    name: the weight as the program calls it, or what else lies there ("graph", "tokenizer.json").
    role: "weight", "asset" (tokenizer and the like), "graph" (instructions, names, headers), "padding", or
    "state". encoding: how it is stored, `f32` or an Encoding's text; empty where that says nothing.
    file: relative to the artifact's folder; empty for role "state", which is the device's memory, no file's.
    """

    name: str
    role: Role
    encoding: str
    file: str
    bytes: int


@dataclass(frozen=True)
class Fallback:
    """An op that runs outside the fast path. share_bytes, share_macs: 0 to 1, of all the weights' bytes and
    of all multiply-adds per token."""

    op: str
    count: int
    share_bytes: float
    share_macs: float
    why: str


@dataclass(frozen=True)
class Emission:
    """What a backend wrote. files: every one, in the folder that it was given. notes: what the user should
    know."""

    files: tuple[Path, ...]
    bytes: tuple[ByteRow, ...]
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()


class Backend(ABC):
    """Turns a program into files that a stock runtime loads. Subclass as a frozen dataclass: the fields are
    the options. target: data, the menu of encodings per role and other limits; reading it costs nothing.
    opener: "module:function" that opens an artifact's folder in a process that imports nothing else, so that its
    memory can be measured (drawplate.isolate); empty: this class's open(), with all that its module imports.
    openmp: OpenMP threads in that process, for a runtime with a pool of its own; None: as many as it is to run with.
    """

    name: ClassVar[str]
    target: ClassVar[Target]
    opener: ClassVar[str] = ""
    openmp: ClassVar[int | None] = None

    @abstractmethod
    def check(self, program: Program) -> list[Refusal]:
        """Every reason why this program cannot be emitted, not only the first. Asked after the passes, and
        before them of a rehearsed program whose weights are on the meta device: do not look at contents."""

    def check_source(self, program: Program, assets: Assets) -> list[Refusal]:
        """Reasons that show only beside what came with the model, such as its config.json; asked as check() is."""
        return []

    def refusals(self, program: Program, assets: Assets | None = None) -> list[Refusal]:
        """check(), check_source() where assets are given, and what the target says by itself: what a compile asks."""
        source = [] if assets is None else self.check_source(program, assets)
        return [*_rotations(program, self.target), *self.check(program), *source]

    def legalise(self) -> tuple[Pass, ...]:
        """The backend's own last passes, scheduled behind the recipe's."""
        return ()

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        """The byte table that emit() will give, from shapes and encodings alone; `file` may stay empty. Override
        where the files' own ways (headers, copies of assets, another dtype for scales) make a difference of a per
        cent in all."""
        return (*weight_rows(program), *state_rows(program))

    @abstractmethod
    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        """Write the files into the folder `into`, which exists and is empty, and account for every byte."""

    def open(self, folder: Path) -> Runnable:
        """The artifact, ready to run on this host. Raises RuntimeMissing where no runtime exists."""
        raise RuntimeMissing(
            f"an artifact of backend {self.name!r} does not run on this machine",
            where=str(folder),
            why="the backend brings no runtime for this host",
            fix="run it on the device, or evaluate the Program instead",
        )


def _rotations(program: Program, target: Target) -> list[Refusal]:
    """Every rotation that the program computes as it runs, where the target has nothing for that."""
    if target.rotates:
        return []
    return [
        Refusal(
            str(node.meta.get("site") or node.name),
            "drawplate.hadamard",
            f"nothing in {target.name} turns activations while the model runs",
            str(node.meta.get("source") or ""),
            "leave r3 and r4 out of rotate: the other rotations are in the weights",
        )
        for node in program.graph.nodes
        if node.op == "call_function" and operator_name(node.target) == "drawplate.hadamard"
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """`f32`, `bf16`, `u8`: as the textual IR has it."""
    return DTYPES[dtype]


def encoding_of(weight: Weight) -> str:
    """`f32` for a plain tensor, the Encoding's text for a quantised one."""
    return str(weight.encoding) if isinstance(weight, QTensor) else dtype_name(weight.dtype)


def weight_rows(program: Program, file: str = "") -> tuple[ByteRow, ...]:
    """One row per weight, in the bytes that its dtype or encoding takes when packed densely."""
    weights = program.weights.items()
    return tuple(ByteRow(name, "weight", encoding_of(w), file, w.nbytes) for name, w in weights)


def state_rows(program: Program) -> tuple[ByteRow, ...]:
    """One row per state tensor: what the device's memory holds between calls, in no file."""
    rows = []
    for spec in program.state:
        count = 1
        for length in spec.shape:
            count *= int(length)
        rows.append(ByteRow(spec.name, "state", dtype_name(spec.dtype), "", count * spec.dtype.itemsize))
    return tuple(rows)
