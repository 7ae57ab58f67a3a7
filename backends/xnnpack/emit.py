"""Program -> .pte, step by step, and the account of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from drawplate.backendbase import ByteRow, Emission, Fallback, state_rows
from drawplate.backends.xnnpack import executorch_adapter as executorch
from drawplate.backends.xnnpack.account import account
from drawplate.backends.xnnpack.cost import bytes_read, multiply_adds
from drawplate.backends.xnnpack.form import form
from drawplate.backends.xnnpack.metadata import metadata
from drawplate.backends.xnnpack.ops import ATTENTION, Shapes
from drawplate.backends.xnnpack.outer import Outer, outer
from drawplate.backends.xnnpack.partition import Plan, partition, shapes, write
from drawplate.backends.xnnpack.runner import FILE
from drawplate.backends.xnnpack.serialise import GroupScales
from drawplate.backends.xnnpack.share import Shared, share
from drawplate.canonical.match import argument, aten, value
from drawplate.errors import BackendError
from drawplate.program import Program
from drawplate.sources.source import Assets
from drawplate.textual.words import operator_name


@dataclass(frozen=True)
class Lowered:
    """What was made of a program on the way to its file. program: in `form`."""

    program: Program
    plan: Plan
    outer: Outer


def emit(program: Program, into: Path, assets: Assets, group_scales: GroupScales = "bf16") -> Emission:
    """model.pte, and the model's tokenizer and configuration beside it."""
    path = into / FILE
    lowered = lower(program, path, assets, group_scales)
    shared = share(path)
    layout = executorch.read_layout(path)
    if missing := executorch.without_kernel(layout):
        raise BackendError(
            f"ExecuTorch has no kernel for {', '.join(missing)}",
            where=program.name,
            why="neither its portable kernels nor its custom ones have it",
            fix="replace the operator in the model, or compile for another backend",
        )
    rows = account(path, layout, program, lowered.outer.stored)
    executorch.load(path)
    copied = []
    for file in assets.files:
        shutil.copyfile(file, into / file.name)
        copied.append(into / file.name)
    return Emission(
        (path, *copied),
        (*rows, *state_rows(program), *(ByteRow(f.name, "asset", "", f.name, f.stat().st_size) for f in copied)),
        fallbacks(lowered),
        tuple(notes(lowered, shared, program, rows)),
    )


def lower(program: Program, path: Path, assets: Assets, group_scales: GroupScales) -> Lowered:
    """Write the .pte, nothing shared yet. Raises BackendError for what ExecuTorch has no kernel for."""
    executorch.register_operators()
    formed = form(program)
    plan = partition(formed)
    known: dict[str, Shapes] = {region.key: shapes(region) for region in plan.regions}
    blobs = {region.key: write(region, formed, group_scales).blob() for region in plan.regions}
    around = outer(formed, plan)
    try:
        executorch.lower(around.module, around.inputs, around.dynamic, blobs, known, metadata(program, assets), path)
    except OSError:
        raise  # the disk's trouble, which the caller puts in words
    except Exception as error:
        raise BackendError(
            "ExecuTorch does not lower the program",
            where=program.name,
            why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix="see which operators XNNPACK does not run ('drawplate inspect'); one of them has no kernel",
        ) from error
    return Lowered(formed, plan, around)


def fallbacks(lowered: Lowered) -> tuple[Fallback, ...]:
    """Operators on activations that run neither in XNNPACK nor in a kernel made for them, and what they weigh."""
    weights = lowered.program.weights
    macs = {n: multiply_adds(n) for n in lowered.program.nodes()}
    all_macs, all_bytes = max(1, sum(macs.values())), max(1, sum(w.nbytes for w in weights.values()))
    groups: dict[tuple[str, str], list[fx.Node]] = {}
    for node, why in lowered.plan.outside.items():
        if not meant_outside(node):
            groups.setdefault((operator_name(node.target), why), []).append(node)
    return tuple(
        Fallback(
            op,
            len(nodes),
            bytes_read(nodes, weights) / all_bytes,
            sum(macs[n] for n in nodes) / all_macs,
            why,
        )
        for (op, why), nodes in groups.items()
    )


def meant_outside(node: fx.Node) -> bool:
    """Is it an operator that ExecuTorch's own kernels do best: reading a table, attending, taking the last row?"""
    if node.target in (aten.embedding.default, *ATTENTION):
        return True
    last = node.target is aten.slice.Tensor and argument(node, 2, "start") == -1
    return last and value(node).numel() != 0 and 1 in value(node).shape


def notes(lowered: Lowered, shared: Iterable[Shared], program: Program, rows: Iterable[ByteRow]) -> list[str]:
    """What a user should know besides the numbers."""
    said = []
    regions = lowered.plan.regions
    inside = sum(len(r.nodes) for r in regions)
    said.append(f"{len(regions)} delegates run {inside} operators in XNNPACK")
    kernels = lowered.outer.kernels
    if kernels:
        said.append("custom kernels: " + ", ".join(f"{name} x{count}" for name, count in sorted(kernels.items())))
    counted = Counter(
        operator_name(n.target)
        for n in lowered.plan.positional
        if str(n.target).startswith("aten.") and "sym" not in str(n.target)
    )
    if counted:
        which = ", ".join(f"{name} x{count}" for name, count in sorted(counted.items()))
        said.append(f"once per step, on positions alone: {which}")
    saved = {key.removesuffix(".codes").removesuffix(".scale"): 0 for s in shared for key in s.keys}
    for s in shared:
        saved[s.keys[0].removesuffix(".codes").removesuffix(".scale")] += s.bytes
    said += [
        f"'{name}' is in the file once; a second copy would take {count:,} bytes"
        for name, count in saved.items()
        if count
    ]
    said += [_twice(row, program) for row in rows if _is_twice(row, program)]
    return said


def _is_twice(row: ByteRow, program: Program) -> bool:
    return row.name in program.weights and row.bytes >= 1.5 * program.weights[row.name].nbytes > 1024


def _twice(row: ByteRow, program: Program) -> str:
    extra = row.bytes - program.weights[row.name].nbytes
    why = "the embedding and the linear kernel read it in different layouts"
    return f"'{row.name}' is in the file twice, which takes {extra:,} bytes: {why}"
