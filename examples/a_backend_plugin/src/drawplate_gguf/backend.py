"""The backend itself: checks that the program is what the file can say, and writes it tensor by tensor."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drawplate.backendbase import Backend, ByteRow, Emission, encoding_of
from drawplate.encoding import Grid, QTensor
from drawplate.errors import BackendError, Refusal
from drawplate.program import Program, Weight
from drawplate.target import Choice, Target
from drawplate_gguf.architecture import Model, ours, rope_factors
from drawplate_gguf.blocks import Q4_0, Q8_0, TYPES, blocks, scales_fit
from drawplate_gguf.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from drawplate.capture import Assets
    from drawplate.runtime import Runnable

FILE = "model.gguf"
Tensors = dict[str, tuple[str, Weight]]  # GGUF name -> (the program's name, what is stored)
_FLOATS = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
_ENCODINGS = {kind: str(encoding) for encoding, kind in TYPES.items()}
_ENCODINGS |= {kind: kind.name.lower() for kind in _FLOATS.values()}
_MENU = (Choice(Q4_0), Choice(Q8_0), Choice(None))


@dataclass(frozen=True)
class Gguf(Backend):
    """Llama-type decoders for llama.cpp. Symmetric 8- and 4-bit weights in groups of 32 with f16 scales become Q8_0
    and Q4_0 blocks without being rounded again; everything else stays floating point."""

    name: ClassVar[str] = "gguf"
    target: ClassVar[Target] = Target(
        name="gguf",
        menu={"linear": _MENU, "embedding": _MENU},
        float_dtypes=("f32", "f16", "bf16"),
    )

    def check(self, program: Program) -> list[Refusal]:
        """Encodings, and what only a plain decoder may have. The graph itself is compared in emit(), where the
        model's configuration is known."""
        refusals = [
            Refusal(name, "", f"GGUF has no blocks of '{w.encoding}'", fix=f"use one of {', '.join(map(str, TYPES))}")
            for name, w in program.weights.items()
            if isinstance(w, QTensor) and w.encoding not in TYPES
        ]
        refusals += [
            Refusal(name, "", f"GGUF has no type for {encoding_of(w)}", fix="cast it to f32, f16 or bf16")
            for name, w in program.weights.items()
            if not isinstance(w, QTensor) and w.dtype not in _FLOATS
        ]
        refusals += [
            Refusal(node.meta.get("site", node.name), "drawplate.encode", "a GGUF file cannot say how activations are "
                    "rounded; llama.cpp decides that", node.meta.get("source", ""), "leave out quantize-activations")
            for node in program.nodes(ours.encode.default)
        ]  # fmt: skip
        refusals += [
            Refusal(spec.name, "", "llama.cpp keeps its own cache", fix="leave out add-kv-cache")
            for spec in program.state
        ]
        return refusals

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        """As emit() will have it: the part in front of the weights is written to a temporary file and measured."""
        model = _model(program, assets)
        tensors = _tensors(program, model)
        with tempfile.TemporaryDirectory(prefix="drawplate-gguf-") as folder:
            writer = _begin(Path(folder, FILE), program, assets, model, tensors)
            writer.close()
            header = writer.ggml_pad(Path(folder, FILE).stat().st_size, writer.data_alignment)
        weights = [
            ByteRow(source, "weight", _ENCODINGS[_stored_as(w)[1]], FILE, _padded(_stored_as(w)[2]))
            for source, w in tensors.values()
        ]
        copies = [ByteRow(f.name, "asset", "", f.name, f.stat().st_size) for f in assets.files]
        return (*weights, ByteRow("metadata and vocabulary", "graph", "", FILE, header), *copies)

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        """model.gguf, and the model's tokenizer and configuration beside it."""
        model = _model(program, assets)
        tensors = _tensors(program, model)
        path = into / FILE
        writer = _begin(path, program, assets, model, tensors)
        for name, (_, weight) in tensors.items():
            writer.write_tensor_data(_stored(name, weight, model))
        writer.close()
        copied = [Path(shutil.copyfile(file, into / file.name)) for file in assets.files]
        rows = [ByteRow(f.name, "asset", "", f.name, f.stat().st_size) for f in copied]
        notes = ["llama.cpp rounds activations to 8 bits inside its products; 'eval' and 'run' here do not"]
        if not any(f.name == "tokenizer.json" for f in copied):
            notes.append("the model has no tokenizer.json, so the file has no vocabulary")
        return Emission((path, *copied), (*_account(path, program, tensors), *rows), (), tuple(notes))

    def open(self, folder: Path) -> Runnable:
        """The file's weights, dequantised, in transformers' own model: for measuring what is in the file."""
        from drawplate_gguf.runtime import GgufRunner

        return GgufRunner(folder / FILE)


