"""Blocks: cut points by dominators, layers by repetition."""

from __future__ import annotations

from itertools import pairwise

import pytest
from architectures import DECODERS, LAYERS, captured, captured_convnet

from drawplate.analysis.blocks import blocks, cut_points, grouped
from drawplate.program import Program

LAYER = {"gpt-neox": "gpt_neox.layers.{}", "gpt2": "transformer.h.{}"}
UNLIKE = {"gemma2", "gemma3", "smollm3"}  # a window, or no rotary embedding, in one of the two layers


@pytest.mark.parametrize("name", DECODERS)
def test_layers(name: str) -> None:
    found = blocks(captured(name))
    assert [b.name for b in found[:LAYERS]] == [LAYER.get(name, "model.layers.{}").format(i) for i in range(LAYERS)]
    assert len(found) == LAYERS + 1  # the final norm
    assert (found[0].kind == found[1].kind) == (name not in UNLIKE)
    assert found[-1].kind not in (found[0].kind, found[1].kind)
    check_chain(captured(name))


def check_chain(program: Program) -> None:
    """One value in, one value out; nothing twice; only the input value and values outside all blocks come in."""
    found = blocks(program)
    inside = [n for b in found for n in b.nodes]
    assert len(inside) == len(set(inside))
    for before, after in pairwise(found):
        assert before.output is after.input
    for block in found:
        nodes = set(block.nodes)
        for node in nodes:
            assert all(i in nodes or i is block.input or i not in inside for i in node.all_input_nodes)
            assert node is block.output or all(u in nodes for u in node.users)


def test_weights_of_a_layer() -> None:
    first = blocks(captured("llama"))[0]
    assert len(first.weights) == 9
    assert all(w.startswith("model.layers.0.") for w in first.weights)


def test_an_encoder_with_its_norms_behind() -> None:
    from transformers import BertConfig, BertModel

    from drawplate.canonical import canonicalise
    from drawplate.capture import capture

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32}
    config = BertConfig(**sizes, num_hidden_layers=3, num_attention_heads=2)
    program = canonicalise(capture(BertModel(config, add_pooling_layer=False)).program)
    assert [(b.name, b.kind) for b in blocks(program)] == [
        ("embeddings.LayerNorm", 0),
        ("encoder.layer.0", 1),
        ("encoder.layer.1", 1),
        ("encoder.layer.2", 1),
    ]
    check_chain(program)


def test_a_convolutional_network() -> None:
    program = captured_convnet()
    assert [b.name for b in blocks(program)] == ["stem", "norm", "relu", "deep", "max_pool2d", "mean", "hidden"]
    check_chain(program)
    assert cut_points(program)[0].op == "placeholder"


@pytest.mark.parametrize(
    ("segments", "groups"),
    [
        ("", []),
        ("x", [[0]]),
        ("aaa", [[0], [1], [2]]),
        ("abab", [[0, 1], [2, 3]]),
        ("pababn", [[0], [1, 2], [3, 4], [5]]),
        ("ababa", [[0], [1, 2], [3, 4]]),
    ],
)
def test_grouped(segments: str, groups: list[list[int]]) -> None:
    assert grouped(list(segments)) == groups
