"""How much a model's quality depends on each weight, against a cost: what bits are allocated by, and what is explained.

The cost rises by 1/2 sum_ij F_ij (W - Q)_ij^2 with F the Fisher information, here of the factored diagonal form
F_ij = E[g_i^2] E_g[x_j^2]: x is what a linear reads, g the cost's gradient in what it gives (Martens and Grosse 2015,
arXiv:1503.05671, sec. 3, of which the diagonals are kept), and E_g counts each token by its |g|^2. With labels that the
model draws itself the cost is, to second order, KL(original || stored) per token; with the text's own labels it is the
next-token loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.parts import Part, parts
from drawplate.analysis.sites import sites
from drawplate.canonical.match import aten, is_call
from drawplate.costs import Sample
from drawplate.encoding import as_read
from drawplate.errors import PassError
from drawplate.partwise import Values, back_through, forward, run_part
from drawplate.passbase import Env
from drawplate.program import Program


@dataclass(frozen=True)
class Reading:
    """What one node makes of a weight. rows: [out] and columns: [in], whose product is the Fisher diagonal per token.

    A linear's rows are E[g^2], its columns the mean of x^2, each token weighted by its |g|^2; a table's rows are
    how often each is looked up, its columns E[g^2].
    """

    rows: Tensor
    columns: Tensor

    def damage(self, moved: Tensor) -> float:
        """The rise of the cost per token if the weight moves by `moved` [out, in]."""
        return 0.5 * float(self.rows @ moved.double().square() @ self.columns)


@dataclass(frozen=True)
class Sensitivity:
    """Readings of every weight that a linear multiplies with or that tokens look up, by the weight's name."""

    readings: Mapping[str, tuple[Reading, ...]]
    tokens: int

    def damage(self, name: str, weight: Tensor, stored: Tensor) -> float:
        """The expected rise of the cost per token if `stored` takes the weight's place."""
        moved = weight.double() - stored.double()
        return sum(reading.damage(moved) for reading in self.readings.get(name, ()))


def measure(program: Program, samples: Iterable[Sample], env: Env) -> Sensitivity:
    """Run the samples forward and back, one at a time. Raises PassError if the cost or its gradient is not finite, or
    does not depend on the logits."""
    watched = {node: site for site in sites(program) for node in site.nodes}
    todo, sums = parts(program), _Sums(frozenset(watched))
    (output,) = program.graph.output_node().all_input_nodes[:1]
    tokens, moved = 0, False

    def run(part: Part, values: Values) -> Values:
        weights = {name: as_read(program.weights[name]) for name in part.weights}
        return run_part(part, values, weights, sums.see if torch.is_grad_enabled() else None)

    for sample in env.progress(list(samples), "sensitivity"):
        runs = [forward(todo, run, program.graph, inputs) for inputs in sample.inputs]
        logits = [values[output].requires_grad_() for values in runs]
        with torch.enable_grad():
            value: Any = sample.cost(logits)
        for values, gradient in zip(runs, _gradients(value, logits), strict=True):
            if gradient is not None:
                moved = moved or bool(gradient.any())
                back_through(todo, run, values, {output: gradient})
        tokens += sum(inputs[0].numel() for inputs in sample.inputs)
    if not moved:
        raise _no_cost("does not depend on the logits", "its gradient is zero everywhere")
    readings: dict[str, tuple[Reading, ...]] = {}
    for node, site in watched.items():
        rows, columns = sums.of[node]
        rows, columns = rows / tokens, columns / (sums.weight.get(node, tokens) or 1.0)
        readings[site.name] = (*readings.get(site.name, ()), Reading(rows, columns))
    return Sensitivity(readings, tokens)


def _gradients(value: Any, logits: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of a cost in the logits that it was given. Raises PassError for what is no cost."""
    if not isinstance(value, Tensor):
        raise _no_cost("is no tensor", f"it gave {value!r}")
    if value.numel() != 1:
        raise _no_cost("is not one number", f"it gave a tensor of shape {list(value.shape)}")
    if not bool(torch.isfinite(value)):
        raise _no_cost("is not a finite number", f"it gave {value.item()}")
    try:
        found = torch.autograd.grad(value, logits, allow_unused=True) if value.requires_grad else [None]
    except RuntimeError as error:
        raise _no_cost("cannot be differentiated", str(error)) from error
    if not all(g is None or bool(torch.isfinite(g).all()) for g in found):
        raise _no_cost("has a gradient that is not finite", f"it gave {value.item()}")
    return found


def _no_cost(what: str, why: str) -> PassError:
    fix = "a cost takes (logits, ids) and returns one number that torch can differentiate, summed over the tokens"
    return PassError(f"the cost {what}", why=why, fix=fix)


class _Sums:
    """Of squares: of what watched operators read, and of the gradients in what they give."""

    def __init__(self, watched: Collection[fx.Node]) -> None:
        self._watched = watched
        self.of: dict[fx.Node, list[Tensor]] = {}
        self.weight: dict[fx.Node, float] = {}

    def see(self, node: fx.Node, args: Sequence[Any], result: Tensor) -> None:
        """One operator that has run."""
        if node not in self._watched:
            return
        result.requires_grad_()  # the first ones read nothing that has a gradient
        if is_call(node, aten.embedding.default):
            self._add(node, 0, torch.bincount(args[1].flatten(), minlength=args[0].shape[0]).double())
            result.register_hook(lambda g: self._add(node, 1, _squares(g)))
        else:
            read = args[0].detach()
            result.register_hook(lambda g: self._pair(node, read, g))

    def _pair(self, node: fx.Node, read: Tensor, gradient: Tensor) -> None:
        """What a linear read counts by how much the cost depends on what came of it: the first token of a text has
        channels thousands of times larger than all others, and next to no gradient."""
        squares = gradient.flatten(0, -2).double().square()
        weight = squares.sum(1)
        self._add(node, 0, squares.sum(0))
        self._add(node, 1, weight @ read.flatten(0, -2).double().square())
        self.weight[node] = self.weight.get(node, 0.0) + float(weight.sum())

    def _add(self, node: fx.Node, which: int, value: Tensor) -> None:
        sums = self.of.setdefault(node, [torch.zeros(()), torch.zeros(())])
        sums[which] = sums[which] + value


def _squares(x: Tensor) -> Tensor:
    """[.., n] -> f64 [n]: the sum of squares over all rows."""
    return x.flatten(0, -2).double().square().sum(0)
