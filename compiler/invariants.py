"""What passes keep true, measured on the programs before and after.

SIGNATURE      same inputs and outputs
SAME_FUNCTION  same outputs on seeded inputs, up to rounding
AS_DEPLOYED    the same in the dtype that is run, after weights that were computed in float64 were rounded
ROUNDS         the same graph over weights and activations that were rounded, each by no more than its encoding allows
STORES         the same graph over weights that were stored as integers, not each to the nearest
SAME_INTEGERS  every stored weight stands for the same integers and scales, bit for bit
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.difference import first_difference
from drawplate.encoding import QTensor
from drawplate.passbase import Certificate, Invariant
from drawplate.probing import probe, probe_lengths, run, run_pieces
from drawplate.program import Program
from drawplate.rounding import RoundingError, activation_errors, weight_error
from drawplate.textual.printer import Types

__all__ = ["AS_DEPLOYED", "ROUNDS", "SAME_FUNCTION", "SAME_INTEGERS", "SIGNATURE", "STORES"]

FLOAT64_LIMIT = 2_000_000_000  # weights' elements up to which functions are compared in float64
BOUND_FLOAT64 = 1e-10  # thousands of float64 roundings, and far below any mistake
BOUND_FLOAT32 = 1e-4
BOUND_DEPLOYED = 1e-3
BOUND_STORED = 100.0  # times a weight's own squares
BOUNDS_DEPLOYED = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # weights of these are rounded: tens of their units
BOUND_FLOAT32_ENCODED = 5e-2  # a float32 rounding may carry an encoded activation over to the next code
PROBE_LENGTH, PROBE_STEPS = 8, 3  # tokens of a probe, and how many of them a cached program is fed one by one


class Signature(Invariant):
    """Inputs, lengths and the outputs' types are as they were."""

    name = "SIGNATURE"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        pairs = (
            ("inputs", before.inputs, after.inputs),
            ("lengths", before.dims, after.dims),
            ("outputs", _output_types(before), _output_types(after)),
        )
        found = [f"{what} were {_told(a)} and are {_told(b)}" for what, a, b in pairs if a != b]
        return Certificate("", self.name, not found, float(len(found)), 0.0, "; ".join(found) or "as before")


class SameFunction(Invariant):
    """Outputs on seeded inputs agree: each position's logits as a vector, relative to their usual length.

    Computed in float64, one weight in memory at a time, or in float32 above FLOAT64_LIMIT elements. A program with a
    cache is fed a prompt and then single tokens, and compared position by position with the plain one; where one
    program gives the last position only, that one is compared.
    """

    name = "SAME_FUNCTION"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        wide = sum(math.prod(w.shape) for w in before.weights.values()) <= FLOAT64_LIMIT
        return self._compare(before, after, seed, torch.float64 if wide else torch.float32)

    def _compare(
        self, before: Program, after: Program, seed: int, dtype: torch.dtype, bound: float | None = None
    ) -> Certificate:
        wide = dtype == torch.float64
        encoded = any(True for p in (before, after) for _ in p.nodes(torch.ops.drawplate.encode.default))
        if bound is None:
            bound = BOUND_FLOAT64 if wide else BOUND_FLOAT32_ENCODED if encoded else BOUND_FLOAT32
        if len(before.inputs) != len(after.inputs):
            why = f"{len(before.inputs)} inputs became {len(after.inputs)}"
            return Certificate("", self.name, False, math.inf, bound, why)
        stateful = bool(before.state or after.state)
        lengths = probe_lengths(before, PROBE_LENGTH, 1 if stateful else 2)
        if stateful and after.state:
            lengths = {k: min(n, int(after.state[0].shape[1])) for k, n in lengths.items()}
        inputs = probe(before, lengths, seed)
        feed = _prompt(inputs) if stateful else lambda _: inputs
        if stateful:
            pairs = list(zip(_fed(before, inputs, dtype), _fed(after, inputs, dtype), strict=True))
        else:
            pairs = list(zip(run(before, inputs, dtype=dtype), run(after, inputs, dtype=dtype), strict=False))
        error = max((_difference(a, b) for a, b in pairs), default=math.inf)
        kind = "float64" if wide else "float32"
        how = f"{kind}, {inputs[0].shape[-1]} positions" if stateful else f"{kind}, probe {list(inputs[0].shape)}"
        found = Certificate("", self.name, error <= bound, error, bound, how)
        return found if found.holds else _explained(found, before, after, feed, dtype)


class AsDeployed(SameFunction):
    """Outputs agree in the dtype that the program is run in, after what a pass computed in float64 was rounded to it.

    The runner measures this by itself, after the invariants of a pass that hands over such weights.
    """

    name = "AS_DEPLOYED"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        narrow = {w.dtype for w in after.weights.values() if isinstance(w, Tensor)} & BOUNDS_DEPLOYED.keys()
        bound = max((BOUNDS_DEPLOYED[dtype] for dtype in narrow), default=BOUND_DEPLOYED)
        return self._compare(before, after, seed, torch.float32, bound)


