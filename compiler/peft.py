"""Adapters in the format of the PEFT library: adapter_config.json and adapter_model.safetensors.

A module's A and B are `base_model.model.<module>.lora_A.weight` and `..lora_B.weight`, as the checkpoint names the
module; what they add is scaled by lora_alpha / r, or by lora_alpha / sqrt(r) with use_rslora.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from drawplate.analysis.adapters import adapters
from drawplate.encoding import SCALE_DTYPES
from drawplate.errors import PassError
from drawplate.program import Program
from drawplate.records import Record

CONFIG, MODEL = "adapter_config", "adapter_model"
PREFIX = "base_model.model."
_UNLIKE = ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")

_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class Adapters:
    """scale: of every product. down: [rank, in], up: [out, rank], by the module they stand beside."""

    scale: float
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


def files_of(folder: Path) -> tuple[Path, Path]:
    """The two that an adapter is."""
    return folder / f"{CONFIG}.json", folder / f"{MODEL}.safetensors"


def read_adapters(folder: Path) -> Adapters:
    """What PEFT left in the folder, in its dtypes. Raises PassError for what is missing, or is not a plain LoRA."""
    config, tensors = _loaded(folder)
    other = [name for name in _UNLIKE if config.get(name)]
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        other.append("init_lora_weights")  # such as "pissa", whose A and B are beside another base
    if config.get("peft_type") != "LORA" or other:
        raise PassError(
            "this adapter is no plain LoRA",
            where=str(folder),
            why=f"its peft_type is {config.get('peft_type')}" + "".join(f", {n} is {config[n]!r}" for n in other),
            fix="train one with LoraConfig(r=.., lora_alpha=.., target_modules=..) and nothing else",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise PassError("the adapter does not say its scale", where=str(folder), why=f"r is {rank}, lora_alpha {alpha}")
    parts: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if part not in parts or tensor.dim() != 2 or tensor.dtype not in SCALE_DTYPES.values():
            raise PassError(
                "this is no part of a LoRA",
                where=f"{folder}, {name}",
                why=f"{tensor.dtype}, shape {list(tensor.shape)}",
            )
        parts[part][module] = tensor
    other_ranks = sorted({a.shape[0] for a in parts["lora_A"].values()} - {rank})
    if other_ranks:
        raise PassError(
            "the adapter is not as it says", where=str(folder), why=f"r is {rank}, and A have {other_ranks}"
        )
    lone = sorted(parts["lora_A"].keys() ^ parts["lora_B"].keys())
    if lone or not tensors:
        raise PassError("the adapter is not whole", where=str(folder), why=f"A or B is missing of {', '.join(lone)}")
    return Adapters(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), parts["lora_A"], parts["lora_B"])


def adapter_records(program: Program) -> list[Record]:
    """The program's adapters, as two files that PEFT loads. Raises PassError where PEFT cannot say it: adapters of
    several ranks or scales."""
    found = adapters(program)
    kinds = sorted({(a.rank, a.scale) for a in found})
    if len(kinds) != 1:
        raise PassError("adapters are left with one rank and one scale for all", why=f"(rank, scale) here: {kinds}")
    ((rank, scale),) = kinds
    weights: Mapping[str, Any] = program.weights
    tensors, modules = {}, []
    for a in found:
        module = a.base.removesuffix(".weight")
        modules.append(module)
        for part, name in (("lora_A", a.down), ("lora_B", a.up)):
            tensors[f"{PREFIX}{module}.{part}.weight"] = weights[name]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank * scale, "lora_dropout": 0.0,
        "bias": "none", "target_modules": modules, "inference_mode": True,
    }  # fmt: skip
    return [Record(MODEL, tensors, last=True), Record(CONFIG, data=config, last=True)]


def _loaded(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, model = files_of(folder)
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError(f"{config.name} is no JSON object")
        return said, load_file(model)
    except (OSError, ValueError, SafetensorError) as error:
        raise PassError(
            "the adapter cannot be read",
            where=str(folder),
            why=str(error),
            fix="give the folder that PEFT's save_pretrained, or train-lora, left adapter_config.json in",
        ) from error
