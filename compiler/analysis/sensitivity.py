"""How much a cost depends on the rows and columns of each weight: what channels are sorted by.

The Fisher diagonal in factored form, F_ij = E[g_i^2] E_g[x_j^2]: x is what a linear reads, g the cost's gradient in
what it gives (Martens and Grosse 2015, arXiv:1503.05671, sec. 3, of which the diagonals are kept), and E_g counts each
token by its |g|^2. What storing a weight in a certain way would do is measured by moves.py, over the same runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True)
class Sensitivity:
    """Readings of every weight that a linear multiplies with or that tokens look up, by the weight's name."""

    readings: Mapping[str, tuple[Reading, ...]]
    tokens: int


class Observer(Protocol):
    """Of operators while a sample runs forward and back."""

    def begin(self, tokens: int) -> None:
        """The next sample goes back: of so many tokens, 0 if it is several sequences with one cost."""

    def see(self, node: fx.Node, args: Sequence[Any], result: Tensor) -> None:
        """One operator that has run with gradients."""


def measure(program: Program, samples: Iterable[Sample], env: Env) -> Sensitivity:
    """Run the samples forward and back, one at a time. Raises PassError if the cost or its gradient is not finite, or
    does not depend on the logits."""
    watched = {node: site for site in sites(program) for node in site.nodes}
    sums = _Sums(frozenset(watched))
    tokens = observe(program, samples, sums, env)
    readings: dict[str, tuple[Reading, ...]] = {}
    for node, site in watched.items():
        rows, columns = sums.of[node]
        rows, columns = rows / tokens, columns / (sums.weight.get(node, tokens) or 1.0)
        readings[site.name] = (*readings.get(site.name, ()), Reading(rows, columns))
    return Sensitivity(readings, tokens)


def observe(program: Program, samples: Iterable[Sample], observer: Observer, env: Env) -> int:
    """Run the samples forward, and back from the gradient of their cost. Returns how many tokens there were. Raises
    PassError as `measure` does."""
    todo, tokens, moved = parts(program), 0, False
    (output,) = program.graph.output_node().all_input_nodes[:1]

    def run(part: Part, values: Values) -> Values:
        weights = {name: as_read(program.weights[name]) for name in part.weights}
        return run_part(part, values, weights, observer.see if torch.is_grad_enabled() else None)

    for sample in env.progress(list(samples), "what weights matter"):
        runs = [forward(todo, run, program.graph, inputs) for inputs in sample.inputs]
        logits = [values[output].requires_grad_() for values in runs]
        with torch.enable_grad():
            value: Any = sample.cost(logits)
        gradients = _gradients(value, logits)
        observer.begin(sample.inputs[0][0].numel() if len(runs) == 1 else 0)
        for inputs, values, gradient in zip(sample.inputs, runs, gradients, strict=True):
            tokens += inputs[0].numel()
            if gradient is not None:
                moved = moved or bool(gradient.any())
                back_through(todo, run, values, {output: gradient})
    if not moved:
        raise _no_cost("does not depend on the logits", "its gradient is zero everywhere")
    return tokens


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

    def begin(self, tokens: int) -> None:
        """Nothing is kept by sample."""

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
