"""Other people's runtimes as Runnables, so that `speed.py` measures them in the same interleaved run as our .pte files.

llama.cpp on a GGUF file and onnxruntime-genai on a folder of its builder. Neither is a dependency: install
llama-cpp-python and onnxruntime-genai into any environment of the same Python, and name its packages in
DRAWPLATE_PEERS; they are found behind our own. The GGUF file comes from `examples/a_backend_plugin`.

    DRAWPLATE_PEERS=peers/lib/python3.11/site-packages python benchmarks/speed.py meta-8da4w=build/demo/meta-8da4w \\
        llama.cpp=build/bench/gguf genai=build/bench/genai
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drawplate.errors import EvaluationError

CONTEXT = 512


def opener(folder: Path) -> str | None:
    """What opens this folder, if it is another runtime's."""
    kind = "llama" if any(folder.glob("*.gguf")) else "genai" if (folder / "genai_config.json").is_file() else ""
    return f"{__file__}:open_{kind}" if kind else None


def open_llama(folder: Path, threads: int | None = None) -> Llama:
    """llama.cpp on the folder's one GGUF file."""
    return Llama(next(folder.glob("*.gguf")), threads or 1)


def open_genai(folder: Path, threads: int | None = None) -> GenAI:
    """onnxruntime-genai on a folder that its builder made."""
    return GenAI(folder, threads or 1)


class Llama:
    """See drawplate.runtime.Runnable."""

    context = CONTEXT

    def __init__(self, path: Path, threads: int) -> None:
        self._api = _peer("llama_cpp")
        options = {"n_ctx": CONTEXT, "n_batch": CONTEXT, "n_threads": threads, "n_threads_batch": threads}
        self._model: Any = self._api.Llama(str(path), verbose=False, **options)

    def reset(self) -> None:
        self._model.reset()

    def step(self, ids: Tensor) -> Tensor:
        self._model.eval(ids.tolist())
        found = self._api.llama_get_logits_ith(self._model.ctx, -1)
        size = self._model.n_vocab() * ctypes.sizeof(ctypes.c_float)
        return torch.frombuffer(bytearray(ctypes.string_at(found, size)), dtype=torch.float32)[None]


class GenAI:
    """See drawplate.runtime.Runnable."""

    context = CONTEXT

    def __init__(self, folder: Path, threads: int) -> None:
        self._api = _peer("onnxruntime_genai")
        config = self._api.Config(str(folder))
        config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
        self._model = self._api.Model(config)
        self.reset()

    def reset(self) -> None:
        asked = self._api.GeneratorParams(self._model)
        asked.set_search_options(max_length=CONTEXT, do_sample=False)
        self._generator = self._api.Generator(self._model, asked)

    def step(self, ids: Tensor) -> Tensor:
        self._generator.append_tokens(ids.to(torch.int32).tolist())
        logits: Any = self._generator.get_logits()
        return torch.from_numpy(logits).reshape(-1, logits.shape[-1])[-1:].float()


def _peer(name: str) -> Any:
    folder = os.environ.get("DRAWPLATE_PEERS")
    if folder is None:
        why = "DRAWPLATE_PEERS does not say in which folder its package is"
        raise EvaluationError(f"{name} cannot be run", why=why, fix="see benchmarks/peers.py")
    sys.path.append(folder)
    return __import__(name)
