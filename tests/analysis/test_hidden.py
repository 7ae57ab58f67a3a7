"""Hidden axes: found between linears whatever the model calls them, and refused where channels are not alone."""

from dataclasses import replace

import pytest
import torch
from architectures import DECODERS, LAYERS, captured, captured_convnet
from graphkit import program

from drawplate.analysis.bases import Barrier
from drawplate.analysis.hidden import HiddenAxis, bands, hidden_axes, weight_name
from drawplate.passes.split_bands import SplitBands
from drawplate.testing import check_pass

SHAPES = {"up": (16, 8), "gate": (16, 8), "down": (8, 16), "g": (16,), "two": (32, 8), "bias": (16,)}
FUSED = ("phi3",)
UNGATED = ("phi", "gpt-neox", "gpt2", "bert")


def axes(lines: str, **shapes: tuple[int, ...]) -> list[HiddenAxis | Barrier]:
    return list(hidden_axes(program(lines, **{**SHAPES, **shapes})))


@pytest.mark.parametrize("name", [n for n in (*DECODERS, "bert") if n != "mixtral"])
def test_every_mlp_is_found(name: str) -> None:
    found = list(hidden_axes(captured(name)))
    assert len(found) == LAYERS
    for axis in found:
        assert isinstance(axis, HiddenAxis)
        assert axis.width == (192 if name == "gpt2" else 80)
        assert len(axis.writers) == (1 if name in UNGATED else 2)
        assert len({w.linear for w in axis.writers}) == (1 if name in (*FUSED, *UNGATED) else 2)
        assert len(axis.readers) == 1
        assert weight_name(axis.readers[0]) == weight_name(axis.readers[-1])
        for writer in axis.writers:
            assert sorted(writer.rows.tolist()) == list(
                range(int(writer.rows.min()), int(writer.rows.min()) + axis.width)
            )


def test_shared_experts_and_image_models_have_them_too() -> None:
    shared = [a for a in hidden_axes(captured("qwen2-moe")) if isinstance(a, HiddenAxis)]
    assert [a.width for a in shared] == [32, 32]
    (axis,) = hidden_axes(captured_convnet())
    assert isinstance(axis, HiddenAxis)
    assert (axis.width, axis.name) == (12, "hidden.weight")


STREAM = """  %t = aten.embedding(@e, %i)
"""
UP = STREAM + "  %u = aten.linear(%t, @up)  // up\n"
DOWN = "  %y = aten.linear(%a, @down)  // down\n  return %y"


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (UP + "  %s = aten.softmax.int(%u, -1)\n  %a = aten.mul.Tensor(%u, %s)\n" + DOWN,
         "channels are read by 'softmax'"),
        (UP + "  %a = aten.silu(%u)\n  %z = aten.linear(%a, @down)\n  return %a", "channels are read by the output"),
        (UP + "  %k = aten.cat([%u, %u], -1)\n  %a = aten.silu(%u)\n  %z = aten.linear(%k, @both)\n"
         "  %d = aten.linear(%a, @down)\n  %y = aten.add.Tensor(%z, %d)\n  return %y", "channels are read by 'cat'"),
        (UP + "  %n = aten.cumsum(%u, -1)\n  %a = aten.silu(%n)\n" + DOWN, None),
        (STREAM + "  %v = aten.linear(%t, @two)\n  %c = aten.chunk(%v, 2, -1)\n  %g = getitem(%c, 0)\n"
         "  %a = aten.silu(%g)\n" + DOWN, "rows of two are read elsewhere too"),
        (UP + "  %a = aten.silu(%u)\n  %d = aten.linear(%a, @down)\n  %u2 = aten.linear(%d, @up)\n"
         "  %a2 = aten.silu(%u2)\n  %y = aten.linear(%a2, @down)\n  return %y",
         "its weight is computed, or read elsewhere too"),
        (UP + "  %w = aten.silu(@down)\n  %a = aten.silu(%u)\n  %y = aten.linear(%a, %w)\n  return %y",
         "its weight is computed, or read elsewhere too"),
        (UP + "  %o = aten.linear(%t, @g2)\n  %r = aten.slice.Tensor(%o, 1, 0, 1)\n  %m = aten.mul.Tensor(%u, %r)\n"
         "  %a = aten.silu(%m)\n" + DOWN, "it is more than a part of what a linear gives"),
    ],
)  # fmt: skip
def test_it_says_why_channels_are_not_alone(lines: str, why: str | None) -> None:
    found = axes(lines, both=(8, 32), g2=(16, 8))
    told = [a.why for a in found if isinstance(a, Barrier)]
    assert not [a for a in found if isinstance(a, HiddenAxis)]
    assert (why in told) if why else not told


def test_a_residual_stream_is_none() -> None:
    lines = UP + "  %a = aten.silu(%u)\n  %d = aten.linear(%a, @down)\n  %v = aten.add.Tensor(%t, %d)\n"
    (axis,) = axes(lines + "  %y = aten.linear(%v, @h)\n  return %y")
    assert isinstance(axis, HiddenAxis)
    assert axis.name == "up"


def test_linears_of_bands_are_told_apart_and_those_of_one_axis_are_not() -> None:
    llama = captured("llama")
    assert bands(llama) == {}
    cut = check_pass(SplitBands((2,), multiple=8), llama).program
    found = {weight_name(linear): number for linear, number in bands(cut).items()}
    assert len(found) == 4 * LAYERS
    assert all(number == int(name.partition(".band")[2][0]) for name, number in found.items())


def test_so_are_the_bands_of_values_which_are_put_together_again() -> None:
    cut = check_pass(SplitBands((2,), where="values", multiple=8), captured("qwen2")).program
    found = {weight_name(linear): number for linear, number in bands(cut).items()}
    assert found == {
        f"model.layers.{layer}.self_attn.v_proj.band{i}.weight": i for layer in range(LAYERS) for i in range(2)
    }


def test_the_order_of_an_axis_means_nothing() -> None:
    """Rows and columns permuted by hand: the same function, to rounding."""
    for name in ("qwen2", "phi3", "gpt2"):
        before = captured(name)
        weights = dict(before.weights)
        generator = torch.Generator().manual_seed(0)
        for axis in hidden_axes(before):
            assert isinstance(axis, HiddenAxis)
            order = torch.randperm(axis.width, generator=generator)
            for writer in axis.writers:
                for read in writer.linear.all_input_nodes[1:]:
                    moved = weights[read.target].clone()
                    moved[writer.rows] = weights[read.target][writer.rows[order]]
                    weights[read.target] = moved
            for reader in axis.readers:
                weights[weight_name(reader)] = weights[weight_name(reader)][:, order]
        ids = torch.arange(20).reshape(2, 10)
        inputs = (ids, torch.arange(10).expand_as(ids))
        a, b = (p.module(dtype=torch.float64)(*inputs) for p in (before, replace(before, weights=weights)))
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
        assert any(not torch.equal(weights[n], w) for n, w in before.weights.items())
