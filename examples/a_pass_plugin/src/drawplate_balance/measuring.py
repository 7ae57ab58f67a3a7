"""How large values inside a program are, on the calibration text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.calibration import Calibration
from drawplate.passbase import Progress
from drawplate.program import Program


def root_mean_squares(
    program: Program, nodes: Iterable[fx.Node], calibration: Calibration, progress: Progress
) -> dict[str, Tensor]:
    """Per channel (last axis) of each node's value, over all positions of the text: name of the node -> f64 [channels].

    The program is a decoder without a cache: (ids i64[b, s], positions i64[b, s]).
    """
    walker = _Walker(program, {n.name for n in nodes})
    positions = 0
    with torch.no_grad():
        for ids in progress(list(calibration.batches(1)), "calibration"):
            walker.run(ids, torch.arange(ids.shape[1]).expand_as(ids))
            positions += ids.numel()
    return {name: (total / positions).sqrt() for name, total in walker.totals.items()}


class _Walker(fx.Interpreter):
    """Runs the program and adds up squares at the nodes of these names."""

    def __init__(self, program: Program, names: set[str]) -> None:
        super().__init__(program.module())
        self.totals: dict[str, Tensor] = {}
        self._names = names

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names:
            squares = value.double().square().flatten(0, -2).sum(0)
            self.totals[n.name] = self.totals.get(n.name, 0) + squares
        return value
