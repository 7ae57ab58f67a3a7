"""Safetensors files that are written tensor by tensor, and whose sizes are known before anything is.

The format (github.com/huggingface/safetensors): eight bytes with the header's length, the header as JSON, the tensors
one behind the other. The library's own writer wants all of a file in memory, this one a tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from drawplate.backendbase import ByteRow

INDEX = "model.safetensors.index.json"
_KINDS = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNED = 8  # bytes: what a header's length is a multiple of


@dataclass(frozen=True)
class Item:
    """A tensor of a file, by its name there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """In the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Group:
    """The tensors that one weight is stored as, kept in one file. weight: as the program calls it, empty for what it
    does without. encoding: for the byte table. make: their contents, by name; asked once, when they are written."""

    weight: str
    encoding: str
    items: tuple[Item, ...]
    make: Callable[[], Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(item.nbytes for item in self.items)


@dataclass(frozen=True)
class Shard:
    """One file."""

    file: str
    groups: tuple[Group, ...]

    @property
    def header(self) -> bytes:
        """The length and the JSON, padded with spaces. Wide elements come first, so that all lie aligned."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for item in self.items:
            where = [at, at + item.nbytes]
            entries[item.name] = {"dtype": _KINDS[item.dtype], "shape": list(item.shape), "data_offsets": where}
            at += item.nbytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return len(text).to_bytes(8, "little") + text

    @property
    def items(self) -> list[Item]:
        """In the order of the file."""
        return sorted(chain.from_iterable(g.items for g in self.groups), key=lambda item: -item.dtype.itemsize)

    def rows(self) -> list[ByteRow]:
        """One for each weight, one for each tensor that belongs to none, one for the header."""
        rows = [
            ByteRow(g.weight, "weight", g.encoding, self.file, g.nbytes)
            if g.weight
            else ByteRow(g.items[0].name, "graph", g.encoding, self.file, g.nbytes)
            for g in self.groups
        ]
        return [*rows, ByteRow("names and shapes", "graph", "", self.file, len(self.header))]

    def write(self, folder: Path) -> Path:
        """Write it, a weight at a time: each tensor goes to the place that the header says."""
        path, header = folder / self.file, self.header
        starts: dict[str, int] = {}
        at = len(header)
        for item in self.items:
            starts[item.name] = at
            at += item.nbytes
        with path.open("wb") as file:
            file.write(header)
            for group in self.groups:
                made = group.make()
                for item in group.items:
                    file.seek(starts[item.name])
                    file.write(_bytes_of(made[item.name], item))
        return path


def shards(groups: Iterable[Group], limit: int) -> list[Shard]:
    """Groups in their order, in files of up to `limit` bytes of tensors; one that is larger is alone in its own."""
    parts: list[list[Group]] = [[]]
    size = 0
    for group in groups:
        if parts[-1] and size + group.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(group)
        size += group.nbytes
    if len(parts) == 1:
        return [Shard("model.safetensors", tuple(parts[0]))]
    count = len(parts)
    return [Shard(f"model-{i:05}-of-{count:05}.safetensors", tuple(part)) for i, part in enumerate(parts, 1)]


def index_text(files: Sequence[Shard]) -> str:
    """The index that says which file holds a tensor."""
    total = sum(group.nbytes for shard in files for group in shard.groups)
    places = {item.name: shard.file for shard in files for item in shard.items}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n"


def _bytes_of(tensor: Tensor, item: Item) -> bytes:
    assert (tensor.dtype, tuple(tensor.shape)) == (item.dtype, item.shape), item.name
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
