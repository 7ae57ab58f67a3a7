"""take-last-row: what runs on one row, and what does not."""

from __future__ import annotations

import pytest
import torch
from architectures import captured
from xnnkit import CACHED, cached, decoder, passed, preset

from drawplate.backends.xnnpack.last_rows import TakeLastRow, one_row
from drawplate.passbase import Env
from drawplate.program import Program
from drawplate.runner import run_passes
from drawplate.testing import check_pass

aten = torch.ops.aten


def rows(program: Program) -> dict[str, int]:
    """Site of each linear -> how many rows it computes, 0 for all."""
    shapes = {str(n.meta["site"]): n.meta["val"].shape[1] for n in program.nodes(aten.linear.default)}
    return {site: n if isinstance(n, int) else 0 for site, n in shapes.items()}


def test_the_same_function_on_one_row() -> None:
    outcome = check_pass(TakeLastRow(), passed(decoder(), CACHED))
    assert [c.invariant for c in outcome.certificates] == ["SIGNATURE", "SAME_FUNCTION"]
    found = rows(outcome.program)
    assert {site for site, n in found.items() if n == 1} == {
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
        "lm_head",
    }


def test_rounded_activations_too() -> None:
    """drawplate.encode treats each row by itself; the norm and the rounding move behind the selection."""
    assert sum(n == 1 for n in rows(preset("meta-8da4w")).values()) == 4  # o, gate and up in one, down, head


@pytest.mark.parametrize("name", ["gpt-neox", "gemma2", "phi3", "granite"])
def test_architectures(name: str) -> None:
    outcome = run_passes(passed(captured(name), CACHED), [TakeLastRow()], Env())
    assert all(c.holds for c in outcome.certificates)
    assert sum(n == 1 for n in rows(outcome.program).values()) >= 3


def test_nothing_to_do() -> None:
    program = passed(decoder(), "add-kv-cache{context=64}")
    assert one_row(program) == {}
    assert TakeLastRow().run(program, Env()) is program


def test_twice_changes_nothing() -> None:
    once = cached("llama")
    assert str(TakeLastRow().run(once, Env())) == str(once)
