"""Linears that are added up: found on the graph, and an error of one made up for by the next."""

from __future__ import annotations

import pytest
import torch
from architectures import captured
from graphkit import program

from drawplate.analysis.sites import Site, sites
from drawplate.encoding import Encoding, QTensor
from drawplate.gptq import Settings, gptq
from drawplate.passbase import Env
from drawplate.passes.split_bands import SplitBands
from drawplate.streaming import store_streamed
from drawplate.sums import total
from drawplate.testing import check_pass

THREE = Encoding(3, (1, 8))
BANDED = """  %t = aten.embedding(@e, %i)
  %a = aten.linear(%t, @a)
  %b = aten.linear(%t, @b)
  %c = aten.linear(%t, @c)
  %y0 = aten.linear(%a, @p)
  %y1 = aten.linear(%b, @q)
  %y2 = aten.linear(%c, @r)
  %s0 = aten.add.Tensor(%y0, %y1)
  %s1 = aten.add.Tensor(%s0, %y2)
  %y = aten.add.Tensor(%t, %s1)
  return %y"""
SHAPES = {**dict.fromkeys("abc", (16, 8)), **dict.fromkeys("pqr", (8, 16)), "e": (64, 8)}


def stored(lines: str) -> tuple[float, dict[str, QTensor]]:
    """The error of the output after p, q and r were stored by GPTQ, on what they were stored on."""
    before = program(lines, **SHAPES)
    wanted = [s for s in sites(before) if s.name in ("p", "q", "r")]
    inputs = [(torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(i)),) for i in range(8)]

    def encoder(site: Site, weight: torch.Tensor, moments: torch.Tensor) -> QTensor:
        return gptq(weight, moments, THREE, Settings())

    found = store_streamed(before, wanted, inputs, encoder, Env(), "store", budget=1 << 20)
    editor = before.edit()
    editor.weights.update(found)
    after = editor.finish()
    moved = [after.module()(*i) - before.module()(*i) for i in inputs]
    return float(torch.cat(moved).square().mean()), found


def test_the_next_linear_makes_up_for_the_one_before() -> None:
    """All three read the same eight channels, so what one gets wrong another can put right; where a product stands
    between them and the sum, each is on its own."""
    together, _ = stored(BANDED)
    alone, _ = stored(
        BANDED.replace(
            "%s0 = aten.add.Tensor(%y0, %y1)", "%z = aten.mul.Tensor(%y1, 1.0)\n  %s0 = aten.add.Tensor(%y0, %z)"
        )
    )
    assert together < 0.5 * alone


def test_the_first_is_stored_as_if_it_were_alone() -> None:
    one = BANDED.replace("%y = aten.add.Tensor(%t, %s1)", "%y = aten.add.Tensor(%t, %y0)")
    assert torch.equal(stored(BANDED)[1]["p"].codes, stored(one)[1]["p"].codes)


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