class Rounds(Invariant):
    """Weights and activations were rounded to their encodings, and nothing else changed.

    error and bound are in steps of the encoding: half a step wherever the value lies within the range. Beyond the range
    a weight is clipped by as much as rounding the scale and the zero point explains, or by more if that makes the
    squared error smaller than the min-max range's. A weight that was cast moves by half a unit in the last place.
    """

    name = "ROUNDS"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        moved = _graph_difference(before, after)
        if moved:
            return Certificate("", self.name, False, math.inf, 0.5, f"the graph changed: {moved}")
        errors = [weight_error(n, w, after.weights[n]) for n, w in before.weights.items() if after.weights[n] is not w]
        errors += self._activations(before, after, seed)
        if not errors:
            return Certificate("", self.name, True, 0.0, 0.5, "nothing was rounded")
        worst = max(errors, key=lambda e: (not e.holds, e.steps / e.bound))
        return Certificate("", self.name, all(e.holds for e in errors), worst.steps, worst.bound, _summary(errors))

    @staticmethod
    def _activations(before: Program, after: Program, seed: int) -> list[RoundingError]:
        encode = torch.ops.drawplate.encode.default
        if sum(1 for _ in after.nodes(encode)) == sum(1 for _ in before.nodes(encode)):
            return []
        return activation_errors(after, probe(after, probe_lengths(after, PROBE_LENGTH, 1), seed))


class Stores(Invariant):
    """Weights were stored as integers and nothing else changed: for what rounds away from the nearest code on purpose.

    error: the largest ||W - Q||^2 / ||W||^2 of a weight. Where few directions are read, making up for errors in them
    may move the others by more than the weight itself (5.7 was seen, of 2 bits behind massive channels); what is broken
    moves further than BOUND_STORED.
    """

    name = "STORES"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        moved = _graph_difference(before, after)
        if moved:
            return Certificate("", self.name, False, math.inf, BOUND_STORED, f"the graph changed: {moved}")
        changed = {n: w for n, w in before.weights.items() if after.weights[n] is not w}
        errors = {n: relative_error(w, after.weights[n]) for n, w in changed.items()}
        worst = max(errors, key=lambda n: errors[n], default="")
        error = errors.get(worst, 0.0)
        detail = f"{len(errors)} weights stored; squared error as a share of the weight's, at most in {worst}"
        holds = error <= BOUND_STORED
        return Certificate("", self.name, holds, error, BOUND_STORED, detail if errors else "nothing was stored")


class SameIntegers(Invariant):
    """Every stored weight has the integers, scales and zero points that it had; other weights are the same; so is
    the graph."""

    name = "SAME_INTEGERS"

    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        moved = _graph_difference(before, after)
        if moved:
            return Certificate("", self.name, False, math.inf, 0.0, f"the graph changed: {moved}")
        stored = [n for n, w in before.weights.items() if isinstance(w, QTensor)]
        different = [n for n, w in before.weights.items() if not same_integers(w, after.weights[n])]
        if different:
            what = f"{len(different)} weights stand for other numbers: {', '.join(different[:5])}"
            return Certificate("", self.name, False, float(len(different)), 0.0, what)
        return Certificate("", self.name, True, 0.0, 0.0, f"{len(stored)} stored weights, bit for bit")


def relative_error(a: Tensor | QTensor, b: Tensor | QTensor) -> float:
    """||a - b||^2 / ||a||^2; infinite if they are not of one shape or b is not finite."""
    if isinstance(a, QTensor):
        if not isinstance(b, QTensor) or a.encoding != b.encoding:
            return math.inf
        a = a.dequantize()
    if tuple(a.shape) != tuple(b.shape):
        return math.inf
    moved = (a - (b.dequantize(a.dtype) if isinstance(b, QTensor) else b)).double().square().sum()
    error = float(moved / a.double().square().sum().clamp(min=1e-300))
    return error if math.isfinite(error) else math.inf


def same_integers(a: Tensor | QTensor, b: Tensor | QTensor) -> bool:
    """Do two weights stand for the same numbers in the same encoding, packed or not?"""
    if a is b:
        return True
    if isinstance(a, QTensor) and isinstance(b, QTensor):
        return (
            a.encoding == b.encoding
            and a.shape == b.shape
            and torch.equal(a.grid.scale, b.grid.scale)
            and torch.equal(a.grid.zero_point, b.grid.zero_point)
            and torch.equal(a.integers(), b.integers())
        )
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def _explained(
    found: Certificate, before: Program, after: Program, feed: Callable[[Program], Sequence[Tensor]], dtype: torch.dtype
) -> Certificate:
    """With the first value that differs, if one does on its own account."""
    first = first_difference(before, after, feed, dtype, found.bound / 10)
    return replace(found, detail=f"{found.detail}; {first}") if first else found


