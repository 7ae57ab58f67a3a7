"""The form that regions are cut from computes the same, and the regions are as large as they can be."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from xnnkit import cached, fed, preset, relative, traced

from drawplate.backends.xnnpack.bounds import bounded
from drawplate.backends.xnnpack.form import form
from drawplate.backends.xnnpack.partition import Plan, Region, partition
from drawplate.errors import BackendError
from drawplate.program import Dim, Program
from drawplate.runtime import ProgramRunner

aten = torch.ops.aten
PIECES = (1, 6, 1, 12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt-neox", "cohere", "phi3", "mistral"])
def test_the_same_function_without_transposes(name: str) -> None:
    program = cached(name)
    formed = form(program)
    assert not any(formed.nodes(torch.ops.drawplate.rotary.default, aten.transpose.int, aten.split.Tensor))
    for a, b in zip(fed(ProgramRunner(formed), PIECES), fed(ProgramRunner(program), PIECES), strict=True):
        assert relative(a, b) < 1e-6


class Turned(nn.Module):
    """Transposes that must stay, that cancel, and that meet others on the way."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x, y: [n, 3, 4, 5]."""
        a, b = x.transpose(1, 2), y.transpose(1, 2)
        other = y.transpose(1, 3)
        return (
            (F.silu(a) + b).transpose(1, 2),
            a.transpose(2, 3) * 2,
            torch.cat([a, b], 1).transpose(1, 2),
            torch.cat([a, x.reshape(x.shape[0], 4, 3, 5)], 1),
            a + x.reshape(x.shape[0], 4, 3, 5),
            a[:, 1:3].transpose(1, 2),
            F.layer_norm(a, [5]).transpose(1, 2),
            F.layer_norm(other, [3]).transpose(1, 3),
            a * y[:, :1, :1].reshape(y.shape[0], 1, 1, 5),
            (a * y.mean(dim=(0, 1, 2))).transpose(1, 2),
        )


def test_only_what_may_move_is_moved() -> None:
    x, y = (torch.randn(5, 3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    rows = {0: Dim("n", 1, 8)}
    program = traced(Turned(), x, y, dynamic={"x": rows, "y": rows})
    formed = form(program)
    for i, (a, b) in enumerate(zip(formed.module()(x, y), program.module()(x, y), strict=True)):
        assert torch.allclose(a, b, atol=1e-6), f"result {i}"
    left, before = (sum(1 for _ in p.nodes(aten.transpose.int)) for p in (formed, program))
    assert left < before


class Diamond(nn.Module):
    """A value that goes around through an operator that XNNPACK lacks, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        return self.down(F.silu(h) + h.cumsum(-1)) + h


def regions_and_edges(plan: Plan, program: Program) -> nx.DiGraph:
    """Regions as one node each, with everything else around them."""
    owner = {node: region.key for region in plan.regions for node in region.nodes}
    graph = nx.DiGraph()
    for node in program.graph.nodes:
        for x in node.all_input_nodes:
            a, b = owner.get(x, x.name), owner.get(node, node.name)
            if a != b:
                graph.add_edge(a, b)
    return graph


def test_no_region_is_entered_again() -> None:
    for program in (traced(Diamond(), torch.randn(3, 8)), preset("meta-8da4w")):
        formed = form(program)
        plan = partition(formed)
        assert nx.is_directed_acyclic_graph(regions_and_edges(plan, formed))
        ran: set[str] = {n.name for n in formed.graph.nodes if n.op in ("placeholder", "get_attr")}
        for step in plan.order:
            reads = step.inputs if isinstance(step, Region) else step.all_input_nodes
            assert {n.name for n in reads} <= ran
            ran |= {n.name for n in step.outputs} if isinstance(step, Region) else {step.name}


def test_a_diamond_is_cut_in_two() -> None:
    program = form(traced(Diamond(), torch.randn(3, 8)))
    plan = partition(program)
    assert [len(r.nodes) for r in plan.regions] == [2, 3]
    assert [str(n.target) for n in plan.outside] == ["aten.cumsum.default"]
    assert list(plan.outside.values()) == ["XNNPACK has no such operator"]


def test_one_region_between_attentions() -> None:
    plan = partition(form(preset("meta-8da4w")))
    assert len(plan.regions) == 3  # before the first attention, between the two, after the second
    assert partition(form(preset("meta-8da4w"))).regions[1].key == plan.regions[1].key


def test_moving_data_alone_is_not_worth_a_call() -> None:
    class Moves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(0).reshape(4, 6).transpose(0, 1).cumsum(0)

    plan = partition(form(traced(Moves(), torch.randn(6, 4))))
    assert plan.regions == ()
    assert "moves data between operators that XNNPACK does not run" in str(plan.outside.values())


def test_bounds() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    program = traced(Sum(), torch.randn(5, 4), dynamic={"x": {0: Dim("n", 4, 64)}})
    assert bounded(program, 16, 1).dims == (Dim("n", 4, 16),)
    with pytest.raises(BackendError) as error:
        bounded(program, 1, 1)
    assert str(error.value) == (
        "the program takes no less than 4 along 'n'\n"
        "  where: small\n"
        "  why:   the .pte is to take 1 at most\n"
        "  do:    use xnnpack{batch=4} or more"
    )
