"""The backend plugin: what is in the file is what the reference quantiser chose, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from drawplate.canonical import canonicalise
from drawplate.capture import Captured, capture
from drawplate.encoding import Encoding, QTensor, encode, per_token
from drawplate.errors import BackendError
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.rehearsal import without_contents
from drawplate.runtime import ProgramRunner
from drawplate.testing import check_backend
from tests.examples.conftest import SIZES, Save

pytestmark = pytest.mark.usefixtures("installed")

Q8_0 = Encoding(8, (1, 32), scale="f16")
Q4_0 = Encoding(4, (1, 32), scale="f16")


# pre_tokenizer of Llama 3's tokenizer.json
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama(**changes: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **changes})


def captured(folder: Path) -> Captured:
    found = capture(folder)
    return replace(found, program=canonicalise(found.program))


def quantised(program: Program) -> Program:
    """Tables in 8 bits, linears in 4."""
    pick = {name: Q8_0 if "embed" in name or "lm_head" in name else Q4_0 for name in program.weights}
    weights = {n: encode(w, pick[n]) if w.dim() == 2 else w for n, w in program.weights.items()}
    return replace(program, weights=weights)


def backend() -> Any:
    return Session().backends["gguf"]()


def emit(program: Program, assets: Any, into: Path) -> Any:
    into.mkdir()
    b = backend()
    assert b.check(program) == []
    return b.emit(program, into, assets)


def values(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Every tensor of a file, dequantised by the gguf package."""
    found = {t.name: (t, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return {n: torch.from_numpy(v.copy()).reshape(list(reversed(t.shape.tolist()))) for n, (t, v) in found.items()}


@given(st.integers(0, 2**32 - 1), st.sampled_from([Q4_0, Q8_0]), st.integers(1, 4), st.integers(1, 3))
def test_blocks_read_back_as_the_reference_quantiser_has_them(seed: int, e: Encoding, rows: int, groups: int) -> None:
    from drawplate_gguf.blocks import TYPES, blocks

    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 32 * groups, generator=random) * 10 ** torch.empty(rows, 1).uniform_(-4, 3, generator=random)
    q = encode(x, e)
    stored = blocks(q)
    assert stored.nbytes == q.nbytes
    assert torch.equal(torch.from_numpy(gguf.dequantize(stored, TYPES[e])), q.dequantize())


def test_a_model_comes_back_bit_for_bit(save: Save, tmp_path: Path) -> None:
    from drawplate_gguf.architecture import paired_rows

    model = captured(save(llama()))
    program = quantised(model.program)
    emit(program, model.assets, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    found = values(reader)
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_down.weight"] == "Q4_0"
    assert kinds["output_norm.weight"] == "F32"
    assert "output.weight" not in kinds  # tied: the table is there once
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    for theirs, ours in names.items():
        weight = program.weights[f"model.layers.1.{ours}.weight"]
        assert isinstance(weight, QTensor)
        expected = weight.dequantize()
        if theirs in ("attn_q", "attn_k"):
            expected = expected[paired_rows(len(expected), 4 if theirs == "attn_q" else 2)]
        assert torch.equal(found[f"blk.1.{theirs}.weight"], expected), theirs
    table = program.weights["model.embed_tokens.weight"]
    assert isinstance(table, QTensor)
    assert torch.equal(found["token_embd.weight"], table.dequantize())


@pytest.mark.parametrize(
    "config",
    [
        llama(),
        llama(tie_word_embeddings=False, attention_bias=True),
        llama(head_dim=32, rope_theta=50000.0),
        transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
        transformers.Qwen3Config(**SIZES, head_dim=16),
    ],
    ids=["llama", "untied-biased", "wide-heads", "qwen2", "qwen3"],
)
def test_transformers_reads_the_file_and_computes_the_program(
    config: transformers.PretrainedConfig, save: Save, tmp_path: Path
) -> None:
    model = captured(save(config))
    program = quantised(model.program)
    emit(program, model.assets, tmp_path / "out")
    ids = torch.randint(0, 300, (12,), generator=torch.Generator().manual_seed(1))
    runnable = backend().open(tmp_path / "out")
    logits = torch.cat([runnable.step(ids[:7]), runnable.step(ids[7:])])
    torch.testing.assert_close(logits, ProgramRunner(program).step(ids), atol=1e-5, rtol=1e-5)
    runnable.rewind(7)
    torch.testing.assert_close(runnable.step(ids[7:]), logits[7:], atol=1e-5, rtol=1e-5)


def test_the_public_kit_has_nothing_to_object(save: Save, tmp_path: Path) -> None:
    """Every byte in the table, the same bytes twice, the same logits in a process of its own."""
    model = captured(save(llama()))
    program = quantised(model.program)
    emission = check_backend(backend(), program, tmp_path, assets=model.assets, tolerance=1e-5)
    predicted = sum(row.bytes for row in backend().predict(without_contents(program), model.assets))
    assert predicted == sum(row.bytes for row in emission.bytes)


def test_floats_stay_what_they_are(save: Save, tmp_path: Path) -> None:
    model = captured(save(llama()))
    weights = dict(model.program.weights)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].half()
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].bfloat16()
    emit(replace(model.program, weights=weights), model.assets, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert (kinds["token_embd.weight"], kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_gate.weight"]) == (
        "F16",
        "BF16",
        "F32",
    )
    found = values(reader)
    assert torch.equal(found["token_embd.weight"], weights["model.embed_tokens.weight"].float())
    assert torch.equal(found["blk.0.ffn_up.weight"], weights["model.layers.0.mlp.up_proj.weight"].float())


def test_the_tokenizer_is_in_the_file(save: Save, tmp_path: Path) -> None:
    folder = save(llama())
    model = captured(folder)
    emit(model.program, model.assets, tmp_path / "out")
    original = transformers.AutoTokenizer.from_pretrained(folder)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    text = "the wire <|end|> is drawn, 12 times\n through  it: ü"
    assert read(text).input_ids == original(text).input_ids
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.chat_template"].contents() == original.chat_template
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == "[PAD303]"  # the table has more rows than tokens


def test_slowed_rotary_frequencies_become_factors(save: Save, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    config = llama(rope_parameters={**rope, "original_max_position_embeddings": 64})
    model = captured(save(config))
    emit(model.program, model.assets, tmp_path / "out")
    factors = values(gguf.GGUFReader(tmp_path / "out" / "model.gguf"))["rope_freqs.weight"]
    (slowed,) = (w for n, w in model.program.weights.items() if n.endswith("inv_freq"))
    assert isinstance(slowed, torch.Tensor)
    plain = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    torch.testing.assert_close((plain / factors).float(), slowed, rtol=1e-6, atol=0)
    assert factors.max() > 2


def test_what_gguf_cannot_say_is_refused_before_anything_is_written(save: Save) -> None:
    program = captured(save(llama())).program
    name = "model.layers.0.mlp.up_proj.weight"
    weight = program.weights[name]
    assert isinstance(weight, torch.Tensor)
    coarse = replace(program, weights={**program.weights, name: encode(weight, Encoding(4, (1, 64), scale="f16"))})
    assert [str(r) for r in backend().check(coarse)] == [
        f"{name}: GGUF has no blocks of 'i4 block 1x64 sym scale f16'; use one of {Q8_0}, {Q4_0}"
    ]
    editor = program.edit()
    linear = editor.nodes(torch.ops.aten.linear.default)[0]
    with editor.graph.inserting_before(linear):
        encoded = editor.call(torch.ops.drawplate.encode.default, linear.args[0], str(per_token()), like=linear)
    linear.args = (encoded, *linear.args[1:])
    (refusal,) = backend().check(editor.finish())
    assert str(refusal).startswith("model.layers.0.self_attn.q_proj (drawplate.encode): a GGUF file cannot say how")


def test_another_graph_under_the_same_name_is_refused(save: Save, tmp_path: Path) -> None:
    model = captured(save(llama()))
    editor = model.program.edit()
    silu = editor.nodes(torch.ops.aten.silu.default)[0]
    silu.target = torch.ops.aten.gelu.default
    with pytest.raises(BackendError) as caught:
        emit(editor.finish(), model.assets, tmp_path / "out")
    assert str(caught.value) == (
        "the program is not the graph that llama.cpp would build\n"
        "  where: gelu: 1 of them where 2 layers of LLAMA have 0; silu: 1 of them where 2 layers of LLAMA have 2\n"
        "  why:   a GGUF file holds weights and the name of an architecture, no graph\n"
        "  do:    leave out the passes that change the graph: llama.cpp would not see them"
    )


def test_a_scale_that_float16_lacks_is_refused(save: Save, tmp_path: Path) -> None:
    model = captured(save(llama()))
    program = quantised(model.program)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = program.weights[name]
    assert isinstance(weight, QTensor)
    off = replace(weight, grid=replace(weight.grid, scale=weight.grid.scale * (1 + 2**-20)))
    with pytest.raises(BackendError, match=f"scales of '{name}' are not float16 numbers"):
        emit(replace(program, weights={**program.weights, name: off}), model.assets, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("model_type", "gpt_neox", "this backend does not write models of type 'gpt_neox'"),
        ("rope_parameters", {"rope_type": "yarn"}, "this backend does not write rotary embeddings of type 'yarn'"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise(
    save: Save, tmp_path: Path, key: str, value: Any, what: str
) -> None:
    folder = save(llama())
    model = captured(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(BackendError, match=what):
        emit(model.program, model.assets, tmp_path / "out")


@pytest.mark.parametrize(
    ("description", "name"),
    [
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
            "llama-bpe",
        ),
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                ],
            },
            "smollm",
        ),
    ],
)
def test_splits_that_llama_cpp_has(installed: Path, description: dict[str, Any], name: str) -> None:
    from drawplate_gguf.vocabulary import pre_tokenizer

    assert pre_tokenizer(description) == name


def test_a_split_that_llama_cpp_may_not_have(installed: Path) -> None:
    from drawplate_gguf.vocabulary import pre_tokenizer

    with pytest.raises(BackendError, match="this tokenizer splits text in a way that has no name in llama"):
        pre_tokenizer({"type": "Whitespace"})


def test_numpy_sees_the_bytes_that_ggml_defines() -> None:
    """block_q4_0 by hand: scale 1.0 as float16, then element j with element j + 16 in one byte."""
    from drawplate_gguf.blocks import q4_0

    codes = np.arange(32, dtype=np.int8)[None] % 16 - 8
    assert q4_0(codes, np.ones((1, 1), np.float16))[0].tolist() == [0, 60, *(j | j << 4 for j in range(16))]
