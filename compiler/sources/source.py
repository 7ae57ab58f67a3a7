"""Source: a model that is ready to be traced, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from drawplate.program import Dim, Spec, example_length

# What a folder may hold besides weights that a runtime or an application needs next to the compiled model.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Assets:
    """What a model ships besides its weights.

    folder: where it was read from, if from a folder. files: those of COMPANIONS that are there. context: the largest
    number of positions. bos, eos: token ids. vocabulary: number of token ids.
    """

    folder: Path | None = None
    files: tuple[Path, ...] = ()
    context: int | None = None
    bos: int | None = None
    eos: tuple[int, ...] = ()
    vocabulary: int | None = None


@dataclass(frozen=True)
class Source:
    """A module whose forward takes exactly `inputs`, in order, and what else was found with it.

    prefix: what to take off the module's own names to have those of the checkpoint. inputs: an example of each.
    dynamic: for each input, the axes whose length is not fixed.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, Dim]]
    prefix: str = ""
    assets: Assets = field(default_factory=Assets)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The symbolic lengths, each once, in the order of the inputs."""
        return tuple({dim.name: dim for axes in self.dynamic.values() for dim in axes.values()}.values())

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The types of the inputs."""
        return tuple(
            Spec(key, tensor.dtype, tuple(self._length(key, axis, n) for axis, n in enumerate(tensor.shape)))
            for key, tensor in self.inputs.items()
        )

    def _length(self, key: str, axis: int, size: int) -> int | str:
        dim = self.dynamic.get(key, {}).get(axis)
        return dim.name if dim else size


def lengths(*dims: Dim) -> dict[str, int]:
    """Length to trace with for each dim, all different and none of them 0 or 1."""
    return {dim.name: example_length(dim, i) for i, dim in enumerate(dims)}
