"""A program on the disk: its text, its weights in safetensors, and the model's own source lines.

program.txt           the textual IR
weights.safetensors   `name`, or `name!codes`, `name!scale`, `name!zero` for a quantised weight
program.json          per value its source line and site; per quantised weight its encoding
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from drawplate.encoding import Encoding, Grid, QTensor
from drawplate.program import Program, Weight
from drawplate.text import parse_program, print_program

_META = ("source", "site")  # what the text does not carry in full


def save_program(program: Program, folder: Path, *, weights: bool = True) -> None:
    """Write the program into a folder that exists. weights: False leaves their contents out."""
    (folder / "program.txt").write_text(print_program(program), encoding="utf-8")
    about = {
        "weights": {name: _about(w) for name, w in program.weights.items()},
        "values": [[node.meta.get(key, "") for key in _META] for node in _calls(program)],
    }
    (folder / "program.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    if weights:
        save_file(_tensors(program), folder / "weights.safetensors")


def load_program(folder: Path) -> Program:
    """The program as it was saved. Weights whose contents were left out are meta tensors.

    Raises whatever reading raises: the caller knows what a broken folder means.
    """
    program = parse_program((folder / "program.txt").read_text(encoding="utf-8"))
    about = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    for node, values in zip(_calls(program), about["values"], strict=True):
        node.meta.update({key: value for key, value in zip(_META, values, strict=True) if value})
    path = folder / "weights.safetensors"
    if not path.exists():
        return program
    with safe_open(path, framework="pt") as file:
        loaded = {name: _weight(file, name, said) for name, said in about["weights"].items()}
    return replace(program, weights=MappingProxyType(loaded))


def weight_bytes(program: Program) -> int:
    """Bytes that the weights take in memory, each tensor once."""
    tensors = {id(t): t.nbytes for w in program.weights.values() for t in tensors_behind("", w).values()}
    return sum(tensors.values())


def _calls(program: Program) -> list[Any]:
    """The values that come from somewhere in the model. In the order of the text, which parsing keeps."""
    return list(program.nodes())


def as_stored(tensors: Mapping[str, Tensor], encodings: Mapping[str, Encoding]) -> dict[str, QTensor]:
    """The stored weights, their codes one per element, from the tensors behind them."""
    return {name: _stored(tensors.__getitem__, name, encoding) for name, encoding in encodings.items()}


def _about(weight: Weight) -> dict[str, Any] | None:
    if isinstance(weight, QTensor):
        return {"encoding": str(weight.encoding), "shape": list(weight.shape), "packed": weight.packed}
    return None


def tensors_behind(name: str, weight: Weight) -> dict[str, Tensor]:
    """The tensors behind a weight, by the names they are stored under: as_stored puts them together again."""
    if isinstance(weight, QTensor):
        grid = weight.grid
        return {f"{name}!codes": weight.codes, f"{name}!scale": grid.scale, f"{name}!zero": grid.zero_point}
    return {name: weight}


def _tensors(program: Program) -> dict[str, Tensor]:
    """Everything to store. safetensors takes no two tensors that share memory, so a second one is copied."""
    seen: set[int] = set()
    tensors = {}
    for name, weight in program.weights.items():
        for key, tensor in tensors_behind(name, weight).items():
            plain = tensor.detach().contiguous()
            start = plain.untyped_storage().data_ptr()
            tensors[key] = plain.clone() if start in seen else plain
            seen.add(start)
    return tensors


def _weight(file: Any, name: str, said: dict[str, Any] | None) -> Weight:
    tensor: Tensor
    if said is None:
        tensor = file.get_tensor(name)
        return tensor
    stored = _stored(file.get_tensor, name, Encoding.parse(said["encoding"]))
    return replace(stored, shape=tuple(said["shape"]), packed=said["packed"])


def _stored(read: Callable[[str], Tensor], name: str, encoding: Encoding) -> QTensor:
    codes, scale, zero = (read(f"{name}!{part}") for part in ("codes", "scale", "zero"))
    return QTensor(codes, Grid(scale, zero), encoding, tuple(codes.shape))
