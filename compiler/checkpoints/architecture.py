"""The architecture that a config.json names: what a loader builds, and which of its weights it takes from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical import canonicalise
from drawplate.capture import unlifted
from drawplate.checkpoints.origins import Origin, origin_of
from drawplate.errors import CaptureError
from drawplate.program import Program
from drawplate.sources import huggingface
from drawplate.sources.outline import outline


@dataclass(frozen=True)
class Architecture:
    """program: canonical, its weights zero and without memory of their own; what the loader computes itself, such as
    rotary frequencies, has its contents. origins: of each of the program's weights, over the checkpoint's names.
    stored: the checkpoint's weights and their shapes, each tied one once. head: the module that gives the logits;
    empty if none does. tied: does it read the embedding's table?
    """

    program: Program
    origins: Mapping[str, Origin]
    stored: Mapping[str, tuple[int, ...]]
    head: str
    tied: bool

    def constant(self, name: str) -> Tensor:
        """What the loader computes itself."""
        value = self.program.weights[name]
        assert isinstance(value, Tensor)
        return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it is written. Raises CaptureError."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CaptureError(
            f"config.json cannot be read: {getattr(error, 'strerror', None) or error}",
            where=str(file),
            fix="it says which architecture the weights are for: take it from where the model is from",
        ) from error
    if not isinstance(found, dict):
        raise CaptureError("config.json is no table of settings", where=str(file))
    return found


def architecture_of(config: Mapping[str, Any], *, tied: bool | None = None) -> Architecture:
    """What a loader builds from this config.json; how its weights are stored does not matter for that.

    tied: whether the head reads the embedding's table, if not as the configuration says. Raises CaptureError.
    """
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return _architecture(json.dumps(plain, sort_keys=True), tied)


@lru_cache(maxsize=2)  # as it is, and with a head of its own: asked before the passes and again behind them
def _architecture(config: str, tied: bool | None) -> Architecture:
    with TemporaryDirectory(prefix="drawplate-") as folder:
        Path(folder, "config.json").write_text(config, encoding="utf-8")
        read = huggingface.config_of(Path(folder))
    if tied is not None:
        read.tie_word_embeddings = tied
        read.get_text_config().tie_word_embeddings = tied
    model: Any = outline(read)
    captured = unlifted(huggingface.from_model(model))
    origins: dict[str, Origin] = {}

    def folded(name: str, node: fx.Node) -> None:
        origins[name] = origin_of(node)

    program = canonicalise(captured, folded)
    found = {n: origins.get(n) or Origin(tuple(w.shape), n) for n, w in program.weights.items()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [name for name, module in model.named_modules() if module is head and head is not None]
    return Architecture(
        program,
        found,
        stored_weights(model),
        names[0] if names else "",
        bool(read.get_text_config().tie_word_embeddings),
    )


def stored_weights(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """What a model's checkpoint holds, each tied weight under its first name; not buffers that are never saved."""
    saved = set(model.state_dict(keep_vars=True))
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in named if name in saved}
