"""Which kind of source a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from drawplate.errors import CaptureError
from drawplate.program import Dim
from drawplate.sources.source import Source


def open_source(
    model: str | Path | nn.Module,
    *,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor] | None,
    dynamic: Mapping[str, Mapping[int, Dim]],
    dtype: torch.dtype,
    name: str | None,
) -> Source:
    """Load what `model` names. Arguments as capture's. Raises CaptureError."""
    from drawplate.sources import huggingface, module

    if isinstance(model, nn.Module):
        if example_inputs is None and huggingface.is_ours(model):
            return huggingface.from_model(model, name=name)
        return module.from_module(model, example_inputs, dynamic, name=name)
    path = Path(model)
    if path.is_file():
        return huggingface.from_gguf(path, dtype=dtype, name=name)
    if path.is_dir():
        refuse_artifact(path)
        return huggingface.from_folder(path, dtype=dtype, name=name)
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CaptureError(
            f"there is no model at {str(model)!r}",
            fix="give a folder with config.json and safetensors, a .gguf file, or a hub name like 'owner/model'",
        )
    return huggingface.from_hub(model, dtype=dtype, name=name)


def refuse_artifact(folder: Path) -> None:
    """Raise CaptureError if the folder is what a compile left. It may hold the model's config.json, but no weights."""
    from drawplate.artifact import is_artifact

    if is_artifact(folder):
        raise CaptureError(
            f"{str(folder)!r} is an artifact, not a model",
            why="drawplate wrote it: its weights are in its backend's form, which passes cannot read",
            fix="give the model that it was made from; 'drawplate run', 'eval', 'bench' and 'inspect' take artifacts",
        )
