"""A .pte in ExecuTorch's stock runtime, fed token by token."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from drawplate.backends.xnnpack import executorch_adapter as executorch
from drawplate.errors import BackendError
from drawplate.runtime import CacheRunner, check_room

FILE = "model.pte"


def open_artifact(folder: Path, threads: int | None = None) -> PteRunner:
    """The artifact in this folder, in a process that imports what running takes and nothing else."""
    return PteRunner(folder / FILE, threads)


class PteRunner(CacheRunner):
    """A decoder with its cache. See drawplate.runtime.Runnable and Rewindable."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """threads: of ExecuTorch's pool, for the whole process (None: one per core)."""
        if threads is not None:
            executorch.set_threads(threads)
        self._model = executorch.load(path)
        known = self._model.constants
        if "get_max_context_len" not in known:
            raise BackendError(
                "the artifact does not generate text, so there is nothing to feed token by token",
                where=str(path),
                why="it was compiled without a cache",
                fix="put add-kv-cache into the recipe, or call backends.xnnpack.executorch_adapter.load on the file",
            )
        self.context = int(known["get_max_context_len"])
        self._longest = int(known["get_max_seq_len"])

    def step(self, ids: Tensor) -> Tensor:
        """ids: int64 [n] -> logits f32 [m, vocab] of the last m positions."""
        check_room(self._fed, len(ids), self.context)
        rows = []
        for part in ids.split(self._longest):
            positions = torch.arange(self._fed, self._fed + len(part))
            (logits,) = self._model(part[None].contiguous(), positions)
            self._fed += len(part)
            rows.append(logits[0].float().clone())
        return torch.cat(rows) if len(rows[0]) > 1 or len(ids) == 1 else rows[-1]
