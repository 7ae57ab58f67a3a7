"""An ONNX model in stock ONNX Runtime, fed token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drawplate.errors import BackendError, RuntimeMissing
from drawplate.runtime import CacheRunner, check_room

MODEL, DATA, CONFIG = "model.onnx", "model.onnx.data", "genai_config.json"
PAST = "past_key_values."
# What fuses DequantizeLinear and MatMul rounds activations to 8 bits, unless it is told to compute in float32.
EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}


def open_artifact(folder: Path, threads: int | None = None) -> OnnxRunner:
    """The artifact in this folder, in a process that imports what running takes and nothing else."""
    return OnnxRunner(folder, threads)


def session(path: Path, threads: int | None = None) -> Any:
    """A model in ONNX Runtime, on the CPU. Raises RuntimeMissing, or BackendError if it does not load."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(
            "ONNX Runtime is not installed", where=str(path), fix="pip install 'drawplate[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, entry in EXACT.items():
        options.add_session_config_entry(key, entry)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(
            "ONNX Runtime does not load the file",
            where=str(path),
            why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix="compile it again; the file may be damaged",
        ) from error


class OnnxRunner(CacheRunner):
    """A decoder with its cache. See drawplate.runtime.Runnable and Rewindable.

    Keys and values lie in buffers of the whole context that are past and present at once, as in onnxruntime-genai.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """threads: of this session."""
        if not (folder / CONFIG).is_file():
            there = (folder / MODEL).is_file()
            raise BackendError(
                "the artifact does not generate text, so there is nothing to feed token by token" if there
                else f"there is no {MODEL} with a {CONFIG}",
                where=str(folder),
                why="it was compiled without a cache" if there else "it is no artifact of this backend",
                fix="put add-kv-cache into the recipe, or load the file with onnxruntime",
            )  # fmt: skip
        self._session = session(folder / MODEL, threads)
        import onnxruntime

        self._api: Any = onnxruntime
        known = json.loads((folder / CONFIG).read_text("utf-8"))["model"]
        self.context = int(known["context_length"])
        self._positions = "position_ids" in known["decoder"]["inputs"]
        self._mask = torch.ones(1, self.context, dtype=torch.int64).numpy()
        self._binding = self._session.io_binding()
        self._binding.bind_output("logits", "cpu")  # the first, and so the first that comes back
        self._caches = [self._cache(i) for i in self._session.get_inputs() if i.name.startswith(PAST)]

    def _cache(self, past: Any) -> Any:
        """A buffer [1, heads, context, width] that is this input and the output that follows it."""
        _, heads, _, width = past.shape
        empty = torch.zeros(1, heads, self.context, width).numpy()
        buffer = self._api.OrtValue.ortvalue_from_numpy(empty)
        self._binding.bind_ortvalue_input(past.name, buffer)
        self._binding.bind_ortvalue_output(past.name.replace(PAST, "present."), buffer)
        return buffer

    def step(self, ids: Tensor) -> Tensor:
        """ids: int64 [n] -> logits f32 [m, vocab] of the last m positions."""
        check_room(self._fed, len(ids), self.context)
        end = self._fed + len(ids)
        bind = self._binding.bind_cpu_input
        bind("input_ids", ids[None].contiguous().numpy())
        bind("attention_mask", self._mask[:, :end])
        if self._positions:
            bind("position_ids", torch.arange(self._fed, end)[None].numpy())
        self._binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(self._binding)
        self._fed = end
        return torch.from_numpy(self._binding.get_outputs()[0].numpy())[0]
