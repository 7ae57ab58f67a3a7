"""A Hugging Face folder of a program: shards, configuration, tokenizer, model card; every byte known beforehand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drawplate.backendbase import ByteRow, dtype_name
from drawplate.checkpoints.matching import Match
from drawplate.checkpoints.shards import INDEX, Group, Item, Shard, index_text
from drawplate.encoding import SCALE_DTYPES, QTensor, ScaleDtype
from drawplate.sources.source import Assets

DTYPE_NAMES: dict[ScaleDtype, str] = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
COMPUTED = "computed by the loader"


@dataclass(frozen=True)
class Folder:
    """What will be written. texts: whole files by name. copies: files that go along as they are. computed: weights of
    the program that no file holds, since a loader computes them."""

    files: tuple[Shard, ...]
    texts: Mapping[str, str]
    copies: tuple[Path, ...]
    computed: tuple[str, ...]

    def rows(self) -> tuple[ByteRow, ...]:
        """The byte table."""
        rows = [row for shard in self.files for row in shard.rows()]
        rows += [ByteRow(name, "weight", COMPUTED, self.files[0].file, 0) for name in self.computed]
        rows += [ByteRow(name, "asset", "", name, len(text.encode())) for name, text in self.texts.items()]
        return (*rows, *(ByteRow(f.name, "asset", "", f.name, f.stat().st_size) for f in self.copies))

    def write(self, into: Path) -> tuple[Path, ...]:
        """All files, shard by shard, one weight in memory at a time."""
        written = [shard.write(into) for shard in self.files]
        for name, text in self.texts.items():
            written.append(into / name)
            written[-1].write_bytes(text.encode())
        return (*written, *(Path(shutil.copyfile(f, into / f.name)) for f in self.copies))


def folder(
    files: Iterable[Shard], found: Match, assets: Assets, config: Mapping[str, Any], texts: Mapping[str, str], card: str
) -> Folder:
    """The files of a checkpoint. config: what config.json becomes. texts: the format's own files. card: what its model
    card says in front of the table of bytes."""
    files = tuple(files)
    all_texts = {"config.json": as_json(config), **({INDEX: index_text(files)} if len(files) > 1 else {}), **texts}
    copies = tuple(f for f in assets.files if f.name not in all_texts)
    computed = tuple(name for name in found.program.weights if name not in found.names)
    plain = Folder(files, all_texts, copies, computed)
    return Folder(files, {**all_texts, "README.md": f"{card}\n{byte_table(plain.rows())}"}, copies, computed)


def float_groups(found: Match, floats: ScaleDtype) -> dict[str, Group]:
    """What stays floating point, by its name in the program or, for what the program does without, in the checkpoint.

    Matrices in `floats`; vectors, which take no room, in float32, so that a norm is exactly what it is.
    """
    groups = {}
    for name, theirs in found.names.items():
        weight = found.program.weights[name]
        if not isinstance(weight, QTensor):
            dtype = _stored_dtype(weight, floats)
            item = Item(theirs, dtype, found.shape(name))
            groups[name] = Group(name, dtype_name(dtype), (item,), _maker(found, name, item))
    for theirs, value in found.filled().items():
        item = Item(theirs, torch.float32, tuple(value.shape))
        groups[theirs] = Group("", "f32", (item,), lambda theirs=theirs, value=value: {theirs: value})  # type: ignore[misc]
    return groups


def float_config(config: Mapping[str, Any], floats: ScaleDtype) -> dict[str, Any]:
    """config.json with the dtype that loaders compute in, and without what it said of how weights are stored."""
    kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "quantization_config")}
    return {**kept, "dtype": DTYPE_NAMES[floats]}


def as_json(value: Any) -> str:
    """As Hugging Face's own files are written."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def byte_table(rows: Iterable[ByteRow]) -> str:
    """Bytes by what they hold, as Markdown."""
    kinds: dict[str, list[int]] = {}
    for row in rows:
        if row.encoding == COMPUTED:
            continue
        if row.role == "weight":
            kind = f"weights as `{row.encoding}`"
        else:
            kind = row.name if row.role == "asset" else "weights that are all alike, headers"
        kinds.setdefault(kind, []).append(row.bytes)
    total = sum(map(sum, kinds.values()))
    lines = [f"| {kind} | {len(sizes)} | {sum(sizes):,} |" for kind, sizes in kinds.items()]
    head = ["| what | number | bytes |", "| --- | ---: | ---: |"]
    return "\n".join([*head, *lines, f"| in all, this card aside | | {total:,} |"]) + "\n"


def _stored_dtype(weight: Tensor, floats: ScaleDtype) -> torch.dtype:
    if not weight.is_floating_point():
        return weight.dtype
    return SCALE_DTYPES[floats] if weight.dim() > 1 else torch.float32


def _maker(found: Match, name: str, item: Item) -> Any:
    return lambda: {item.name: found.value(name, item.dtype)}
