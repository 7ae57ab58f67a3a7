"""What capture says when it cannot: the text is what is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import build
from torch import Tensor, nn

from drawplate.capture import capture
from drawplate.errors import CaptureError
from drawplate.program import Dim
from drawplate.sources.outline import capture_outline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path)
    return tmp_path


def message(model: object, **options: object) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert message(tmp_path) == (
        f"there is no config.json in '{tmp_path}'\n"
        "  why:   it says which architecture the weights are for\n"
        "  do:    give the folder that save_pretrained wrote, or download the whole model, not its weights alone"
    )


ARTIFACT = {"manifest.json": '{"format": "drawplate artifact 1"}'}


@pytest.mark.parametrize("files", [ARTIFACT, {**ARTIFACT, "config.json": "{}"}, {"manifest.json": "cut off"}])
@pytest.mark.parametrize("open_", [capture, capture_outline])
def test_an_artifact_where_a_model_is_expected(
    tmp_path: Path, files: dict[str, str], open_: Callable[..., object]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CaptureError) as caught:
        open_(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path}' is an artifact, not a model\n"
        "  why:   drawplate wrote it: its weights are in its backend's form, which passes cannot read\n"
        "  do:    give the model that it was made from; 'drawplate run', 'eval', 'bench' and 'inspect' take artifacts"
    )


def test_a_model_may_have_a_manifest_of_another_kind(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"short_name": "an app"}')
    assert capture(folder).program.weights


def test_a_folder_that_is_not_there() -> None:
    assert message("./no/such/folder").startswith("there is no model at './no/such/folder'\n  do:    give a folder")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nosuch"}')
    said = message(tmp_path)
    assert said.startswith("config.json cannot be used: The checkpoint you are trying to load has model type `nosuch`")
    assert f"where: {tmp_path / 'config.json'}" in said


def test_an_encoder_decoder(tmp_path: Path) -> None:
    import transformers

    transformers.T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    assert message(tmp_path).startswith("t5 is an encoder-decoder\n  why:   a captured model has one sequence")


def test_truncated_safetensors(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert message(folder) == (
        "the weights cannot be read: Error while deserializing header: incomplete metadata, file not fully covered\n"
        f"  where: {file}\n"
        "  why:   the file is missing or not whole, or not of a kind that can be read\n"
        "  do:    download it again and compare its size with the source's"
    )


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert message(folder).startswith("the weights cannot be read: Error no file named model.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3', "9 weights are not in the checkpoint: model.layers.2."),
        ('"hidden_size": 48', '"hidden_size": 96', "have another shape in the checkpoint: "),
    ],
)
def test_weights_that_do_not_fit_the_config(
    folder: Path, old: str, new: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace(old, new))
    capfd.readouterr()
    assert said in message(folder)
    assert "why:   they would be random" in message(folder)
    assert capfd.readouterr().err == ""


def test_a_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = message("no-such-owner/no-such-model")
    assert said.startswith("the hub has no model 'no-such-owner/no-such-model' for us: ")
    assert said.endswith(
        "  why:   it is not in the local cache and could not be downloaded\n"
        "  do:    check the name and the network, log in if it is gated, or give a folder"
    )


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"123")
    (tmp_path / "model.gguf").write_bytes(b"123")
    assert message(tmp_path / "weights.bin").startswith("'weights.bin' is not a model file that can be read\n")
    said = message(tmp_path / "model.gguf")
    assert said.startswith("the weights cannot be read: ")
    assert f"where: {tmp_path / 'model.gguf'}" in said


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


def test_control_flow_on_values(capfd: pytest.CaptureFixture[str]) -> None:
    said = message(Branch(), example_inputs=[torch.ones(2, 3)])
    assert said.startswith("torch.export refuses 'branch': Could not guard on data-dependent expression")
    assert "  where: test_capture_errors.py:" in said
    assert ": `if x.sum() > 0:`\n" in said
    assert said.endswith("do:    compute both sides and choose with torch.where, or fix the axis that varies")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "Branch needs example inputs\n  why:   a module does not say what it takes\n"),
        (
            {"example_inputs": [torch.ones(2), torch.ones(2)]},
            "Branch.forward does not take these example inputs: too many",
        ),
        ({"example_inputs": {"y": torch.ones(2)}}, "Branch.forward does not take these example inputs: missing"),
        ({"example_inputs": [3]}, "example input 'x' of Branch is a int, not a tensor"),
        (
            {"example_inputs": [torch.ones(2)], "dynamic": {"y": {0: Dim("b", 1, 4)}}},
            "dynamic names 'y', but Branch takes x",
        ),
        (
            {"example_inputs": [torch.ones(2)], "dynamic": {"x": {1: Dim("b", 1, 4)}}},
            "dynamic axis 1 of 'x': the example has axes 0 to 0",
        ),
        (
            {"example_inputs": [torch.ones(2)], "dynamic": {"x": {0: Dim("b", 4, 8)}}},
            "the example for 'x' has length 2 on its dynamic axis 0\n  why:   'b' is 4 to 8",
        ),
    ],
)
def test_wrong_example_inputs(options: dict[str, object], said: str) -> None:
    assert message(Branch(), **options).startswith(said)


def test_examples_of_the_wrong_shape() -> None:
    said = message(nn.Linear(3, 4), example_inputs=[torch.ones(2, 5)])
    assert said.startswith("Linear does not run on these example inputs: mat1 and mat2 shapes cannot be multiplied")
    assert said.endswith("input was torch.float32 [2, 5]")


def test_an_axis_that_is_not_free() -> None:
    said = message(nn.Linear(3, 4), example_inputs=[torch.ones(2, 3)], dynamic={"input": {1: Dim("n", 1, 4)}})
    assert said.startswith(
        "torch.export refuses 'linear': Constraints violated (n)! "
        "You marked n as dynamic but your code specialized it to be a constant (3)\n"
    )


def test_a_model_with_a_memory() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls

    said = message(Counting(), example_inputs=[torch.ones(2)])
    assert said.startswith(
        "the model writes to its own state or input (aten.add_.Tensor)\n  where: test_capture_errors.py:"
    )
    assert "`self.calls += 1`" in said
