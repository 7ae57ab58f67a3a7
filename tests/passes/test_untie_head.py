"""untie-head: two weights where there was one, and what they are good for."""

from __future__ import annotations

import pytest
import torch
from architectures import captured
from passkit import MLP, TIED

from drawplate.analysis.sites import sites
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.rotate import Rotate
from drawplate.passes.untie_head import UntieHead
from drawplate.runner import run_passes
from drawplate.testing import check_pass


def test_head_and_table_are_two_and_equal() -> None:
    program = check_pass(UntieHead(), TIED).program
    roles = {s.name: s.role for s in sites(program)}
    assert roles == {"embed": "embedding", "up": "linear", "head.weight": "head"}
    assert torch.equal(program.weights["embed"], program.weights["head.weight"])  # type: ignore[arg-type]
    assert program.weights["embed"] is program.weights["head.weight"]  # no second copy in memory


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_each_is_stored_in_its_own_way_and_no_map_is_left(name: str) -> None:
    program = captured(name)
    apart = run_passes(program, [UntieHead(), FoldNorms(), Rotate()], Env()).program
    tied = run_passes(program, [FoldNorms(), Rotate()], Env()).program
    linears = [len(list(p.nodes(torch.ops.aten.linear.default))) for p in (program, apart)]
    assert linears[0] == linears[1]
    assert len(list(tied.nodes())) > len(list(apart.nodes()))
    stored = run_passes(apart, [QuantizeEmbedding(4, (1, -1)), QuantizeWeights("head", 8, (1, -1))], Env()).program
    bits = {s.role: stored.encodings[s.name].bits for s in sites(stored) if s.name in stored.encodings}
    assert bits == {"embedding": 4, "head": 8}


def test_it_says_so_where_nothing_is_tied() -> None:
    (refusal,) = check_pass(UntieHead(), MLP).refusals
    assert refusal.why == "no table is embedding and head at once"
