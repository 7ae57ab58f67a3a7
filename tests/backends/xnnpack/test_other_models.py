"""Models that generate no text: an encoder, which XNNPACK runs whole, and a convolutional network, of which some."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import captured_convnet
from xnnkit import called, emitted, relative

from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.program import Program
from drawplate.testing import byte_reasons


@pytest.fixture(scope="module")
def encoder() -> Program:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return canonicalise(capture(BertModel(config, add_pooling_layer=False).eval(), name="encoder").program)


@pytest.mark.parametrize(("batch", "delegates"), [(1, 1), (4, 5)])
def test_an_encoder(encoder: Program, batch: int, delegates: int, tmp_path: Path) -> None:
    """One text at a time is one delegate; of several, XNNPACK cannot cut rows into heads (two lengths vary)."""
    emission = emitted(encoder, tmp_path, XnnpackBackend(batch=batch))
    assert byte_reasons(emission, tmp_path, encoder) == []
    assert emission.notes[0].startswith(f"{delegates} delegates")
    assert sum(f.share_macs for f in emission.fallbacks) == 0
    for rows, length in ((1, 9), (batch, 20)):
        ids = torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        (wanted,) = [out[0] if isinstance(out, tuple) else out for out in [encoder.module()(ids, mask)]]
        (found,) = called(tmp_path, ids, mask)
        assert relative(found, wanted) < 1e-5


def test_a_convolutional_network(tmp_path: Path) -> None:
    program = captured_convnet()
    emission = emitted(program, tmp_path, XnnpackBackend(batch=4))
    assert byte_reasons(emission, tmp_path, program) == []
    convolutions = next(f for f in emission.fallbacks if f.op == "aten.conv2d")
    assert convolutions.count == 2
    assert convolutions.why == "XNNPACK has no such operator"
    assert 0.9 < convolutions.share_macs < 1
    for rows in (1, 3):
        images = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(rows))
        assert relative(called(tmp_path, images)[0], program.module()(images)) < 1e-5
