"""What a learner puts aside while it works, so that a run that was killed goes on and ends with the same bytes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drawplate.ranks import leads


@dataclass(frozen=True)
class Aside:
    """Named tensors in a folder that belongs to one piece of work. folder: None keeps nothing. purpose: everything that
    decides the result; what was left there for another purpose is not taken up."""

    folder: Path | None
    purpose: str

    def save(self, name: str, tensors: Mapping[str, Tensor], step: int = 0) -> None:
        """Whole or not at all: written beside and renamed."""
        if self.folder is None or not leads():
            return
        path = self._path(name)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        about = {"purpose": self.purpose, "step": json.dumps(step)}
        try:
            save_file({k: t.detach().contiguous() for k, t in tensors.items()}, beside, metadata=about)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def load(self, name: str) -> tuple[dict[str, Tensor], int] | None:
        """The tensors and the step they are of; None if there are none for this purpose, or they are damaged."""
        if self.folder is None or not self._path(name).is_file():
            return None
        try:
            with safe_open(self._path(name), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("purpose") != self.purpose:
                    return None
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(about["step"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return None  # computing it again costs time and nothing else

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"
