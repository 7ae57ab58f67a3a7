"""GGUF files: a tiny one that the test writes, and the real one."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from architectures import LAYERS, SIZES, build, decoder_inputs
from torch import Tensor

from drawplate.canonical import canonicalise
from drawplate.capture import capture

from fetch_data import ROOT

REAL = ROOT / "smollm2-135m-instruct"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """GGUF has rotary pairs next to each other, the checkpoint has them half a head apart. weight: [heads * d, in]."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write(path: Path, state: dict[str, Tensor]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    heads, groups = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]
    writer.add_block_count(LAYERS)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(SIZES["hidden_size"] // heads)
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = interleaved(weight, heads if theirs == "attn_q" else groups)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_tiny_file(tmp_path: Path) -> None:
    model = build("llama")
    write(tmp_path / "tiny.gguf", model.state_dict())
    captured = capture(tmp_path / "tiny.gguf")
    program = canonicalise(captured.program)
    ids, positions = decoder_inputs(2, 11)
    with torch.no_grad():
        got, want = program.module()(ids, positions), model(input_ids=ids).logits
    assert program.name == "tiny"
    assert captured.assets.context == SIZES["max_position_embeddings"]
    assert (got - want).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="scripts/fetch_data.py was not run")
def test_the_real_file() -> None:
    (file,) = REAL.glob("*.gguf")
    program = canonicalise(capture(file).program)
    folder = canonicalise(capture(REAL / "hf").program)
    assert all(torch.equal(w, folder.weights[n]) for n, w in program.weights.items())  # type: ignore[arg-type]
    assert list(program.weights) == list(folder.weights)
