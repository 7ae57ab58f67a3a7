"""A GGUF file in transformers: slow, exact, and enough to measure with."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from drawplate.runtime import check_room
from drawplate.sources.quiet import quiet_transformers


class GgufRunner:
    """A Runnable (drawplate.runtime): weights dequantised to float32, transformers' cache, every position's logits."""

    def __init__(self, file: Path) -> None:
        config = AutoConfig.from_pretrained(file.parent)  # from the file alone transformers does not see biases
        with quiet_transformers(), redirect_stderr(StringIO()):  # its GGUF reader has a bar that no option turns off
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, config=config, dtype=torch.float32
            )
        self._model = model.eval()
        self.context: int | None = self._model.config.max_position_embeddings
        self.reset()

    def reset(self) -> None:
        """Forget everything that was fed."""
        self._cache = DynamicCache(config=self._model.config)

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        surplus = self._cache.get_seq_length() - length
        if surplus:
            self._cache.crop(-surplus)

    def step(self, ids: Tensor) -> Tensor:
        """ids: int64 [n] -> logits f32 [n, vocab]."""
        check_room(self._cache.get_seq_length(), len(ids), self.context)
        with torch.no_grad():
            out = self._model(ids[None], past_key_values=self._cache, use_cache=True)
        logits: Tensor = out.logits[0]
        return logits
