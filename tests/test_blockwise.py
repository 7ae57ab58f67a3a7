"""Storing a program block by block: what each block is given, what it should make, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from architectures import captured

from drawplate.analysis.sites import sites
from drawplate.blockwise import Problem, in_one_part, store_blockwise
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.learning.state import Aside
from drawplate.probing import run
from drawplate.program import Program
from drawplate.streaming import inputs_of

FOUR = Encoding.parse("i4 block 1x16 sym scale f32")
WINDOWS = torch.randint(3, 97, (5, 12), generator=torch.Generator().manual_seed(1))
NOWHERE = Aside(None, "")


def rounded(problem: Problem) -> dict[str, QTensor]:
    return {name: encode(weight, FOUR) for name, weight in problem.weights.items()}


def blockwise(
    program: Program, solve: Callable[[Problem], Mapping[str, QTensor]], aside: Aside = NOWHERE, budget: int = 1 << 30
) -> dict[str, QTensor]:
    names = in_one_part(program) & {s.name for s in sites(program) if s.role == "linear"}
    return store_blockwise(
        program, dict.fromkeys(names, FOUR), list(inputs_of(program, WINDOWS)), solve, aside, budget=budget
    )


def with_weights(program: Program, stored: Mapping[str, QTensor]) -> Program:
    editor = program.edit()
    editor.weights.update(stored)
    return editor.finish()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral", "cohere", "gpt-neox", "smollm3"])
def test_targets_are_the_float_program_s_and_inputs_the_stored_one_s(name: str) -> None:
    program = captured(name)
    problems: list[Problem] = []
    stored = blockwise(program, lambda p: problems.append(p) or rounded(p))
    assert [p.name for p in problems] == sorted({p.name for p in problems})
    last = problems[-1]
    (given,), (made,) = last.part.needs[:1], last.part.gives
    nodes = dict(zip(program.graph.nodes, with_weights(program, stored).graph.nodes, strict=True))
    for window, inputs in enumerate(inputs_of(program, WINDOWS)):
        seen: dict[object, torch.Tensor] = {}
        run(program, inputs, watch=lambda n, _, v, seen=seen: seen.update({n: v}))
        torch.testing.assert_close(last.targets[window][made], seen[made])
        again: dict[object, torch.Tensor] = {}
        run(with_weights(program, stored), inputs, watch=lambda n, _, v, again=again: again.update({n.name: v}))
        torch.testing.assert_close(last.inputs[window][given], again[nodes[given].name])


def test_the_loss_and_its_gradient_are_of_what_the_part_gives() -> None:
    problems: list[Problem] = []
    blockwise(captured("llama"), lambda p: problems.append(p) or rounded(p))
    problem = problems[0]
    weights = {name: w.dequantize() for name, w in rounded(problem).items()}
    windows = range(len(WINDOWS))
    loss, gradients = problem.gradients(weights, windows)
    assert loss == pytest.approx(problem.loss(weights), rel=1e-5)
    assert problem.loss(problem.weights) < 1e-10
    name, step = max(weights, key=lambda n: float(gradients[n].norm())), 1e-3
    along = {**weights, name: weights[name] - step * gradients[name]}
    expected = step * float(gradients[name].square().sum())
    assert loss - problem.loss(along) == pytest.approx(expected, rel=0.05)


def test_a_killed_run_goes_on_behind_the_last_block(tmp_path: Path) -> None:
    program, whole = captured("qwen2"), blockwise(captured("qwen2"), rounded)
    aside = Aside(tmp_path, "this")

    def killed(problem: Problem) -> dict[str, QTensor]:
        if "1" in problem.name:
            raise KeyboardInterrupt
        return rounded(problem)

    with pytest.raises(KeyboardInterrupt):
        blockwise(program, killed, aside)
    solved: list[str] = []
    resumed = blockwise(program, lambda p: solved.append(p.name) or rounded(p), aside)
    assert solved == ["model.layers.1"]
    assert resumed.keys() == whole.keys()
    for name, weight in whole.items():
        assert torch.equal(weight.dequantize(), resumed[name].dequantize())
    solved.clear()
    blockwise(program, lambda p: solved.append(p.name) or rounded(p), Aside(tmp_path, "another"))
    assert len(solved) == 2


def test_values_on_disk_are_the_same_numbers() -> None:
    losses: list[float] = []

    def solve(problem: Problem) -> dict[str, QTensor]:
        losses.append(problem.loss({n: w.dequantize() for n, w in rounded(problem).items()}))
        return rounded(problem)

    blockwise(captured("llama"), solve)
    blockwise(captured("llama"), solve, budget=0)
    assert losses[:2] == losses[2:]
    assert losses[0] > 0


def test_a_table_and_what_is_read_twice_are_in_no_one_part() -> None:
    tied = captured("llama")
    assert "model.embed_tokens.weight" not in in_one_part(tied)
    assert {s.name for s in sites(tied) if s.role == "linear"} <= in_one_part(tied)
