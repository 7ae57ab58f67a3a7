"""Several processes that compile one model together: `torchrun --nproc-per-node 2 -m drawplate.cli compile ..`.

All of them run the same passes on the same weights. Where a pass reads a text, each takes its share of it and what they
found is added up; so all go on with the same numbers, those of one process but for the order of additions. What is not
shared out each does by itself. The first one alone writes. They share one cache folder, so they are on one host, or on
one file system. In a single process nothing here does anything. No other file knows of torch.distributed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from drawplate.errors import DrawplateError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the first one writes and verifies while the others wait


@contextmanager
def joined() -> Iterator[None]:
    """Find the others, if torchrun started this process with others. Weights are on the CPU, so it is by gloo."""
    if not _started() or dist.is_initialized():
        yield
        return
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except ValueError as error:
        raise DrawplateError(
            "the other processes cannot be found",
            why=f"WORLD_SIZE is set, and not as torchrun sets it: {error}",
            fix="start it by torchrun, or unset WORLD_SIZE",
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0; to torchrun, before and after they are joined too."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0")) if _started() else 0


def _started() -> bool:
    """Did torchrun start this process, and others with it?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Is this the one that writes and speaks?"""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """What this one takes of them: every n-th, perhaps none."""
    return items[rank() :: world()] if world() > 1 else items


def add_up(*found: Tensor) -> None:
    """Each becomes the sum of all processes', in place, the same to the last bit for all of them."""
    if world() > 1:
        with _others_there():
            for x in found:
                dist.all_reduce(x)


def total(number: float) -> float:
    """The sum of all processes' numbers."""
    if world() == 1:
        return number
    summed = torch.tensor([number], dtype=torch.float64)
    add_up(summed)
    return float(summed)


def add_up_gradients(numbers: Iterable[Tensor]) -> None:
    """Each gradient becomes the sum of all processes'; where nobody has one there is none."""
    if world() == 1:
        return
    trained = list(numbers)
    reached = torch.tensor([float(x.grad is not None) for x in trained])
    add_up(reached)
    for x, count in zip(trained, reached.tolist(), strict=True):
        if count:
            x.grad = torch.zeros_like(x) if x.grad is None else x.grad.contiguous()
            add_up(x.grad)


def wait() -> None:
    """Until all are here."""
    if world() > 1:
        with _others_there():
            dist.barrier()


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        fix = "see what it said"
        raise DrawplateError("another process of this compile ended", why=str(error), fix=fix) from error