def _model(program: Program, assets: Assets) -> Model:
    """The model as its configuration describes it, which the program must still be. Raises BackendError."""
    configs = [f for f in assets.files if f.name == "config.json"]
    if not configs:
        raise BackendError(
            "there is no config.json to describe the model by",
            why="a GGUF file names an architecture and its sizes",
            fix="compile from a Hugging Face folder",
        )
    model = Model.read(json.loads(configs[0].read_text("utf-8")), program.name)
    differences = model.differences(program)
    if differences:
        raise BackendError(
            "the program is not the graph that llama.cpp would build",
            where="; ".join(f"{r.op}: {r.why}" for r in differences),
            why="a GGUF file holds weights and the name of an architecture, no graph",
            fix=differences[0].fix,
        )
    return model


def _tensors(program: Program, model: Model) -> Tensors:
    """GGUF name -> (the program's name, what is stored), in the program's order. A table of rotary frequencies that
    follow from their base is not stored. Raises BackendError on a weight without a place."""
    names = model.names()
    found: Tensors = {}
    for name, weight in program.weights.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is not None:
            found[place] = (name, weight)
        elif isinstance(weight, Tensor) and weight.shape == (model.head_dim // 2,):
            factors = None if weight.is_meta else rope_factors(weight, model.rope_base)  # a rehearsal has no contents
            if factors is not None:
                found["rope_freqs.weight"] = (name, factors.float())
        else:
            raise BackendError(
                f"weight {name!r} has no place in a GGUF file of a {model.architecture.gguf.name.lower()} model",
                where=f"{encoding_of(weight)}{list(weight.shape)}",
                why="llama.cpp would not read it",
                fix="leave out the pass that made it",
            )
        if isinstance(weight, QTensor) and not weight.codes.is_meta and not scales_fit(weight):
            raise BackendError(
                f"scales of {name!r} are not float16 numbers",
                where=str(weight.encoding),
                why="they would be rounded, and the file would not hold the weights that were measured",
                fix="quantise it with scale=f16",
            )
    return found


def _begin(path: Path, program: Program, assets: Assets, model: Model, tensors: Tensors) -> gguf.GGUFWriter:
    """The file up to its first tensor's contents."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[model.architecture.gguf])
    model.describe(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(program))
    tokenizer = [f for f in assets.files if f.name == "tokenizer.json"]
    if tokenizer:
        write_vocabulary(writer, tokenizer[0].parent, model.vocabulary)
    else:
        writer.add_tokenizer_model("none")
    for name, (_, weight) in tensors.items():
        shape, kind, size = _stored_as(weight)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _padded(size: int) -> int:
    return gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT)


def _stored_as(weight: Weight) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]:
    """Shape, type and bytes in the file. Vectors are float32 there, whatever they are here: llama.cpp wants them so."""
    shape = tuple(weight.shape)
    if isinstance(weight, QTensor):
        return shape, TYPES[weight.encoding], weight.nbytes
    kind = _FLOATS[weight.dtype] if len(shape) > 1 else gguf.GGMLQuantizationType.F32
    return shape, kind, weight.numel() * gguf.GGML_QUANT_SIZES[kind][1]


def _stored(name: str, weight: Weight, model: Model) -> NDArray[np.generic]:
    """The bytes of one tensor, rows in llama.cpp's order."""
    order = model.row_order(name, weight.shape[0])
    if isinstance(weight, QTensor):
        if order is not None:
            grid = Grid(weight.grid.scale[order], weight.grid.zero_point[order])
            weight = QTensor(weight.integers()[order], grid, weight.encoding, weight.shape)
        return blocks(weight)
    values = weight.detach() if order is None else weight.detach()[order]
    if values.dim() == 1:
        values = values.float()
    values = values.contiguous()
    raw = values.view(torch.uint16) if values.dtype is torch.bfloat16 else values
    return np.asarray(raw.numpy())


def _account(path: Path, program: Program, tensors: Tensors) -> list[ByteRow]:
    """One row per weight as the finished file says, one for everything in front of them, one for padding."""
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    rows = [
        ByteRow(source, "weight", _ENCODINGS[stored[name].tensor_type], FILE, int(stored[name].n_bytes))
        for name, (source, _) in tensors.items()
    ]
    written = {source for source, _ in tensors.values()}
    rows += [
        ByteRow(name, "weight", "follows from the rotary base", FILE, 0)
        for name in program.weights
        if name not in written
    ]
    header = min(int(t.data_offset) for t in stored.values())
    rows.append(ByteRow("metadata and vocabulary", "graph", "", FILE, header))
    rows.append(ByteRow("alignment to 32 bytes", "padding", "", FILE, path.stat().st_size - sum(r.bytes for r in rows)))
    return rows


def _file_type(program: Program) -> gguf.LlamaFileType:
    """What most of the weights' bytes are: a label that tools show, and nothing reads."""
    size: dict[gguf.LlamaFileType, int] = {}
    for weight in program.weights.values():
        _, kind, count = _stored_as(weight)
        label = gguf.LlamaFileType.ALL_F32 if kind.name == "F32" else gguf.LlamaFileType[f"MOSTLY_{kind.name}"]
        size[label] = size.get(label, 0) + count
    return max(size, key=lambda label: size[label])
