"""What passes found out and somebody may want besides the program, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Record:
    """Tensors, or data in JSON's types: `<name>.safetensors` or `<name>.json` beside the artifact's other files.

    last: it takes the place of what earlier passes left under the name."""

    name: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    data: Any = None
    last: bool = False

    @property
    def suffix(self) -> str:
        """Of its file."""
        return ".safetensors" if self.data is None else ".json"

    def write(self, path: Path) -> None:
        """Into this file."""
        if self.data is None:
            save_file({key: t.contiguous() for key, t in self.tensors.items()}, path)
        else:
            path.write_text(json.dumps(self.data, indent=1, allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, name: str, path: Path) -> Record:
        """What `write` wrote."""
        if path.suffix == ".json":
            return cls(name, data=json.loads(path.read_text(encoding="utf-8")))
        return cls(name, load_file(path))
