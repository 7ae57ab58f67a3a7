"""The tensors of a folder, read one by one from its safetensors. Pickles are never opened: they can run code."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from drawplate.checkpoints.shards import INDEX
from drawplate.errors import CaptureError
from drawplate.provenance import first_line

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
AGAIN = "download it again and compare its size with the source's"


class Tensors:
    """Names and contents. Every file is opened once at first, so what is cut off is told before anything is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for file in _weight_files(folder):
            for name in _names(file):
                self._files[name] = file
        missing = sorted(_indexed(folder) - self._files.keys())
        if missing:
            raise CaptureError(
                f"{len(missing)} tensors of the index are in no file: {', '.join(missing[:3])}",
                where=str(folder / INDEX),
                fix="check that all shards are there",
            )

    @property
    def names(self) -> Collection[str]:
        """All of them."""
        return self._files.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        """Its contents. Raises CaptureError if there is none of that name."""
        if name not in self._files:
            raise CaptureError(
                f"{name!r} is not in the checkpoint",
                where=str(self._folder),
                fix="check that all shards are there and that config.json belongs to them",
            )
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)

    def file(self, name: str) -> str:
        """Where it stands, for messages."""
        return str(self._files.get(name, self._folder))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors that hold the model: those of the index, else every one called model*. Raises CaptureError."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
    if pickles:
        raise CaptureError(
            f"the weights are pickles ({', '.join(pickles[:3])}), which are not opened",
            where=str(folder),
            why="a pickle can run code when it is read; safetensors cannot",
            fix="convert them to safetensors where you trust them: transformers' save_pretrained writes these",
        )
    raise CaptureError("there are no weights: no *.safetensors", where=str(folder), fix="download the whole model")


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        pickle = file.is_file() and _begins(file) in (b"PK", b"\x80\x02")
        raise CaptureError(
            f"a shard cannot be read: {first_line(error)}",
            where=str(file),
            why="it is a pickle by another name, and those are not opened" if pickle else "it is not whole",
            fix="take the safetensors from where the model is from" if pickle else AGAIN,
        ) from error


def _begins(file: Path) -> bytes:
    """Its first two bytes."""
    with file.open("rb") as opened:
        return opened.read(2)


def _indexed(folder: Path) -> set[str]:
    """The names in the index, if there is one."""
    index = folder / INDEX
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CaptureError("the index of the shards cannot be read", where=str(index), fix=AGAIN) from error
