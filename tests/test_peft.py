"""Adapters go to the PEFT library and come from it: the same logits on both sides."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import captured, decoder_inputs, eager
from safetensors.torch import load_file, save_file
from torch import Tensor

from drawplate.calibration import Calibration
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.passes.add_lora import AddLora
from drawplate.passes.train_lora import TrainLora
from drawplate.peft import adapter_records
from drawplate.program import Program
from drawplate.runner import run_passes

peft: Any = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own
TEXT = Calibration.of(torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(1)), "random")


def logits_of(model: Any) -> Tensor:
    ids, positions = decoder_inputs(2, 9)
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions).logits  # type: ignore[no-any-return]


def ours(program: Program) -> Tensor:
    with torch.no_grad():
        return program.module()(*decoder_inputs(2, 9))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_what_is_trained_here_loads_in_peft(name: str, tmp_path: Path) -> None:
    passes = [AddLora(4, 0.5), TrainLora(epochs=4, batch=1, held=0, rate=0.01, loss="loss")]
    outcome = run_passes(captured(name), passes, Env(calibration=TEXT))
    for record in outcome.records:
        record.write(tmp_path / f"{record.name}{record.suffix}")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(eager(name)), tmp_path)
    torch.testing.assert_close(logits_of(model), ours(outcome.program), rtol=1e-4, atol=1e-5)
    assert (ours(captured(name)) - ours(outcome.program)).abs().max() > 0.01


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_peft_trained_loads_here(stabilised: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False, use_rslora=stabilised
    )
    model = peft.get_peft_model(copy.deepcopy(eager("llama")), config)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype).float() if "lora" in name else parameter.data
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    program = run_passes(captured("llama"), [AddLora(adapters=str(tmp_path))], Env()).program
    torch.testing.assert_close(ours(program), logits_of(model), rtol=1e-4, atol=1e-5)
    assert [w.dtype for n, w in program.weights.items() if "lora_A" in n] == [dtype] * 4  # type: ignore[union-attr]


def test_two_ranks_are_more_than_peft_can_say() -> None:
    editor = AddLora(2).run(captured("llama"), Env()).edit()
    module = "model.layers.0.mlp.up_proj"
    editor.weights[f"{module}.lora_A.weight"] = torch.ones(3, 48)
    editor.weights[f"{module}.lora_B.weight"] = torch.ones(80, 3)
    program = editor.finish()
    with pytest.raises(PassError, match="adapters are left with one rank and one scale for all"):
        adapter_records(program)
