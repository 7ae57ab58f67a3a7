"""Which kind of source a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from drawplate.errors import CaptureError
from drawplate.program import Dim
from drawplate.sources.source import Source

if TYPE_CHECKING:
    from drawplate.checkpoints.reader import Reader
    from drawplate.plugins.manager import Session


def located(model: str | Path | nn.Module, name: str | None) -> tuple[Path | nn.Module, str | None]:
    """A module as it is, else the folder or file that `model` names, fetched if it is on the hub; and what to call it.

    Raises CaptureError if there is none.
    """
    from drawplate.sources import huggingface

    if isinstance(model, nn.Module) or Path(model).exists():
        return model if isinstance(model, nn.Module) else Path(model), name
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CaptureError(
            f"there is no model at {str(model)!r}",
            fix="give a folder with config.json and safetensors, a .gguf file, or a hub name like 'owner/model'",
        )
    return huggingface.download(model), name or model.rpartition("/")[2]


def reader_of(place: Path, session: Session | None) -> Reader | None:
    """The reader whose kind of checkpoint this is, if there is one; the first in the order of the plugins."""
    from drawplate.plugins.manager import Session

    readers = (session or Session()).readers.values()
    return next((reader() for reader in readers if reader().claims(place)), None)


def open_source(
    model: Path | nn.Module,
    *,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor] | None,
    dynamic: Mapping[str, Mapping[int, Dim]],
    dtype: torch.dtype,
    name: str | None,
) -> Source:
    """Load a module, a file or a folder as it is. Other arguments as capture's. Raises CaptureError."""
    from drawplate.sources import huggingface, module

    if isinstance(model, nn.Module):
        if example_inputs is None and huggingface.is_ours(model):
            return huggingface.from_model(model, name=name)
        return module.from_module(model, example_inputs, dynamic, name=name)
    if model.is_file():
        return huggingface.from_gguf(model, dtype=dtype, name=name)
    refuse_artifact(model)
    return huggingface.from_folder(model, dtype=dtype, name=name)


def refuse_artifact(folder: Path) -> None:
    """Raise CaptureError if the folder is what a compile left. It may hold the model's config.json, but no weights."""
    from drawplate.artifact import is_artifact

    if is_artifact(folder):
        raise CaptureError(
            f"{str(folder)!r} is an artifact, not a model",
            why="drawplate wrote it: its weights are in its backend's form, which passes cannot read",
            fix="give the model that it was made from; 'drawplate run', 'eval', 'bench' and 'inspect' take artifacts",
        )
