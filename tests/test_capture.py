"""Capture: names, sharing, dtypes, dims and source lines, from folders, models in memory and plain modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import LAYERS, SIZES, build, convnet, decoder_inputs, eager

from drawplate.canonical import canonicalise, unrecognised
from drawplate.capture import capture
from drawplate.program import Dim, Spec
from drawplate.spec import check

from fetch_data import ROOT

aten = torch.ops.aten
MINILM = ROOT / "minilm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tied table as save_pretrained leaves it, and a tokenizer file next to it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("llama").save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return path


def test_a_folder(folder: Path) -> None:
    from safetensors import safe_open

    captured = capture(folder)
    program, assets = captured.program, captured.assets
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert program.name == "tiny"
    assert program.inputs == (
        Spec("input_ids", torch.int64, ("b", "s")),
        Spec("position_ids", torch.int64, ("b", "s")),
    )
    assert program.dims == (Dim("b", 1, 1024), Dim("s", 1, SIZES["max_position_embeddings"]))
    assert set(program.weights) == stored | {"model.rotary_emb.inv_freq"}
    assert (assets.folder, assets.context, assets.bos, assets.eos) == (folder, 64, 1, (2,))
    assert (assets.vocabulary, [f.name for f in assets.files]) == (
        97,
        ["tokenizer.json", "generation_config.json", "config.json"],
    )
    assert check(program, "captured") == []


def test_a_tied_table_is_one_weight_with_two_readers() -> None:
    program = canonicalise(capture(build("llama")).program)
    assert {str(n.target) for n in program.readers("model.embed_tokens.weight")} == {
        "aten.embedding.default",
        "aten.linear.default",
    }
    assert "lm_head.weight" not in program.weights


def test_weights_are_shared_with_the_model() -> None:
    model = build("gpt2")
    known = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    for program in (capture(model).program, canonicalise(capture(model).program)):
        assert all(w.data_ptr() in known for w in program.weights.values())  # transposes are views


def test_every_node_knows_the_models_own_line() -> None:
    program = capture(eager("llama")).program
    up = next(n for n in program.nodes(aten.linear.default) if n.meta["site"] == "model.layers.1.mlp.up_proj")
    assert up.meta["source"].startswith("modeling_llama.py:")
    assert "self.up_proj(x)" in up.meta["source"]
    assert {n.op for n in program.graph.nodes if not {"val", "source", "site"} <= n.meta.keys()} == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_checkpoint_is_loaded_in_the_dtype_asked_for(folder: Path, dtype: torch.dtype) -> None:
    program = canonicalise(capture(folder, dtype=dtype).program)
    linear = [w for n, w in program.weights.items() if n.endswith("proj.weight")]
    assert {w.dtype for w in linear} == {dtype}
    assert len(list(program.nodes(aten.rms_norm.default))) == 2 * LAYERS + 1
    assert unrecognised(program) == []
    ids, positions = decoder_inputs(2, 9)
    with torch.no_grad():
        got = program.module()(ids, positions)
        want = build("llama").to(dtype)(input_ids=ids).logits
    assert got.dtype == dtype
    assert (got - want).abs().max() <= 30 * torch.finfo(dtype).eps * want.abs().max()


def test_a_half_precision_checkpoint_in_float32(tmp_path: Path) -> None:
    build("qwen2").to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    program = capture(tmp_path).program
    assert {w.dtype for w in program.weights.values()} == {torch.float32}


def test_the_convolutional_network() -> None:
    network, inputs, dynamic = convnet()
    program = canonicalise(capture(network, example_inputs=inputs, dynamic=dynamic).program)
    assert program.inputs == (Spec("images", torch.float32, ("b", 3, 16, 16)),)
    assert unrecognised(program) == []
    assert check(program, "canonical") == []
    for batch in (1, 7):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            assert (program.module()(images) - network(images)).abs().max() <= 1e-5


@pytest.mark.skipif(not MINILM.is_dir(), reason="scripts/fetch_data.py was not run")
def test_the_real_encoder() -> None:
    import transformers

    program = canonicalise(capture(MINILM).program)
    model = transformers.AutoModel.from_pretrained(MINILM).eval()
    assert [s.name for s in program.inputs] == ["input_ids", "attention_mask"]
    assert len(list(program.nodes(aten.layer_norm.default))) == 13
    assert len(list(program.nodes(aten.scaled_dot_product_attention.default))) == 6
    assert unrecognised(program) == []
    assert check(program, "canonical") == []
    generator = torch.Generator().manual_seed(0)
    for batch, length in ((1, 1), (3, 40)):
        ids = torch.randint(0, 30000, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        with torch.no_grad():
            want = model(input_ids=ids, attention_mask=mask).last_hidden_state
            assert (program.module()(ids, mask) - want).abs().max() <= 1e-5


def test_module_with_several_inputs_and_outputs() -> None:
    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, x * y

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    program = canonicalise(capture(Pair(), example_inputs={"y": y, "x": x}, name="pair").program)
    assert [s.name for s in program.inputs] == ["x", "y"]
    assert program.name == "pair"
    assert all(torch.equal(a, b) for a, b in zip(program.module()(x, y), (x + y, x * y), strict=True))
