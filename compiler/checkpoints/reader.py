"""What reads a kind of checkpoint, and how a folder whose weights are stored by name becomes a Program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from drawplate.checkpoints.tensors import Tensors
from drawplate.encoding import QTensor
from drawplate.errors import CaptureError

if TYPE_CHECKING:
    from drawplate.capture import Captured
    from drawplate.checkpoints.architecture import Architecture
    from drawplate.program import Weight


class Reader(ABC):
    """Turns one kind of stored model into a Program whose weights are stored as they are in the file. Subclass as a
    frozen dataclass without fields. name: of the format."""

    name: ClassVar[str]

    @abstractmethod
    def claims(self, place: Path) -> bool:
        """Is the folder or file `place` of this kind? Cheap: asked of every model that is opened."""

    @abstractmethod
    def read(self, place: Path, name: str) -> Captured:
        """The program, in canonical form, called `name`. Raises CaptureError."""


class FolderReader(Reader):
    """Reads Hugging Face folders whose config.json says, under quantization_config, how weights are stored."""

    def claims(self, place: Path) -> bool:
        found = quantization_of(place)
        return found is not None and self.knows(found)

    @abstractmethod
    def knows(self, quantization: Mapping[str, Any]) -> bool:
        """Is a quantization_config of this format?"""

    @abstractmethod
    def weight(self, read: Reading, name: str, shape: tuple[int, ...]) -> QTensor | Tensor | None:
        """The weight `name` of a checkpoint, [out, in]; None if it is there as it is, under this name.

        A float where no Encoding says how it is stored, with a note. shape: [out, in]. Raises CaptureError.
        """

    def read(self, place: Path, name: str) -> Captured:
        from drawplate.capture import Captured
        from drawplate.checkpoints.architecture import architecture_of, read_config
        from drawplate.sources.huggingface import assets_of, config_of

        config = read_config(place)
        read = Reading(place, Tensors(place), config.get("quantization_config") or {})
        architecture = architecture_of(config)
        editor = architecture.program.edit()
        for weight in architecture.program.weights:
            editor.weights[weight] = self._canonical(read, architecture, weight)
        return Captured(editor.finish(name=name), assets_of(config_of(place), place), tuple(read.notes))

    def _canonical(self, read: Reading, architecture: Architecture, weight: str) -> Weight:
        """A weight of the canonical program, made from the checkpoint's."""
        from drawplate.checkpoints.origins import is_transpose, made_from

        origin = architecture.origins[weight]
        if not origin.names & set(architecture.stored):
            return architecture.constant(weight)
        if origin.name or is_transpose(origin):  # a format's own matrix is [out, in], whichever way round the module's
            (name,) = origin.names
            stored = self.weight(read, name, origin.shape)
            if stored is not None:
                return stored
        return made_from(origin, lambda name: self._plain(read, architecture, name))

    def _plain(self, read: Reading, architecture: Architecture, name: str) -> Tensor:
        """A weight that the checkpoint has as it is, or that the loader computes."""
        if name not in architecture.stored:
            return architecture.constant(name)
        plain, shape = read.tensors[name], architecture.stored[name]
        if tuple(plain.shape) != shape:
            raise CaptureError(
                f"{name!r} is {list(plain.shape)}, the architecture has {list(shape)}",
                where=read.tensors.file(name),
                fix="check that config.json belongs to these weights",
            )
        return plain.float() if plain.is_floating_point() else plain


@dataclass
class Reading:
    """One folder that is being read. notes: what the user should know: which weights could not stay integers."""

    folder: Path
    tensors: Tensors
    quantization: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def quantization_of(place: Path) -> Mapping[str, Any] | None:
    """What config.json of a folder says of how weights are stored; None if it says nothing or is not there."""
    from drawplate.checkpoints.architecture import read_config

    if not (place / "config.json").is_file():
        return None
    found = read_config(place).get("quantization_config")
    return found if isinstance(found, dict) else None
