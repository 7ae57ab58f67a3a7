"""Roles of weights, found on the graph."""

from __future__ import annotations

from collections import Counter

import pytest
from architectures import DECODERS, SIZES, captured, captured_convnet

from drawplate.analysis.sites import sites

TIED = {"llama", "gemma", "gemma2", "gemma2-softcap", "gemma3", "gpt2", "smollm3", "cohere"}


@pytest.mark.parametrize("name", DECODERS)
def test_roles(name: str) -> None:
    found = sites(captured(name))
    roles = Counter(s.role for s in found)
    linears = DECODERS[name].linears - 1
    assert roles == ({"tied": 1, "linear": linears} if name in TIED else {"embedding": 1, "head": 1, "linear": linears})
    table = next(s for s in found if s.role in ("tied", "embedding"))
    assert table.shape == (SIZES["vocab_size"], SIZES["hidden_size"])
    assert found[0] is table


def test_a_site_in_full() -> None:
    found = {s.name: s for s in sites(captured("llama"))}
    up, table = found["model.layers.1.mlp.up_proj.weight"], found["model.embed_tokens.weight"]
    assert (up.role, up.shape, up.macs_per_token) == ("linear", (80, 48), 80 * 48)
    assert up.module == "model.layers.1.mlp.up_proj"
    assert [str(n.target) for n in table.nodes] == ["aten.embedding.default", "aten.linear.default"]
    assert (table.module, table.macs_per_token) == ("model.embed_tokens", 97 * 48)


def test_position_tables_are_not_sites() -> None:
    assert "transformer.wpe.weight" not in {s.name for s in sites(captured("gpt2"))}


def test_without_tokens() -> None:
    assert [(s.name, s.role) for s in sites(captured_convnet())] == [
        ("hidden.weight", "linear"),
        ("head.weight", "head"),
    ]
