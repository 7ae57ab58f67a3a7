"""The byte table before anything is written, from shapes and encodings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drawplate.backendbase import ByteRow, encoding_of, state_rows
from drawplate.backends.xnnpack.account import CONSTANTS, GRAPHS, PADDING, PROGRAM
from drawplate.backends.xnnpack.ops_rotation import block_of, is_inverse, stored_piece
from drawplate.backends.xnnpack.runner import FILE
from drawplate.backends.xnnpack.serialise import GroupScales
from drawplate.backends.xnnpack.target import TARGET, is_groups4
from drawplate.canonical.match import aten
from drawplate.encoding import QTensor
from drawplate.hadamard import pieces
from drawplate.program import Program, Weight
from drawplate.sources.source import Assets

ours = torch.ops.drawplate
# Measured on decoders of 2 to 30 layers; in all less than half a per cent of a small model's file.
HEADER = 5000
GRAPH_BYTES = 250  # of a float32 operator, in its delegate
CALL_BYTES = 75  # what delegates cost in the program, per float32 operator in them
ROUND_BYTES = 3300  # of rounding what one attention reads
KERNEL_BYTES = 490  # of any other operator, which is an instruction of the program


def predict(program: Program, assets: Assets, group_scales: GroupScales = "bf16") -> tuple[ByteRow, ...]:
    """One row per weight as it will be stored, the rest estimated. Scales in f32 are part of a delegate's graph."""
    inline = {n: scale_bytes(w) for n, w in program.weights.items() if group_scales == "f32" and scale_bytes(w)}
    rows = [
        ByteRow(name, "weight", encoding_of(w), FILE, stored_bytes(program, name) - inline.get(name, 0))
        for name, w in program.weights.items()
    ]
    values = [n.meta["val"] for n in program.nodes() if isinstance(n.meta["val"], Tensor)]
    turns = [(pieces(block_of(n)), is_inverse(n)) for n in program.nodes(ours.hadamard.default)]
    matrices = dict(stored_piece(order, inverse) for turn, inverse in turns for order in turn)
    inside = sum(v.dtype == torch.float32 for v in values)
    outside = sum(v.is_floating_point() for v in values) - inside
    inside += sum(len(turn) for turn, _ in turns)
    rounding = ROUND_BYTES * sum(1 for _ in program.nodes(ours.cached_attention.encoded))
    rows += [
        ByteRow(GRAPHS, "graph", "", FILE, inside * GRAPH_BYTES + 2 * sum(inline.values())),
        ByteRow(PROGRAM, "graph", "", FILE, HEADER + inside * CALL_BYTES + outside * KERNEL_BYTES + rounding),
        ByteRow(CONSTANTS, "graph", "", FILE, sum(m.nbytes for m in matrices.values())),
        ByteRow(PADDING, "padding", "", FILE, 0),
    ]
    files = [ByteRow(f.name, "asset", "", f.name, f.stat().st_size) for f in assets.files]
    return (*rows, *state_rows(program), *files)


def scale_bytes(weight: Weight) -> int:
    """Of the bf16 scales of 4-bit groups; 0 of any other weight."""
    grouped = isinstance(weight, QTensor) and is_groups4(weight.encoding)
    return 2 * math.prod(weight.encoding.scale_shape(weight.shape)) if grouped else 0  # type: ignore[union-attr]


def stored_bytes(program: Program, name: str) -> int:
    """A weight's bytes in the file: twice where embedding and linear kernels want other layouts of one table."""
    weight = program.weights[name]
    targets = {n.target for n in program.readers(name)}
    tied = {aten.linear.default, aten.embedding.default} <= targets
    if not tied or not isinstance(weight, QTensor) or weight.encoding.bits in TARGET.tied_bits:
        return weight.nbytes
    return weight.nbytes + weight.encoding.code_bytes(weight.shape)  # one set of scales serves both
