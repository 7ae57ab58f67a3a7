"""A model's outline: its structure from the configuration alone, with weights that take no memory."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from drawplate.capture import Captured, capture
from drawplate.errors import CaptureError
from drawplate.options import nearest
from drawplate.sources import huggingface
from drawplate.sources.opening import reader_of, refuse_artifact

if TYPE_CHECKING:
    from drawplate.plugins.manager import Session


def capture_outline(model: str | Path, session: Session | None = None) -> Captured:
    """capture(), of a model whose weights are all zero and have no memory of their own.

    Where the structure is only known with the weights (a GGUF file, or what a reader reads), these are loaded. Raises
    CaptureError.
    """
    stored = Path(model).exists() and reader_of(Path(model), session)
    config = None if stored else _config(model)
    if config is None or getattr(config, "quantization_config", None):
        return capture(model, session=session)  # by a reader, or it says that there is none
    folder = Path(model) if Path(model).is_dir() else None
    name = folder.resolve().name if folder else str(model).rpartition("/")[2]
    program = capture(outline(config), name=name).program
    return Captured(program, huggingface.assets_of(config, folder))


def capture_config(config: str | Path) -> Captured:
    """capture_outline() of a configuration that has no weights; see read_config. Raises CaptureError."""
    name, read = read_config(config)
    return Captured(capture(outline(read), name=name).program, huggingface.assets_of(read))


def read_config(config: str | Path) -> tuple[str, Any]:
    """A name and a transformers configuration: that of a shipped one (configs/*.json), or of the path of a config.json
    as transformers reads it. Raises CaptureError."""
    shipped = {f.name.removesuffix(".json"): f for f in files("drawplate").joinpath("configs").iterdir()}
    if str(config) not in shipped and not Path(config).is_file():
        near = nearest(str(config), shipped) or f"there are: {', '.join(sorted(shipped))}"
        fix = f"{near}; or give the path of a config.json"
        raise CaptureError(f"there is no configuration {str(config)!r}", where="by name or as a file", fix=fix)
    with as_file(shipped[str(config)]) if str(config) in shipped else nullcontext(Path(config)) as path:
        read = huggingface.config_of(path)
    return path.parent.name if path.name == "config.json" else path.stem, read


def untrained(config: Any) -> nn.Module:
    """The model of a transformers configuration in float32, its weights as they are drawn at first."""
    kind = huggingface.class_of(config)
    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config  # noqa: SLF001  (no public way)
    made: nn.Module = build(config, dtype=torch.float32)
    return made


def outline(config: Any) -> nn.Module:
    """The model of a transformers configuration, each parameter a single number that stands for all of its own."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):  # buffers are computed from the configuration, and small
        model: Any = untrained(config)
    model.tie_weights()
    weightless(model)
    made: nn.Module = model
    return made


def weightless(model: nn.Module) -> None:
    """Give each parameter on the meta device one number that stands for all of its own.

    A real device, since torch.export does not trace through a model that is partly on meta; a stride of 0, since then
    a table of gigabytes takes four bytes. Tied parameters stay tied.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(_hollow(parameter), requires_grad=False)
            if parameter.is_meta:
                setattr(module, name, made[id(parameter)])


def _hollow(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=like.dtype).expand(like.shape)


def _config(model: str | Path) -> Any:
    """The configuration of a folder or a hub name; None for anything else, and for an unknown name."""
    import transformers

    path = Path(model)
    if path.is_dir():
        refuse_artifact(path)
    if path.is_dir() and (path / "config.json").is_file():
        return huggingface.config_of(path)
    if path.exists():
        return None
    try:
        return transformers.AutoConfig.from_pretrained(str(model))
    except (OSError, ValueError):
        return None  # capture says what is wrong with the name
