"""The built-in passes, backends and recipes: registered by name, through the same door as everyone else's."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from drawplate.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from drawplate.backendbase import Backend
    from drawplate.checkpoints.reader import Reader
    from drawplate.passbase import Pass


@hookimpl
def drawplate_passes() -> list[type[Pass]]:
    """One line per file of passes/; a test holds the two against each other."""
    from drawplate.passes.add_kv_cache import AddKvCache
    from drawplate.passes.add_lora import AddLora
    from drawplate.passes.allocate_bits import AllocateBits
    from drawplate.passes.cast import Cast
    from drawplate.passes.fold_lora import FoldLora
    from drawplate.passes.fold_norms import FoldNorms
    from drawplate.passes.last_position import LastPosition
    from drawplate.passes.merge_linears import MergeLinears
    from drawplate.passes.pack_weights import PackWeights
    from drawplate.passes.quantize_activations import QuantizeActivations
    from drawplate.passes.quantize_cache import QuantizeCache
    from drawplate.passes.quantize_embedding import QuantizeEmbedding
    from drawplate.passes.quantize_weights import QuantizeWeights
    from drawplate.passes.rotate import Rotate
    from drawplate.passes.scale_channels import ScaleChannels
    from drawplate.passes.split_bands import SplitBands
    from drawplate.passes.train_blocks import TrainBlocks
    from drawplate.passes.train_lora import TrainLora
    from drawplate.passes.train_scales import TrainScales
    from drawplate.passes.train_weights import TrainWeights
    from drawplate.passes.untie_head import UntieHead

    return [
        AddKvCache,
        AddLora,
        AllocateBits,
        Cast,
        FoldLora,
        FoldNorms,
        LastPosition,
        MergeLinears,
        PackWeights,
        QuantizeActivations,
        QuantizeCache,
        QuantizeEmbedding,
        QuantizeWeights,
        Rotate,
        ScaleChannels,
        SplitBands,
        TrainBlocks,
        TrainLora,
        TrainScales,
        TrainWeights,
        UntieHead,
    ]


@hookimpl
def drawplate_backends() -> list[type[Backend]]:
    """One line per folder of backends/."""
    from drawplate.backends.gptq.backend import GptqBackend
    from drawplate.backends.onnx.backend import OnnxBackend
    from drawplate.backends.xnnpack.backend import XnnpackBackend

    return [GptqBackend, OnnxBackend, XnnpackBackend]


@hookimpl
def drawplate_readers() -> list[type[Reader]]:
    """One line per format."""
    from drawplate.backends.gptq.reader import GptqReader

    return [GptqReader]


@hookimpl
def drawplate_recipes() -> dict[str, str]:
    """The presets: every recipes/*.toml inside the package, named by its file."""
    folder = files("drawplate").joinpath("recipes")
    presets = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in presets}
