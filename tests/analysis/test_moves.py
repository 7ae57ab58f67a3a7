"""Moves predict what storing a weight does to the cost."""

from __future__ import annotations

import pytest
import torch
from architectures import captured
from torch import Tensor

from drawplate.analysis import moves as module
from drawplate.analysis.moves import Moves, moves
from drawplate.costs import of_windows, own_labels
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.passbase import Env
from drawplate.program import Program

WINDOWS = torch.randint(3, 97, (96, 32), generator=torch.Generator().manual_seed(0))
FRESH = torch.randint(3, 97, (32, 32), generator=torch.Generator().manual_seed(1))
NAMES = [
    "model.embed_tokens.weight",  # tied: looked up and multiplied with
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
]
BITS = [4, 6]


def candidates(program: Program) -> dict[str, list[QTensor]]:
    weights: dict[str, Tensor] = {name: program.weights[name] for name in NAMES}  # type: ignore[misc]
    return {name: [encode(w, Encoding(bits, (1, 16))) for bits in BITS] for name, w in weights.items()}


@pytest.fixture(scope="module")
def measured() -> tuple[Program, Moves]:
    program = captured("llama")
    return program, moves(program, candidates(program), of_windows(program, WINDOWS, own_labels(0)), Env())


def divergence(program: Program, chosen: dict[str, int]) -> float:
    editor = program.edit()
    stored = candidates(program)
    editor.weights.update({name: stored[name][i].dequantize() for name, i in chosen.items()})
    before, after = logs(program), logs(editor.finish())
    return float((before.exp() * (before - after)).sum(-1).mean())


def logs(program: Program) -> Tensor:
    positions = torch.arange(FRESH.shape[1]).expand_as(FRESH)
    return program.module()(FRESH, positions).log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(len(BITS)))
def test_the_expected_damage_is_the_divergence_that_comes(
    measured: tuple[Program, Moves], name: str, index: int
) -> None:
    program, found = measured
    assert found.damage({name: index}) == pytest.approx(divergence(program, {name: index}), rel=0.4)


def test_the_damage_of_several_weights_together(measured: tuple[Program, Moves]) -> None:
    program, found = measured
    everything = dict.fromkeys(NAMES, 0)
    assert found.damage(everything) == pytest.approx(divergence(program, everything), rel=0.4)


def test_a_weight_that_stays_does_no_damage() -> None:
    """Codes that stand for the very weight."""
    program = captured("llama")
    weight = program.weights[NAMES[1]]
    assert isinstance(weight, Tensor)
    exact = encode(weight, Encoding(4, (1, 16)))
    editor = program.edit()
    editor.weights[NAMES[1]] = exact.dequantize()
    same = editor.finish()
    found = moves(same, {NAMES[1]: [exact]}, of_windows(same, WINDOWS[:2], own_labels(0)), Env())
    assert found.damage({NAMES[1]: 0}) == 0


def test_a_weight_is_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result, for blocks of a row and for one scale over all rows."""
    program = captured("llama")
    name = NAMES[0]
    weight = program.weights[name]
    assert isinstance(weight, Tensor)
    stored = {name: [encode(weight, Encoding(4, block)) for block in ((1, 16), (-1, -1))]}

    def shifts() -> Tensor:
        return moves(program, stored, of_windows(program, WINDOWS[:2], own_labels(0)), Env()).shifts[name]

    whole = shifts()
    monkeypatch.setattr(module, "PIECE", 5 * weight.shape[1])
    assert torch.allclose(shifts(), whole, rtol=1e-3, atol=1e-6 * float(whole.abs().max()))
    assert float(whole.abs().min(1).values.max()) > 0
