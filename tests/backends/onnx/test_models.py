"""Programs through the backend, in stock ONNX Runtime, against themselves."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from architectures import DECODERS, OTHERS, captured, decoder_inputs
from onnxkit import ASSETS, EXACT, called, distance, emitted, model, stored, tensors
from xnnkit import CACHED, CONTEXT, decoder, fed, passed, relative

from drawplate.backends.onnx import packing
from drawplate.backends.onnx.backend import OnnxBackend
from drawplate.encoding import QTensor
from drawplate.errors import BackendError, EvaluationError
from drawplate.program import Program
from drawplate.rehearsal import without_contents
from drawplate.testing import byte_reasons, check_backend

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = sorted({*DECODERS, *OTHERS} - {"gemma2-softcap", "bert"})
QDQ = OnnxBackend(form="qdq")
NBITS = {
    "4 bits, f16 scales": "quantize-embedding{bits=8,block=1x32},quantize-weights{bits=4,block=1x32,scale=f16}",
    "4 bits, zero points, bf16 scales": (
        "quantize-embedding{bits=4,block=1x16,symmetric=false},"
        "quantize-weights{bits=4,block=1x16,scale=bf16,symmetric=false}"
    ),
    "2 bits, zero points": "quantize-embedding{bits=2,block=1x32},quantize-weights{bits=2,block=1x32,symmetric=false}",
    "8 bits, a table by rows": "quantize-embedding{bits=8,block=1x-1},quantize-weights{bits=8,block=1x32}",
    "a tied table": "quantize-embedding{bits=4,block=1x32},quantize-weights{where=all,bits=4,block=1x32,scale=f32}",
}
STANDARD = {
    "4 bits in blocks": "quantize-embedding{bits=8,block=1x-1},quantize-weights{bits=4,block=1x32,scale=f16}",
    "blocks of 8": "quantize-weights{bits=4,block=1x8,scale=f16,symmetric=false}",
    "4 bits by rows": "quantize-embedding{bits=8,block=1x32,symmetric=false},quantize-weights{bits=4,block=1x-1}",
    "2 bits": "quantize-weights{bits=2,block=1x32,symmetric=false}",
    "a tied table": "quantize-embedding{bits=8,block=1x-1},quantize-weights{where=all,bits=8,block=1x-1}",
    "one scale": "quantize-weights{bits=8,block=-1x-1}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_whole_text(name: str, tmp_path: Path) -> None:
    program = captured(name)
    emission = emitted(program, tmp_path)
    assert byte_reasons(emission, tmp_path, program) == []
    ids, positions = decoder_inputs(2, 9)
    (found,) = called(tmp_path, {"input_ids": ids, "position_ids": positions})
    assert relative(found, program.module()(ids, positions)) < EXACT


@pytest.mark.parametrize("name", TEXTS)
def test_piece_by_piece(name: str, tmp_path: Path) -> None:
    program = passed(captured(name), CACHED)
    emission = emitted(program, tmp_path)
    assert byte_reasons(emission, tmp_path, program) == []
    assert distance(program, tmp_path) < EXACT


def test_an_encoder(tmp_path: Path) -> None:
    program = captured("bert")
    emitted(program, tmp_path)
    ids, _ = decoder_inputs(2, 9)
    given = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3])}
    given = {spec.name: given.get(spec.name, torch.zeros_like(ids)) for spec in program.inputs}
    expected = program.module()(*given.values())
    (found,) = called(tmp_path, given)
    assert relative(found, expected[0] if isinstance(expected, tuple) else expected) < EXACT
    assert [i.name for i in model(tmp_path).graph.input] == [spec.name for spec in program.inputs]
    with pytest.raises(BackendError, match="does not generate text") as error:
        OnnxBackend().open(tmp_path)
    assert "it was compiled without a cache" in str(error.value)


@pytest.mark.parametrize("case", NBITS)
def test_matmul_nbits(case: str, tmp_path: Path) -> None:
    program = stored(NBITS[case])
    emission = emitted(program, tmp_path)
    assert byte_reasons(emission, tmp_path, program) == []
    assert distance(program, tmp_path) < EXACT
    found = tensors(tmp_path)
    for name, weight in program.weights.items():
        if isinstance(weight, QTensor) and "embed" not in name:
            wanted = packing.blocks(weight)
            assert found[f"{name}.codes"] == wanted.codes.numpy().tobytes()
            assert found[f"{name}.scale"] == wanted.scales.view(torch.uint8).numpy().tobytes()
            assert (f"{name}.zero_point" in found) == (wanted.zeros is not None)
            assert found.get(f"{name}.zero_point", b"") == (
                b"" if wanted.zeros is None else bytes(wanted.zeros.numpy())
            )
    assert [node.op_type for node in model(tmp_path).graph.node].count("MatMulNBits") == 15


@pytest.mark.parametrize("case", STANDARD)
def test_dequantize_linear(case: str, tmp_path: Path) -> None:
    program = stored(STANDARD[case])
    emission = emitted(program, tmp_path, QDQ)
    assert byte_reasons(emission, tmp_path, program) == []
    assert distance(program, tmp_path) < EXACT
    assert {node.domain for node in model(tmp_path).graph.node if node.op_type != "GroupQueryAttention"} == {""}
    name = "model.layers.0.mlp.up_proj.weight"
    weight = program.weights[name]
    assert isinstance(weight, QTensor)
    read = torch.frombuffer(bytearray(tensors(tmp_path)[f"{name}.codes"]), dtype=torch.uint8)
    assert torch.equal(packing.unplain(read, weight.encoding, weight.shape[::-1]).T, weight.integers())


def test_a_tied_table_is_there_once(tmp_path: Path) -> None:
    program = stored(NBITS["a tied table"])
    emission = emitted(program, tmp_path)
    (row,) = (r for r in emission.bytes if r.name == "model.embed_tokens.weight")
    assert row.bytes == program.weights[row.name].nbytes


def test_a_bias_and_many_kinds_of_norm(tmp_path: Path) -> None:
    program = passed(captured("phi"), f"quantize-weights{{bits=4,block=1x16}},{CACHED}")
    emitted(program, tmp_path)
    assert distance(program, tmp_path) < EXACT


def test_what_is_predicted_is_what_is_written(tmp_path: Path) -> None:
    """Without contents: nothing but shapes and encodings is looked at before a tensor is written."""
    program = stored(NBITS["4 bits, f16 scales"])
    assert OnnxBackend().predict(without_contents(program), ASSETS) == emitted(program, tmp_path).bytes


def test_the_kit_for_backends(tmp_path: Path) -> None:
    check_backend(OnnxBackend(), stored(NBITS["4 bits, f16 scales"]), tmp_path, assets=ASSETS, tolerance=EXACT)


def test_the_graph_is_valid_and_has_readable_names(tmp_path: Path) -> None:
    import onnx

    emitted(passed(decoder(), CACHED), tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    names = [node.name for node in model(tmp_path).graph.node]
    assert "model.layers.1.mlp.down_proj.MatMul" in names
    assert len(set(names)) == len(names)
    assert [o.name for o in model(tmp_path).graph.output][:3] == ["logits", "present.0.key", "present.0.value"]


def test_positions_as_an_input(tmp_path: Path) -> None:
    program = passed(decoder(), CACHED)
    emitted(program, tmp_path, OnnxBackend(position_ids=True))
    assert [i.name for i in model(tmp_path).graph.input][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert distance(program, tmp_path) < EXACT


def test_accuracy_level_is_the_runtimes_own_rounding(tmp_path: Path) -> None:
    program = stored(NBITS["4 bits, f16 scales"])
    emission = emitted(program, tmp_path, OnnxBackend(accuracy_level=4))
    assert 1e-4 < distance(program, tmp_path) < 0.2
    assert any("the runtime may round what its linears read" in note for note in emission.notes)


def test_a_full_context_and_going_back(tmp_path: Path) -> None:
    emitted(passed(decoder(), CACHED), tmp_path)
    runner = OnnxBackend().open(tmp_path, threads=1)
    assert runner.context == CONTEXT
    ids = torch.arange(12)
    runner.step(ids[:8])
    first = runner.step(ids[8:])
    runner.rewind(8)  # type: ignore[attr-defined]
    assert torch.equal(runner.step(ids[8:]), first)
    fed(runner, [CONTEXT])
    with pytest.raises(EvaluationError, match="the context is full: 64 tokens were fed and 1 more do not fit"):
        runner.step(torch.tensor([1]))


def test_a_damaged_artifact(tmp_path: Path) -> None:
    emitted(passed(decoder(), CACHED), tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a model" * 100)
    with pytest.raises(BackendError, match="ONNX Runtime does not load the file"):
        OnnxBackend().open(tmp_path)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"there is no model\.onnx with a genai_config\.json"):
        OnnxBackend().open(tmp_path)


def test_a_program_is_not_changed(tmp_path: Path) -> None:
    program: Program = stored(NBITS["4 bits, f16 scales"])
    text, weights = str(program), MappingProxyType(dict(program.weights))
    emitted(program, tmp_path)
    assert str(program) == text
    assert all(program.weights[name] is weight for name, weight in weights.items())
