"""Turning weights: there and back is the identity, and turned weights read turned values as before."""

import torch
from graphkit import program
from hypothesis import given
from hypothesis import strategies as st

from drawplate.analysis.rotations import Turn, plan
from drawplate.hadamard import apply, orthogonal
from drawplate.turning import fixed_matrices, hadamard_signs, map_weight, online_turned, turn_program, turned


@st.composite
def turns(draw):
    """(weight, turn, matrices): all of an axis, or blocks of it in any order, each with one of the matrices."""
    width, blocks, count = draw(st.integers(2, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    axis, seed = draw(st.integers(0, 1)), draw(st.integers(0, 99))
    matrices = torch.stack([orthogonal(width, seed + i) for i in range(count)])
    if draw(st.booleans()):
        length, index, of = width, None, None
    else:
        length = width * blocks + draw(st.integers(0, 3))
        index = torch.tensor(draw(st.permutations(range(length)))[: width * blocks]).reshape(blocks, width)
        of = torch.tensor(draw(st.lists(st.integers(0, count - 1), min_size=blocks, max_size=blocks)))
    shape = (length, 3) if axis == 0 else (3, length)
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return weight, Turn("w", axis, index, of), matrices


@given(turns())
def test_there_and_back_is_the_identity(case):
    weight, turn, matrices = case
    there = turned(weight, turn, matrices)
    assert torch.allclose(turned(there, turn, matrices.mT), weight)
    assert torch.allclose(there.norm(), weight.norm())


@given(turns())
def test_turned_rows_write_what_turned_columns_read(case):
    weight, turn, matrices = case
    rows = weight if turn.axis == 0 else weight.T
    columns = torch.randn(4, len(rows), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    writes = turned(rows, Turn("w", 0, turn.index, turn.of), matrices)
    reads = turned(columns, Turn("w", 1, turn.index, turn.of), matrices)
    assert torch.allclose(reads @ writes, columns @ rows)


def test_an_online_transform_is_undone_by_its_reader():
    x, weight = torch.randn(3, 24, dtype=torch.float64), torch.randn(5, 24, dtype=torch.float64)
    for block in (24, 12, 4):
        assert torch.allclose(apply(x, block) @ online_turned(weight, 1, block).T, x @ weight.T)


def test_a_map_multiplies_in_the_old_bases():
    x, scale = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    before, after = orthogonal(6, 1), orthogonal(6, 2)
    assert torch.allclose((x @ before) @ map_weight(scale, before, after).T, (x * scale) @ after)
    assert torch.allclose(x @ map_weight(scale, None, after).T, (x * scale) @ after)
    assert torch.allclose((x @ before) @ map_weight(scale, before, None).T, x * scale)


def test_a_map_between_hadamard_bases_is_two_fast_transforms():
    lines = """
  %t = aten.embedding(@e, %i)
  %n = aten.rms_norm(%t, [12], @g, 1e-6)
  %y = aten.linear(%n, @e)
  return %y
"""
    source = program(lines, e=(9, 12), g=(12,))
    found = plan(source)
    (key,) = fixed_matrices(found, "hadamard", 0)[0]
    ids = torch.arange(8).reshape(2, 4)
    before = source.module(dtype=torch.float64)(ids)
    for kind, dense, operators in (("hadamard", False, 2), ("hadamard", True, 0), ("random", False, 0)):
        matrices = fixed_matrices(found, kind, 3)[0]
        done = turn_program(source, found, matrices, dense=dense)
        assert len(list(done.nodes(torch.ops.drawplate.hadamard.default))) == operators
        assert done.weights["g.map.weight"].dim() == (1 if operators else 2)
        assert torch.allclose(done.module(dtype=torch.float64)(ids), before)
        assert (hadamard_signs(matrices[key][0]) is None) == (kind == "random")


def test_each_rotation_has_its_own_seed():
    lines = "  %t = aten.embedding(@e, %i)\n  %y = aten.linear(%t, @h)\n  return %y"
    source = program(lines)
    found = plan(source)
    (key,) = fixed_matrices(found, "random", 0)[0]
    one, other = (fixed_matrices(found, "random", seed)[0][key] for seed in (0, 1))
    assert not torch.allclose(one, other)
    done = turn_program(source, found, {key: one})
    assert torch.allclose(done.weights["h"], source.weights["h"].double() @ one[0])
    assert done.weights["e"].dtype == torch.float64  # rounded once, after it was measured
