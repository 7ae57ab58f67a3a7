"""The turned and rounded network: the program's own function, and gradients block by block as autograd has them."""

import pytest
import torch
from architectures import captured

from drawplate.analysis.rotations import plan
from drawplate.encoding import Encoding, per_token
from drawplate.learning.network import Rounding, TurnedNetwork
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.probing import probe, probe_lengths, run
from drawplate.program import rounded
from drawplate.turning import fixed_matrices

ROUNDING = Rounding(Encoding(4, (1, 16)), per_token(8))


def turned(kind, rounding):
    program = rounded(FoldNorms().run(captured(kind), Env()))
    found = plan(program, r4=True)
    matrices, _ = fixed_matrices(found, "hadamard", 0)
    network = TurnedNetwork(program, found, matrices, rounding)
    return program, network, {k: m.float() for k, m in matrices.items()}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi3", "qwen3"])
def test_unrounded_it_is_the_program(kind):
    program, network, matrices = turned(kind, Rounding(None, None))
    inputs = probe(program, probe_lengths(program, 8, 2), 0)
    (expected,) = run(program, inputs)
    assert torch.allclose(network.output(inputs, matrices), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi3", "qwen3"])
def test_gradients_block_by_block_are_those_of_the_whole(kind):
    program, network, matrices = turned(kind, ROUNDING)
    inputs = probe(program, probe_lengths(program, 8, 2), 0)
    loss, gradients = network.gradients(inputs, matrices, lambda y: y.square().mean())
    leaves = {k: m.clone().requires_grad_() for k, m in matrices.items()}
    values = dict(zip((n for n in network._graph.nodes if n.op == "placeholder"), inputs, strict=True))
    for part in network._parts:
        values.update(network._run(part, values, leaves))
    whole = values[network._parts[-1].gives[0]].square().mean()
    expected = torch.autograd.grad(whole, list(leaves.values()))
    assert loss == pytest.approx(whole.item())
    assert any(float(g.abs().max()) > 0 for g in expected)
    for key, g in zip(leaves, expected, strict=True):
        assert torch.allclose(gradients[key], g, rtol=1e-3, atol=1e-6), key


def test_rounding_changes_what_it_computes_and_a_group_that_does_not_fit_is_left():
    program, network, matrices = turned("llama", ROUNDING)
    inputs = probe(program, probe_lengths(program, 8, 2), 0)
    _, unfit, _ = turned("llama", Rounding(Encoding(4, (1, 7)), None))
    (expected,) = run(program, inputs)
    assert not torch.allclose(network.output(inputs, matrices), expected, atol=1e-4)
    assert torch.allclose(unfit.output(inputs, matrices), expected, atol=1e-4)
