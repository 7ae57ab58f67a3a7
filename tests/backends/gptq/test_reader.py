"""Folders that other programs wrote, and folders that are broken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drawplate.backends.gptq.reader import GptqReader
from drawplate.capture import capture
from drawplate.encoding import Encoding, QTensor
from drawplate.errors import CaptureError
from drawplate.probing import run
from drawplate.sources.outline import capture_outline

FIXTURE = Path(__file__).parents[2] / "fixtures" / "gptq" / "w2g64_asym_v2"
K_PROJ = "model.layers.0.self_attn.k_proj"


def folder_with(tmp_path: Path, *, config=None, **tensors) -> Path:
    """The fixture with other settings in quantization_config, and with other tensors; None leaves one out."""
    shutil.copytree(FIXTURE, tmp_path / "model", ignore=shutil.ignore_patterns("logits*"))
    table = json.loads((FIXTURE / "config.json").read_text())
    table["quantization_config"] |= config or {}
    (tmp_path / "model" / "config.json").write_text(json.dumps(table))
    if tensors:
        held = load_file(FIXTURE / "model.safetensors")
        for key, change in tensors.items():
            name = f"{K_PROJ}.{key}"
            if change is None:
                del held[name]
            else:
                held[name] = change(held.get(name))
        save_file(held, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    return tmp_path / "model"


def test_gptqmodels_own_checkpoint_computes_what_gptqmodel_computes():
    """Its CPU kernel computes in half precision."""
    captured = capture(FIXTURE)
    assert len(captured.program.encodings) == 14
    assert set(captured.program.encodings.values()) == {Encoding(2, (1, 64), symmetric=False, scale="f16")}
    held = load_file(FIXTURE / "logits.safetensors")
    ids = held["input_ids"]
    ours = run(captured.program, (ids, torch.arange(ids.shape[1])[None]), dtype=torch.float32)[0]
    assert (ours - held["logits"]).abs().max() < 0.02
    assert (ours - held["logits"]).norm() / ours.norm() < 0.01
    assert captured.assets.context == 256
    assert not captured.notes


def test_an_order_of_its_own_becomes_floating_point_and_is_told(tmp_path):
    folder = folder_with(tmp_path, g_idx=lambda g: g.flip(0))
    captured = capture(folder)
    assert captured.notes == (
        f"{K_PROJ}.weight became floating point: its inputs are grouped in another order (act-order)",
    )
    weight, plain = captured.program.weights[f"{K_PROJ}.weight"], capture(FIXTURE).program.weights[f"{K_PROJ}.weight"]
    assert isinstance(weight, torch.Tensor)
    assert isinstance(plain, QTensor)
    held = load_file(FIXTURE / "model.safetensors")
    scales = held[f"{K_PROJ}.scales"].float().flip(0).repeat_interleave(64, 0).t()
    zeros = plain.grid.zero_point.flip(1).repeat_interleave(64, 1)
    assert torch.equal(weight, (plain.integers().float() - zeros) * scales)


def test_a_file_that_never_reorders_may_leave_g_idx_out(tmp_path):
    program = capture(folder_with(tmp_path, g_idx=None)).program
    assert f"{K_PROJ}.weight" in program.encodings


@pytest.mark.parametrize(
    ("config", "tensors", "told"),
    [
        ({}, {"scales": None}, f"'{K_PROJ}.scales' is not in the checkpoint"),
        ({}, {"g_idx": lambda g: g + 1}, f"'{K_PROJ}.g_idx' names group 2, and there are 2"),
        ({}, {"g_idx": lambda g: g - 1}, f"'{K_PROJ}.g_idx' names group -1, and there are 2"),
        ({"desc_act": True}, {"g_idx": None}, f"'{K_PROJ}.g_idx' is not in the checkpoint"),
        (
            {"bits": 4},
            {},
            "'model.layers.0.self_attn.q_proj.qweight' is [8, 128], and [16, 128] by quantization_config",
        ),
        ({"group_size": 32}, {}, "'model.layers.0.self_attn.q_proj.qzeros' is [2, 8], and [4, 8] by"),
        ({"bits": 5}, {}, "quantization_config cannot be used: bits is 5"),
        ({"bits": None}, {}, "quantization_config cannot be used: bits is None"),
        ({"group_size": 0}, {}, "quantization_config cannot be used: group_size is 0"),
        ({"sym": "no"}, {}, "quantization_config cannot be used: sym is 'no'"),
        ({"pack_dtype": "int16"}, {}, "quantization_config cannot be used: pack_dtype is 'int16'"),
        ({"dynamic": {"+:(": {"bits": 4}}}, {}, "quantization_config cannot be used: dynamic '+:(' is no regular"),
        ({"dynamic": {"+:.*k_proj": {"bits": 7}}}, {}, "quantization_config cannot be used: bits is 7"),
        ({}, {"scales": lambda s: s * float("inf")}, f"'{K_PROJ}.scales' has elements that are inf or nan"),
        ({}, {"qweight": lambda q: q.to(torch.int64)}, f"'{K_PROJ}.qweight' is int64, not int32"),
    ],
)
def test_what_is_broken_is_told(config, tensors, told, tmp_path):
    with pytest.raises(CaptureError) as caught:
        GptqReader().read(folder_with(tmp_path, config=config, **tensors), "model")
    assert told in str(caught.value)
    assert "model" in caught.value.where
    assert caught.value.fix


def test_a_format_that_nobody_reads(tmp_path):
    folder = folder_with(tmp_path, config={"quant_method": "awq", "method": "awq"})
    for read in (capture, capture_outline):
        with pytest.raises(CaptureError, match="the weights are stored by 'awq', which no reader here knows"):
            read(folder)


def test_a_shard_that_was_cut_off(tmp_path):
    folder = folder_with(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptureError) as caught:
        capture(folder)
    assert caught.value.what.startswith("a shard cannot be read")
    assert caught.value.where == str(folder / "model.safetensors")
    assert caught.value.why == "it is not whole"


def test_a_pickle_is_not_opened(tmp_path):
    folder = folder_with(tmp_path)
    torch.save(load_file(FIXTURE / "model.safetensors"), folder / "model.safetensors")
    with pytest.raises(CaptureError, match="it is a pickle by another name, and those are not opened"):
        capture(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CaptureError, match=r"the weights are pickles \(pytorch_model.bin\), which are not opened"):
        capture(folder)


def test_a_tensor_of_the_index_that_is_in_no_file(tmp_path):
    folder = folder_with(tmp_path)
    index = {"weight_map": dict.fromkeys(["model.embed_tokens.weight", "lost"], "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CaptureError, match="1 tensors of the index are in no file: lost"):
        capture(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CaptureError, match="the index of the shards cannot be read"):
        capture(folder)


def test_a_configuration_of_another_model(tmp_path):
    folder = folder_with(tmp_path)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**table, "vocab_size": 500, "pad_token_id": 1}))
    with pytest.raises(CaptureError, match=r"'model.embed_tokens.weight' is \[512, 128\], the architecture has \[500"):
        capture(folder)
