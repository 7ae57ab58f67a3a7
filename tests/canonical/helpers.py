"""Canonical form of a small function, and proof that it still computes the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.program import Program
from drawplate.textual.words import operator_name


class Wrapped(nn.Module):
    """A function of tensors with weights that it reads as `self.<name>`."""

    def __init__(self, function: Callable[..., Tensor], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def canonical(function: Callable[..., Tensor], x: Tensor, **weights: Tensor) -> Program:
    """The canonical program of function(module, x), which is checked to give the function's value."""
    module = Wrapped(function, weights)
    program = canonicalise(capture(module, example_inputs=[x]).program)
    with torch.no_grad():
        assert torch.allclose(program.module()(x), module(x), atol=1e-6, rtol=1e-5)
    assert [str(n.target) for n in canonicalise(program).graph.nodes] == [str(n.target) for n in program.graph.nodes]
    return program


def operators(program: Program) -> list[str]:
    """The names of the calls, in order: `rms_norm`."""
    return [operator_name(n.target).removeprefix("aten.") for n in program.nodes()]
