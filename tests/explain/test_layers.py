"""Where weights stand is read off the graph; names are labels."""

from __future__ import annotations

import pytest
from architectures import captured

from drawplate.analysis.sites import sites
from drawplate.explain.layers import Places, places


def of(name: str) -> Places:
    """Every site of the model."""
    program = captured(name)
    return places(program, [s.name for s in sites(program)])


def test_a_tied_table_stands_before_the_layers() -> None:
    found = of("llama")
    assert found.layers == ("in", "0", "1")
    assert found.of["model.embed_tokens.weight"] == ("in", "model.embed_tokens")
    assert found.of["model.layers.1.mlp.down_proj.weight"] == ("1", "mlp.down_proj")
    assert found.components[:3] == ("model.embed_tokens", "self_attn.q_proj", "self_attn.k_proj")
    assert len(found.components) == 8


def test_a_head_of_its_own_stands_behind_them() -> None:
    found = of("mistral")
    assert found.layers == ("in", "0", "1", "out")
    assert found.of["lm_head.weight"] == ("out", "lm_head")


def test_a_layer_keeps_its_number_where_the_ones_before_it_hold_nothing() -> None:
    program = captured("mistral")
    found = places(program, ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
    assert found.layers == ("1", "out")
    assert found.of["model.layers.1.mlp.down_proj.weight"] == ("1", "mlp.down_proj")


@pytest.mark.parametrize("name", ["gpt2", "phi3", "gemma3", "gpt-neox", "mixtral"])
def test_layers_hold_the_same_components(name: str) -> None:
    found = of(name)
    first, second = ([c for layer, c in found.of.values() if layer == n] for n in ("0", "1"))
    assert first == second
    assert len(set(first)) == len(first) > 1
