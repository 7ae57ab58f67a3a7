"""A run that others branch off from gives what whole runs give."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from architectures import captured, decoder_inputs

from drawplate.branching import Trunk
from drawplate.encoding import Encoding, encode
from drawplate.program import Program, Weight

INPUTS = [decoder_inputs(1, 12, seed) for seed in (0, 1)]


def whole(program: Program, weights: dict[str, Weight]) -> list[torch.Tensor]:
    """The logits of the program with these weights in place of its own, run from the start."""
    other = replace(program, weights=MappingProxyType({**program.weights, **weights}))
    return [other.module()(*inputs) for inputs in INPUTS]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral", "phi3"])
def test_a_branch_is_a_whole_run_with_other_weights(name: str) -> None:
    program = captured(name)
    trunk = Trunk(program, INPUTS)
    stored = [(n, encode(w, Encoding(3, (1, -1)))) for n, w in program.weights.items() if w.dim() == 2]
    first = {name: min(program.readers(name), key=list(program.graph.nodes).index) for name, _ in stored}
    order = sorted(stored, key=lambda item: list(program.graph.nodes).index(first[item[0]]))
    for weight, codes in order:
        trunk.run_to(first[weight])
        for branch, expected in zip(trunk.outputs({weight: codes}), whole(program, {weight: codes}), strict=True):
            torch.testing.assert_close(branch, expected)
    for here, expected in zip(trunk.outputs({}), whole(program, {}), strict=True):  # branches left no trace
        torch.testing.assert_close(here, expected)


def test_the_next_operator_s_value_with_and_without_an_exchange() -> None:
    program = captured("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    (node,) = program.readers(name)
    trunk = Trunk(program, INPUTS)
    trunk.run_to(node)
    plain, doubled = trunk.value({}), trunk.value({name: 2 * program.weights[name]})
    assert all(torch.equal(2 * a, b) for a, b in zip(plain, doubled, strict=True))
