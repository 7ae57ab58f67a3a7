"""What encodings are compared by: each weight under each of them, about as it would be stored."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from architectures import captured

from drawplate.analysis.moves import Moves, moves
from drawplate.analysis.sites import sites
from drawplate.calibration import Calibration
from drawplate.costs import of_windows, own_labels
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.gptq import Settings, gptq
from drawplate.passbase import Env
from drawplate.passes.last_position import LastPosition
from drawplate.program import Program
from drawplate.quantising import COARSE, Method, candidates
from drawplate.runner import run_passes
from drawplate.streaming import inputs_of, second_moments

TEXT = Calibration.of(torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(0)), "random")
MENU = [Encoding(bits, (1, 16)) for bits in (2, 3, 4, 5, 6, 8)]
TIED, FIRST = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"
ENV = Env(calibration=TEXT)


def offered(program: Program) -> dict[str, list[Encoding]]:
    return {site.name: MENU for site in sites(program)}


@pytest.fixture(scope="module")
def by_gptq() -> tuple[Program, dict[str, list[QTensor]]]:
    program = captured("llama")
    return program, candidates(program, offered(program), Method("gptq", "mse", 512), ENV, "x")


def test_gptq_stores_linears_and_a_tied_table_is_rounded(by_gptq: tuple[Program, dict[str, list[QTensor]]]) -> None:
    program, found = by_gptq
    weights: dict[str, Any] = dict(program.weights)
    (first,) = (s.nodes[0] for s in sites(program) if s.name == FIRST)
    values: dict[Any, Any] = {}
    seen = torch.fx.Interpreter(program.module(), garbage_collect_values=False)
    for inputs in inputs_of(program, TEXT.windows):
        seen.run(*inputs)
        values.setdefault("x", []).append(_value(seen, first))
    moments = second_moments(values["x"])
    expected = gptq(weights[FIRST], moments, MENU[1], Settings(range="mse", steps=COARSE))
    same = (found[FIRST][1].codes == expected.codes).double().mean()
    assert float(same) > 0.99  # moments are summed in another order
    rounded = encode(weights[TIED], MENU[1], method="mse", steps=COARSE)
    assert torch.equal(found[TIED][1].codes, rounded.codes)


def _value(seen: Any, linear: Any) -> Any:
    """What the linear of the same name reads, in the module's own graph."""
    return next(v for n, v in seen.env.items() if n.name == linear.args[0].name)


def test_what_does_not_fit_in_memory_is_the_same() -> None:
    program = captured("llama")
    menus = {FIRST: MENU[:2], TIED: MENU[:2]}
    kept, spilled = (
        candidates(program, menus, Method("gptq", "minmax", 512, spill=spill), ENV, "x") for spill in (1 << 30, 0)
    )
    for name, stored in kept.items():
        for a, b in zip(stored, spilled[name], strict=True):
            assert torch.equal(a.codes, b.codes)


def test_damage_falls_with_bits(by_gptq: tuple[Program, dict[str, list[QTensor]]]) -> None:
    """With no break, whatever rounds."""
    program, found = by_gptq
    measured = damages(program, found)
    for name in found:
        falling = [measured.damage({name: i}) for i in range(len(MENU))]
        assert all(better < worse for worse, better in pairwise(falling)), name


def damages(program: Program, found: dict[str, list[QTensor]]) -> Moves:
    return moves(program, found, of_windows(program, TEXT.windows, own_labels(0)), Env())


def test_a_head_that_reads_the_last_position_alone_counts_once() -> None:
    """Its rows are not tokens."""
    program = captured("llama")
    last = run_passes(program, [LastPosition()], Env()).program
    names = {FIRST: [encode(program.weights[FIRST], MENU[0])], TIED: [encode(program.weights[TIED], MENU[0])]}  # type: ignore[arg-type]
    shifts = damages(last, names).shifts
    assert shifts[TIED].shape == shifts[FIRST].shape
    assert float(shifts[TIED].abs().sum()) > 0
