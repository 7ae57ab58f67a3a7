"""transformers models: a folder, a hub name, a GGUF file, or a model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drawplate.errors import CaptureError
from drawplate.program import Dim
from drawplate.provenance import first_line
from drawplate.sources.quiet import quiet_transformers
from drawplate.sources.source import COMPANIONS, Assets, Source, lengths

_BATCH = 1024  # the most rows in one call


class Decoder(nn.Module):
    """(input_ids i64[b, s], position_ids i64[b, s]) -> logits [b, s, vocabulary], no cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The logits of every position."""
        with dense_experts(self.model):
            out = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, return_dict=True)
        return out.logits


class Encoder(nn.Module):
    """(input_ids i64[b, s], attention_mask i64[b, s]) -> the model's first output, such as hidden states [b, s, d]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The first output."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]


def is_ours(model: nn.Module) -> bool:
    """Is it a transformers model?"""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def from_model(model: Any, *, assets: Assets | None = None, name: str | None = None) -> Source:
    """A transformers model in memory, taken in the dtype it has."""
    model = model.eval()
    assets = assets or assets_of(model.config)
    batch, length = Dim("b", 1, _BATCH), Dim("s", 1, assets.context or 1 << 20)
    size = lengths(batch, length)
    shape = (size["b"], size["s"])
    axes = {0: batch, 1: length}
    ids = torch.zeros(shape, dtype=torch.int64)
    if makes_text(model):
        wrapped: nn.Module = Decoder(model)
        inputs = {"input_ids": ids, "position_ids": torch.arange(shape[1]).expand(shape).contiguous()}
    else:
        wrapped = Encoder(model)
        inputs = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
    label = name or str(model.config.model_type)
    return Source(label, wrapped.eval(), inputs, dict.fromkeys(inputs, axes), "model.", assets)


def from_folder(folder: Path, *, dtype: torch.dtype, name: str | None = None) -> Source:
    """A folder as `save_pretrained` writes it. Raises CaptureError."""
    if not (folder / "config.json").is_file():
        raise CaptureError(
            f"there is no config.json in {str(folder)!r}",
            why="it says which architecture the weights are for",
            fix="give the folder that save_pretrained wrote, or download the whole model, not its weights alone",
        )
    config = config_of(folder)
    _refuse_quantized(config, folder)
    model = _load(class_of(config), folder, dtype=dtype, config=config)
    return from_model(model, assets=assets_of(model.config, folder), name=name or folder.resolve().name)


def download(hub_name: str) -> Path:
    """The folder of a model on the hub, from its local cache or fetched. Raises CaptureError."""
    import huggingface_hub

    try:
        patterns = [*COMPANIONS, "*.safetensors*", "*.model"]
        return Path(huggingface_hub.snapshot_download(hub_name, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        raise CaptureError(
            f"the hub has no model {hub_name!r} for us: {first_line(error)}",
            why="it is not in the local cache and could not be downloaded",
            fix="check the name and the network, log in if it is gated, or give a folder",
        ) from error


def from_gguf(file: Path, *, dtype: torch.dtype, name: str | None = None) -> Source:
    """A GGUF file, its weights dequantised to `dtype`. Raises CaptureError."""
    import transformers

    if file.suffix != ".gguf":
        raise CaptureError(
            f"{file.name!r} is not a model file that can be read",
            where=str(file),
            fix="give a .gguf file, or the folder that holds config.json and the safetensors",
        )
    model = _load(transformers.AutoModelForCausalLM, file.parent, dtype=dtype, gguf_file=file.name)
    companions = file.parent if (file.parent / "tokenizer.json").is_file() else None
    return from_model(model, assets=assets_of(model.config, companions), name=name or file.stem)


def assets_of(config: Any, folder: Path | None = None) -> Assets:
    """What the configuration and the folder say."""
    text = config.get_text_config()
    eos = getattr(text, "eos_token_id", None)
    files = tuple(folder / f for f in COMPANIONS if (folder / f).is_file()) if folder else ()
    return Assets(
        folder=folder,
        files=files,
        context=getattr(text, "max_position_embeddings", None),
        bos=getattr(text, "bos_token_id", None),
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        vocabulary=getattr(text, "vocab_size", None),
    )


def makes_text(model: nn.Module) -> bool:
    """Does it predict the next token?"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


@contextmanager
def dense_experts(model: Any) -> Iterator[None]:
    """Mixtures of experts as batched products: the usual loop over the experts that were hit depends on values."""
    if not getattr(model, "_can_set_experts_implementation", lambda: False)():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def config_of(place: Path) -> Any:
    """The configuration in a folder's config.json, or in a file of any name. Raises CaptureError."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise CaptureError(
            f"config.json cannot be used: {first_line(error)}",
            where=str(place / "config.json" if place.is_dir() else place),
            fix="the architecture has to be one that the installed transformers knows; remote code is never run",
        ) from error


def class_of(config: Any) -> Any:
    """The class that the checkpoint was saved from, else the text generator for this configuration."""
    import transformers

    if config.is_encoder_decoder:
        raise CaptureError(
            f"{config.model_type} is an encoder-decoder",
            why="a captured model has one sequence",
            fix="capture its two halves as modules with example inputs",
        )
    named = (getattr(transformers, a, None) for a in config.architectures or ())
    return next((c for c in named if c is not None), transformers.AutoModelForCausalLM)


def _refuse_quantized(config: Any, folder: Path) -> None:
    """Raises CaptureError if the weights are stored in a format that nobody here reads."""
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        table = stored if isinstance(stored, dict) else stored.to_dict()
        raise CaptureError(
            f"the weights are stored by {table.get('quant_method')!r}, which no reader here knows",
            where=str(folder / "config.json"),
            why="quantization_config says how, and a plain load would take packed integers for weights",
            fix="install a plugin that reads it ('drawplate plugins' lists the readers), or take the unquantised model",
        )


def _load(kind: Any, folder: Path, **options: Any) -> Any:
    """from_pretrained, with nothing left at random. Raises CaptureError."""
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(
                folder, output_loading_info=True, low_cpu_mem_usage=True, ignore_mismatched_sizes=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CaptureError(
            f"the weights cannot be read: {first_line(error)}",
            where=_broken_file(folder, options.get("gguf_file")),
            why="the file is missing or not whole, or not of a kind that can be read",
            fix="download it again and compare its size with the source's",
        ) from error
    _complete(folder, sorted(report["missing_keys"]), sorted(report["mismatched_keys"]))
    return model


def _complete(folder: Path, missing: list[str], mismatched: list[tuple[str, Any, Any]]) -> None:
    """Raises CaptureError unless every weight was in the checkpoint, in its shape."""
    wrong = [f"{name} is {list(there)}, not {list(here)}" for name, there, here in mismatched]
    for these, what in ((missing, "are not in the checkpoint"), (wrong, "have another shape in the checkpoint")):
        if these:
            raise CaptureError(
                f"{len(these)} weights {what}: {', '.join(these[:3])}" + ", …" * (len(these) > 3),
                where=str(folder),
                why="they would be random",
                fix="check that all shards are there and that config.json belongs to them",
            )


def _broken_file(folder: Path, named: str | None) -> str:
    """The file that was named, else the first weight file that does not open, else the folder."""
    from safetensors import SafetensorError, safe_open

    if named is not None:
        return str(folder / named)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return str(file)
    return str(folder)