def _prompt(inputs: tuple[Tensor, ...]) -> Callable[[Program], list[Tensor]]:
    """The probe as each program takes it, up to the prompt: with a cache, positions are one row."""
    rows = [x.reshape(1, -1)[:, : max(1, x.shape[-1] - PROBE_STEPS)] for x in inputs]
    return lambda program: [x[0] if len(s.shape) == 1 else x for x, s in zip(rows, program.inputs, strict=True)]


def _fed(program: Program, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Logits [1, m, vocab] after each piece of the probe: a prompt, then single tokens. inputs: one row each."""
    rows = [x.reshape(1, -1) for x in inputs]
    n = rows[0].shape[1]
    prompt = max(1, n - PROBE_STEPS)
    starts, ends = [0, *range(prompt, n)], [prompt, *range(prompt + 1, n + 1)]
    pieces = []
    for start, end in zip(starts, ends, strict=True):
        fed = [r[:, start if program.state else 0 : end] for r in rows]
        pieces.append([x[0] if len(s.shape) == 1 else x for x, s in zip(fed, program.inputs, strict=True)])
    outputs = run_pieces(program, pieces, dtype=dtype)
    return [out[0][:, start - end :] for out, start, end in zip(outputs, starts, ends, strict=True)]


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest distance of two rows (along the last axis), over the root mean square length of a's rows."""
    if a.dim() > 2 and a.dim() == b.dim() and a.shape[1] != b.shape[1] and 1 in (a.shape[1], b.shape[1]):
        a, b = a[:, -1:], b[:, -1:]
    if a.shape != b.shape:
        return math.inf
    if not a.is_floating_point():
        return float((a != b).double().mean())
    length = a.double().square().sum(-1).mean().sqrt().clamp(min=1e-300)
    error = float((a.double() - b.double()).norm(dim=-1).max() / length)
    return math.inf if math.isnan(error) else error


def _graph_difference(before: Program, after: Program) -> str:
    """The first place where two graphs differ, activation encodings and casts aside; empty if there is none."""
    if before.weights.keys() != after.weights.keys():
        return f"weights {sorted(before.weights.keys() ^ after.weights.keys())[:5]}"
    a, b = _skeleton(before), _skeleton(after)
    for (node, x), (_, y) in zip(a, b, strict=False):
        if x != y:
            return f"at {node.meta.get('site') or node.name}"
    return "" if len(a) == len(b) else f"{len(a)} operators became {len(b)}"


_TRANSPARENT = (torch.ops.drawplate.encode.default, torch.ops.aten.to.dtype)


def _skeleton(program: Program) -> list[tuple[fx.Node, Any]]:
    """Each operator with its arguments, values numbered in order; what only rounds a value stands for that value."""
    names: dict[fx.Node, str] = {}
    out: list[tuple[fx.Node, Any]] = []
    for i, node in enumerate(program.graph.nodes):
        if node.op == "placeholder":
            names[node] = f"input {i}"
        elif node.op == "get_attr":
            names[node] = f"weight {node.target}"
        elif node.target in _TRANSPARENT:
            names[node] = names[node.args[0]]
        else:
            names[node] = f"value {len(out)}"
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: names[n])
            out.append((node, (str(node.target), repr(arguments))))
    return out


def _output_types(program: Program) -> list[str]:
    types = Types(program)
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    return [types.text(n.meta["val"]) for n in output.all_input_nodes]


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(getattr(v, "name", str(v)) + str(list(getattr(v, "shape", ()))) for v in value) or "none"
    return ", ".join(value)


def _summary(errors: list[RoundingError]) -> str:
    broken = [str(e) for e in errors if not e.holds]
    if broken:
        return "; ".join(broken[:5]) + (f"; and {len(broken) - 5} more" if len(broken) > 5 else "")
    values = sum(e.activation for e in errors)
    parts = [f"{len(errors) - values} weights"] if len(errors) > values else []
    parts += [f"{values} activations"] if values else []
    clipped = sum(e.clipped for e in errors) / max(1, sum(e.elements for e in errors))
    beyond = max(e.clip_steps for e in errors)
    clip = f"; {clipped:.2%} of elements clipped, by at most {beyond:.2g} steps" if clipped else ""
    return f"{' and '.join(parts)} rounded; error in steps{clip}"


SIGNATURE = Signature()
SAME_FUNCTION = SameFunction()
AS_DEPLOYED = AsDeployed()
ROUNDS = Rounds()
STORES = Stores()
SAME_INTEGERS = SameIntegers()
