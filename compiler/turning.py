"""Writing a plan of rotations into a program: weights turned in float64, maps and online transforms in the graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate import hadamard
from drawplate.analysis.rotations import Map, Online, Plan, Turn
from drawplate.canonical.match import argument, aten, is_call
from drawplate.errors import Refusal
from drawplate.program import Editor, Program

HADAMARD = torch.ops.drawplate.hadamard.default
Matrices = Mapping[str, Tensor]  # by the rotation's key, [count, width, width]


def turned(weight: Tensor, turn: Turn, matrices: Tensor) -> Tensor:
    """The weight in the turned basis: see Turn. matrices: [count, d, d] of weight's dtype. Differentiable in both.

    >>> turned(torch.tensor([[1.0, 2.0]]), Turn("w", 1), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    tensor([[2., 1.]])
    """
    matrices = matrices.to(weight.device)
    last = weight.movedim(turn.axis, -1)
    if turn.index is None or turn.of is None:
        return (last @ matrices[0]).movedim(-1, turn.axis)
    index, of = turn.index.to(weight.device), turn.of.to(weight.device)
    blocks = torch.einsum("...bd,bde->...be", last[..., index], matrices[of])
    return last.index_copy(-1, index.flatten(), blocks.flatten(-2)).movedim(-1, turn.axis)


def online_turned(weight: Tensor, axis: int, block: int) -> Tensor:
    """The weight [.., n] that reads what an online transform has turned."""
    return hadamard.apply(weight.movedim(axis, -1), block).movedim(-1, axis)


def map_weight(scale: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    """The weight [d, d] of a linear from one turned basis into another, with one factor per channel in between.

    scale: [d] in the old bases; before, after: [d, d] or None. The new input is x R_b, the new output (x diag(g)) R_a.
    """
    full = torch.diag(scale) if before is None else before.to(scale.device).T * scale
    full = full if after is None else full @ after.to(scale.device)
    return full.T


def weight_turns(plan: Plan) -> dict[str, list[tuple[str | int, Turn]]]:
    """For each weight what turns it: by the key of a rotation, or by the block of an online transform."""
    turns: dict[str, list[tuple[str | int, Turn]]] = {}
    for rotation in plan.rotations:
        for turn in rotation.turns:
            turns.setdefault(turn.weight, []).append((rotation.key, turn))
    for online in plan.online:
        for turn in online.turns:
            turns.setdefault(turn.weight, []).append((online.block, turn))
    return turns


def turned_weight(weight: Tensor, turns: Sequence[tuple[str | int, Turn]], matrices: Matrices) -> Tensor:
    """The weight after all of its turns, in its own dtype."""
    for how, turn in turns:
        if isinstance(how, int):
            weight = online_turned(weight, turn.axis, how)
        else:
            weight = turned(weight, turn, matrices[how].to(weight.dtype))
    return weight


def turn_program(
    program: Program, plan: Plan, matrices: Matrices, label: Any = iter, *, dense: bool = False
) -> Program:
    """The program with everything of the plan turned. matrices: float64. label: wraps the weights, for a bar.

    The turned weights are float64 and the graph says their dtype: see Editor.wide. A map between bases that Hadamard
    matrices turn is two fast transforms and a product per channel. dense: it is a linear all the same, for those who
    vary the matrices and for targets that run no such transform.
    """
    editor = program.edit()
    turns = weight_turns(plan)
    for name in label(list(turns)):
        weight: Any = program.weights[name]
        editor.wide(name, turned_weight(weight.double(), turns[name], matrices))
    for online in plan.online:
        _insert(editor, online)
    names: dict[tuple[str, str | None, str | None], str] = {}
    for placed in plan.maps:  # after what reads their values as they were
        key = (placed.diagonal.weight, placed.before, placed.after)
        names.setdefault(key, editor.unused(map_name(placed.diagonal.weight)))
        _place(editor, program, placed, names[key], matrices, dense=dense)
    return editor.finish()


def map_name(weight: str) -> str:
    """The name of the map that takes the place of a norm's weight.

    >>> map_name("model.norm.weight")
    'model.norm.map.weight'
    """
    return f"{weight.removesuffix('.weight')}.map.weight"


def _place(editor: Editor, program: Program, placed: Map, name: str, matrices: Matrices, *, dense: bool) -> None:
    """The norm without its weight, or the product's other factor, and then the map."""
    scale: Any = program.weights[placed.diagonal.weight]
    ends = [matrices[key][0] if key is not None else None for key in (placed.before, placed.after)]
    node = editor.of(placed.diagonal.node)
    value = factor_removed(node)
    signs = [hadamard_signs(end) if end is not None else torch.ones(()) for end in ends]
    before, after = signs
    kept = list(node.users)
    with editor.graph.inserting_before(node.next):
        if dense or before is None or after is None:
            editor.wide(name, map_weight(scale.double(), *ends), like=placed.diagonal.weight)
            mapped = editor.call(aten.linear.default, value, editor.weight(name), like=node)
        else:
            factors = scale.double() * before.to(scale.device) * after.to(scale.device)
            editor.wide(name, factors, like=placed.diagonal.weight)
            inverse, size = (placed.width, True), (placed.width,)
            there = editor.call(HADAMARD, value, *inverse, like=node) if placed.before is not None else value
            scaled = editor.call(aten.mul.Tensor, there, editor.weight(name), like=node)
            mapped = editor.call(HADAMARD, scaled, *size, like=node) if placed.after is not None else scaled
    node.replace_all_uses_with(mapped, delete_user_cb=lambda user: user in kept)


def hadamard_signs(matrix: Tensor) -> Tensor | None:
    """s [d] if the matrix [d, d] is diag(s) H / sqrt(d) with H of our making, else None.

    >>> hadamard_signs(hadamard.random_hadamard(2, 0)) is not None, hadamard_signs(torch.eye(2).double())
    (True, None)
    """
    size = len(matrix)
    if not hadamard.known(size):
        return None
    plain = hadamard.hadamard(size) / size**0.5
    signs = (matrix[:, 0] * plain[:, 0]).sign()
    return signs if torch.allclose(signs[:, None] * plain, matrix.double(), rtol=0, atol=1e-12) else None


def factor_removed(node: fx.Node) -> fx.Node:
    """What a norm, or a product of a value and a weight, is without that weight: the norm itself, or the value."""
    if not is_call(node, aten.rms_norm.default):
        return next(a for a in node.all_input_nodes if a.op != "get_attr")
    eps = argument(node, 3, "eps")
    node.args, node.kwargs = node.args[:2] if eps is None else (*node.args[:2], None, eps), {}
    return node


def _insert(editor: Editor, online: Online) -> None:
    value = editor.of(online.value)
    with editor.graph.inserting_after(value):
        made = editor.call(HADAMARD, value, online.block, like=value)
    for reader in online.readers:
        _reread(editor.of(reader), value, made)


def _reread(reader: fx.Node, old: fx.Node, new: fx.Node) -> None:
    """The reader's value arguments, its queries and keys or its input, come from new; a value path stays."""
    count = 2 if is_call(reader, aten.scaled_dot_product_attention.default) else 1
    reader.args = tuple(new if a is old and i < count else a for i, a in enumerate(reader.args))


def fixed_matrices(plan: Plan, kind: str, seed: int) -> tuple[dict[str, Tensor], list[Refusal]]:
    """Seeded matrices for every rotation of the plan, float64 [count, d, d], and where one is not of the kind asked.

    kind: "hadamard" with random signs, or "random" orthogonal. Each rotation has its own seed, so that it is the same
    whatever else is turned.
    """
    matrices, refusals = {}, []
    for rotation in plan.rotations:
        make = hadamard.random_hadamard
        if kind == "random" or not hadamard.known(rotation.width):
            make = hadamard.orthogonal
            if kind != "random":
                why = f"no Hadamard matrix of order {rotation.width} is known: a random orthogonal one turns it instead"
                refusals.append(Refusal(rotation.key, rotation.kind, why))
        seeds = [_seed(seed, rotation.key, i) for i in range(rotation.count)]
        matrices[rotation.key] = torch.stack([make(rotation.width, s) for s in seeds])
    return matrices, refusals


def _seed(seed: int, key: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {index}".encode()).digest()[:7])
