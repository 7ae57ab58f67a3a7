"""Digests of programs by content: what makes a name for a result before it is computed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from drawplate.encoding import QTensor
from drawplate.program import Program, Weight
from drawplate.text import print_program

_SIZE = 16  # bytes: 128 bits are enough where nobody attacks
# Digest and version of tensors that were read already: passes share tensors, so each is read once per process.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def digest(*parts: str) -> str:
    """Hex digest of some texts, in order, kept apart."""
    h = hashlib.blake2b(digest_size=_SIZE)
    for part in parts:
        h.update(f"{len(part)}:{part}".encode())
    return h.hexdigest()


def program_digest(program: Program) -> str:
    """Of everything that decides what the program computes: its text (facts included) and its weights' contents."""
    return digest(print_program(program), *_contents(program))


def weights_digest(program: Program) -> str:
    """Of its weights alone: names, contents and how they are stored."""
    return digest(*_contents(program))


def _contents(program: Program) -> list[str]:
    names = sorted(program.weights)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the interpreter
        weights = pool.map(weight_digest, [program.weights[name] for name in names])
        return [f"{n}={d}" for n, d in zip(names, weights, strict=True)]


def weight_digest(weight: Weight) -> str:
    """Of a weight's contents, dtype and shape; for a quantised one of its codes, grid and encoding."""
    if isinstance(weight, QTensor):
        parts = (weight.codes, weight.grid.scale, weight.grid.zero_point)
        return digest(str(weight.encoding), str(weight.shape), str(weight.packed), *map(tensor_digest, parts))
    return tensor_digest(weight)


def tensor_digest(tensor: Tensor) -> str:
    """Of contents, dtype and shape. Read once per tensor object, again if it was written to."""
    version = tensor_version(tensor)
    if tensor in _known and _known[tensor][0] == version:
        return _known[tensor][1]
    h = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=_SIZE)
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    h.update(flat.numpy().data)
    _known[tensor] = (version, h.hexdigest())
    return h.hexdigest()


def tensor_version(tensor: Tensor) -> int:
    """Counts the writes to a tensor; torch does not count for those made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  (documented, for all its underscore)


def tensors_of(weight: Weight) -> Iterable[Tensor]:
    """The tensors behind a weight."""
    if isinstance(weight, QTensor):
        return weight.codes, weight.grid.scale, weight.grid.zero_point
    return (weight,)


def file_digest(path: Path) -> str:
    """sha256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
