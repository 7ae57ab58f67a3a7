"""How much memory a training takes at its largest, from shapes alone: said before it starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from drawplate.analysis.parts import Part, parts
from drawplate.canonical.match import value
from drawplate.encoding import Encoding, QTensor
from drawplate.leaves import Leaf
from drawplate.planning import size
from drawplate.program import Program
from drawplate.rehearsal import in_memory
from drawplate.roofline import sizes

FLOAT = 4  # bytes of what is computed with
KEPT = 4  # of a number that is trained: itself, its gradient and AdamW's two moments
ROUNDING = 6  # copies of a weight while it is rounded and autograd keeps what it needs, its gradient among them
COST = 5  # copies of the logits while they are compared with others


@dataclass(frozen=True)
class Memory:
    """Bytes. weights: of the programs that run. trained: what is trained, its gradients, AdamW's moments and the best
    copy. between: activations that go from part to part. within: of the part that takes most, weights as operators read
    them and activations that gradients need."""

    weights: int
    trained: int
    between: int
    within: int

    @property
    def total(self) -> int:
        """All of it, at once."""
        return self.weights + self.trained + self.between + self.within

    def __str__(self) -> str:
        return (
            f"about {size(self.total)} of memory: {size(self.weights)} for weights, {size(self.trained)} for what is "
            f"trained with its gradients, moments and best copy, {size(self.between)} for activations between parts, "
            f"{size(self.within)} within one"
        )


def of_end_to_end(
    program: Program, others: Iterable[Program], leaves: Mapping[str, Leaf], sample: Sequence[Sequence[Tensor]]
) -> Memory:
    """Of training.train. others: programs that are there besides. sample: the inputs of the longest."""
    runs = [_Shapes(program, inputs[0].shape[-1]) for inputs in sample]
    numbers = sum(x.numel() for leaf in leaves.values() for x in leaf.numbers.values())
    found = parts(program)
    logits = max(run.of(found[-1].gives) for run in runs)
    within = max(run.of_part(part, leaves) for part in found for run in runs)
    return Memory(
        in_memory([program, *others]),
        (KEPT + 1) * FLOAT * numbers,
        sum(run.of(n for part in found for n in part.gives) for run in runs),
        max(within, COST * logits * len(runs)),
    )


def of_blockwise(
    program: Program, encodings: Mapping[str, Encoding], inputs: Sequence[Sequence[Tensor]], spill: int
) -> Memory:
    """Of blockwise.store_blockwise with blockap. inputs: of all windows. spill: see streaming.Room."""
    run = _Shapes(program, inputs[0][0].shape[-1])
    wanted = [part for part in parts(program) if set(part.weights) & set(encodings)]
    numbers = {name: math.prod(program.weights[name].shape) for name in encodings}
    trained = {part: sum(numbers.get(name, 0) for name in part.weights) for part in wanted}
    most = max(wanted, key=lambda part: trained[part] + run.of_part(part, encodings))
    chains = 2 * len(inputs) * (run.of(most.needs) + run.of(most.gives))  # in floating point, and stored
    best = trained[most] // 2  # codes of the best and of those looked at, a byte each
    return Memory(
        in_memory([program]),
        FLOAT * (KEPT * trained[most] + best),
        min(chains, spill),
        run.of_part(most, encodings),
    )


class _Shapes:
    """A program's sizes for a text of so many tokens."""

    def __init__(self, program: Program, tokens: int) -> None:
        self._weights, self._size = program.weights, sizes(program, tokens)

    def of(self, nodes: Iterable[fx.Node]) -> int:
        """Bytes of these values, each once; of those that are no views."""
        return sum(self._bytes(n) for n in dict.fromkeys(nodes))

    def of_part(self, part: Part, trained: Iterable[str]) -> int:
        """Bytes while it runs with gradients: what it computes, and its weights as numbers."""
        mine = set(trained)
        read = {n: math.prod(w.shape) for n, w in self._weights.items() if n in part.weights}
        copies = {n: ROUNDING if n in mine else isinstance(self._weights[n], QTensor) for n in read}
        computed = self.of(n for n in part.nodes if n.op != "get_attr")
        return computed + self.of(part.gives) + sum(FLOAT * read[n] * copies[n] for n in read)

    def _bytes(self, node: fx.Node) -> int:
        found: Any = value(node)
        if not isinstance(found, Tensor) or _is_view(node):
            return 0
        return math.prod(self._size(found)) * found.dtype.itemsize


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)
