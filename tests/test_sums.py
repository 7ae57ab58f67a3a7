"""Linears that are added up: found on the graph, and an error of one made up for by the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import captured
from graphkit import program

from drawplate.analysis.sites import Site, sites
from drawplate.encoding import Encoding, QTensor
from drawplate.gptq import Settings, gptq
from drawplate.passbase import Env
from drawplate.passes.split_bands import SplitBands
from drawplate.program import Program
from drawplate.streaming import store_streamed
from drawplate.sums import total
from drawplate.testing import check_pass

THREE = Encoding(3, (1, 8))
BANDED = """  %t = aten.embedding(@e, %i)
  %u = aten.linear(%t, @a)
  %v = aten.linear(%t, @b)
  %w = aten.linear(%t, @c)
  %a = aten.silu(%u)
  %b = aten.silu(%v)
  %c = aten.silu(%w)
  %y0 = aten.linear(%a, @p)
  %y1 = aten.linear(%b, @q)
  %y2 = aten.linear(%c, @r)
  %s0 = aten.add.Tensor(%y0, %y1)
  %s1 = aten.add.Tensor(%s0, %y2)
  %y = aten.add.Tensor(%t, %s1)
  return %y"""
WHOLE = """  %t = aten.embedding(@e, %i)
  %u = aten.linear(%t, @abc)
  %a = aten.silu(%u)
  %s1 = aten.linear(%a, @pqr)
  %y = aten.add.Tensor(%t, %s1)
  return %y"""
SHAPES = {**dict.fromkeys("abc", (16, 8)), **dict.fromkeys("pqr", (8, 16)), "e": (64, 8)}


def stored(before: Program) -> float:
    """The error of the output after the weights in front of it were stored by GPTQ, on what they were stored on."""
    wanted = [s for s in sites(before) if set(s.name) <= set("pqr")]
    inputs = [(torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(i)),) for i in range(8)]

    def encoder(site: Site, weight: torch.Tensor, moments: torch.Tensor) -> QTensor:
        return gptq(weight, moments, THREE, Settings())

    editor = before.edit()
    editor.weights.update(store_streamed(before, wanted, inputs, encoder, Env(), "store", budget=1 << 20))
    after = editor.finish()
    moved = [after.module()(*i) - before.module()(*i) for i in inputs]
    return float(torch.cat(moved).square().mean())


def test_linears_that_are_added_up_are_stored_as_well_as_one_wide_one() -> None:
    """Where a product stands between one of them and the sum, it is on its own."""
    banded = program(BANDED, **SHAPES)
    whole = program(WHOLE, abc=(48, 8), pqr=(8, 48), e=(64, 8))
    weights: dict[str, Any] = dict(banded.weights)
    joined = {"e": weights["e"], "abc": torch.cat([weights[n] for n in "abc"])}
    joined["pqr"] = torch.cat([weights[n] for n in "pqr"], 1)
    product = BANDED.replace("  %s0", "  %z = aten.mul.Tensor(%y1, 1.0)\n  %s0").replace("(%y0, %y1)", "(%y0, %z)")
    alone = program(product, **SHAPES)
    best, together, apart = map(stored, (replace(whole, weights=joined), banded, replace(alone, weights=weights)))
    assert together < 1.05 * best
    assert together < 0.8 * apart


@pytest.mark.parametrize(("name", "sums"), [("llama", 14), ("phi", 10), ("gpt-neox", 6)])
def test_what_is_added_up_is_found(name: str, sums: int) -> None:
    """Attention and MLP beside each other are one sum per layer; one behind the other they are none."""
    found = [s.nodes[0] for s in sites(captured(name)) if s.role == "linear"]
    assert len({total(n) for n in found}) == sums
    if name == "llama":
        assert all(total(n) is n for n in found)


def test_bands_are() -> None:
    cut = check_pass(SplitBands((5,), multiple=16), captured("llama")).program
    groups: dict[object, set[str]] = {}
    for site in sites(cut):
        if "down_proj" in site.name:
            groups.setdefault(total(site.nodes[0]), set()).add(site.name.partition(".band")[0])
    assert [len(names) for names in groups.values()] == [1, 1]
