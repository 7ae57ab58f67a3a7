"""How much a model's quality depends on each weight, against a cost: what bits are allocated by, and what is explained.

The cost rises by 1/2 sum_ij F_ij (W - Q)_ij^2 with F the Fisher information, here of the factored diagonal form
F_ij = E[g_i^2] E[x_j^2]: x is what a linear reads, g the cost's gradient in what it gives (Martens and Grosse 2015,
arXiv:1503.05671, sec. 3, of which the diagonals are kept). With labels that the model draws itself the cost is, to
second order, KL(original || stored) per token; with the text's own labels it is the next-token loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import Site, sites
from drawplate.canonical.match import aten, is_call
from drawplate.costs import Sample
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.program import Program


@dataclass(frozen=True)
class Reading:
    """What one node makes of a weight. rows: [out] and columns: [in], whose product is the Fisher diagonal per token.

    A linear's rows are E[g^2], its columns E[x^2]; a table's rows are how often each is looked up, its columns E[g^2].
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
    """Run the samples forward and back, one at a time. Raises PassError if the cost is not a finite number, or does
    not depend on the logits."""
    watched = {node: site for site in sites(program) for node in site.nodes}
    sums: dict[fx.Node, list[Tensor]] = {}
    runner = _Watching(program, watched, sums)
    tokens = 0
    for sample in env.progress(list(samples), "sensitivity"):
        with torch.enable_grad():
            value: Any = sample.cost([runner.run(*inputs) for inputs in sample.inputs])
        _refuse_no_number(value)
        value.backward()
        tokens += sum(inputs[0].numel() for inputs in sample.inputs)
    readings: dict[str, tuple[Reading, ...]] = {}
    for node, site in watched.items():
        rows, columns = (part / tokens for part in sums[node])
        readings[site.name] = (*readings.get(site.name, ()), Reading(rows, columns))
    return Sensitivity(readings, tokens)


def _refuse_no_number(value: Any) -> None:
    """What a cost must not give."""
    number = isinstance(value, Tensor) and value.numel() == 1
    if number and bool(torch.isfinite(value)) and value.requires_grad:
        return
    given = value.detach() if isinstance(value, Tensor) else repr(value)
    raise PassError(
        "the cost does not depend on the logits"
        if number and not value.requires_grad
        else "the cost is not a finite number",
        why=f"it gave {given}",
        fix="a cost takes (logits, ids) and returns one number, a tensor that torch can differentiate, summed over the "
        "tokens",
    )


class _Watching(fx.Interpreter):
    """Runs the program and adds up squares of what watched nodes read, and of the gradients in what they give."""

    def __init__(self, program: Program, watched: Mapping[fx.Node, Site], sums: dict[fx.Node, list[Tensor]]) -> None:
        module: Any = program.module()
        super().__init__(module)
        copies = dict(zip(module.graph.nodes, program.graph.nodes, strict=True))
        self._originals = {copy: original for copy, original in copies.items() if original in watched}
        self._sums = sums

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        node = self._originals.get(n)
        if node is None:
            return result
        result = result if result.requires_grad else result.requires_grad_()
        args: Any = self.map_nodes_to_values(n.args, n)
        if is_call(node, aten.embedding.default):
            shape = args[0].shape
            uses = torch.bincount(args[1].flatten(), minlength=shape[0]).double()
            self._add(node, 0, uses)
            result.register_hook(lambda g: self._add(node, 1, _squares(g)))
        else:
            self._add(node, 1, _squares(args[0].detach()))
            result.register_hook(lambda g: self._add(node, 0, _squares(g)))
        return result

    def _add(self, node: fx.Node, which: int, value: Tensor) -> None:
        parts = self._sums.setdefault(node, [torch.zeros(()), torch.zeros(())])
        parts[which] = parts[which] + value


def _squares(x: Tensor) -> Tensor:
    """[.., n] -> f64 [n]: the sum of squares over all rows."""
    return x.flatten(0, -2).double().square().sum(0)
