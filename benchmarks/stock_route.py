"""The stock ExecuTorch lowering of a drawplate Program: the route to beat, and the .pte to compare speed with.

The program is written out in the operators that ExecuTorch's own partitioners know (torchao's affine quantise and
dequantise, llama.update_cache and llama.custom_sdpa) and goes through `to_edge_transform_and_lower` with the two
XNNPACK partitioners, as ExecuTorch's LLM exporter does. Same weights, integers and cache; only the lowering differs.

    python benchmarks/stock_route.py MODEL OUT.pte --recipe meta-8da4w
"""

from __future__ import annotations

import json
import operator
import resource
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, fx

aten = torch.ops.aten


def expand(program: Any) -> fx.GraphModule:
    """The cached, quantised program -> a GraphModule in the stock operators, with the same inputs."""
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    import torchao.quantization.quant_primitives  # noqa: F401  (all three for the operators they register)

    from drawplate.encoding import QTensor

    root: dict[str, Any] = {}
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    start: dict[fx.Node, fx.Node] = {}

    def buffer(name: str, value: Tensor) -> fx.Node:
        name = name.replace(".", "_")
        root[name] = value
        return graph.get_attr(name)

    def first_position(position: fx.Node) -> fx.Node:
        if position not in start:
            first = graph.call_function(aten.select.int, (position, 0, 0))
            start[position] = graph.call_function(aten.item.default, (first,))
        return start[position]

    def dequantised(name: str, weight: QTensor) -> fx.Node:
        low, high = weight.encoding.range
        block = list(weight.encoding.blocks(weight.shape))
        zero = torch.zeros_like(weight.grid.scale, dtype=torch.int8)
        args = (
            buffer(f"{name}.codes", weight.integers()),
            block,
            buffer(f"{name}.scale", weight.grid.scale),
            buffer(f"{name}.zero", zero),
        )
        return graph.call_function(torch.ops.torchao.dequantize_affine.default, (*args, torch.int8, low, high))

    for node in program.graph.nodes:
        if node.op == "placeholder":
            made[node] = graph.placeholder(node.name)
        elif node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], lambda n: made[n]))
        elif node.op == "get_attr":
            weight = program.weights.get(node.target)
            if isinstance(weight, QTensor):
                made[node] = dequantised(node.target, weight)
            else:
                spec = next((s for s in program.state if s.name == node.target), None)
                value = weight if spec is None else torch.zeros([int(n) for n in spec.shape], dtype=spec.dtype)
                made[node] = buffer(node.target, value)
        elif node.target is aten.embedding.default and node.args[0].target in program.encodings:
            table = program.weights[node.args[0].target]
            args = (buffer("table.codes", table.integers()), buffer("table.scale", table.grid.scale))
            byte = torch.ops.quantized_decomposed.embedding_byte.default
            made[node] = graph.call_function(byte, (*args, None, *table.encoding.range, made[node.args[1]]))
        elif node.target is torch.ops.drawplate.encode.default:
            made[node] = _dynamic_int8(graph, made[node.args[0]], node.args[0].meta["val"])
        elif node.target is torch.ops.drawplate.cached_attention.default:
            q, k, v, keys, values, position = (made[a] for a in node.args[:6])
            begin = first_position(position)
            q, k, v = (graph.call_function(aten.transpose.int, (t, 1, 2)) for t in (q, k, v))
            for new, cache in ((k, keys), (v, values)):
                graph.call_function(torch.ops.llama.update_cache.default, (new, cache, begin))
            out = graph.call_function(
                torch.ops.llama.custom_sdpa.default, (q, keys, values, begin, None, 0.0, True, node.args[6])
            )
            made[node] = graph.call_function(aten.transpose.int, (out, 1, 2))
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: made[n])
            made[node] = graph.call_function(node.target, args, kwargs)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or _writes(n))
    return fx.GraphModule(root, graph)


def _dynamic_int8(graph: fx.Graph, x: fx.Node, value: Tensor) -> fx.Node:
    """quantise and dequantise x per token, as torchao's 8da4w writes it."""
    block = [1] * (value.dim() - 1) + [int(value.shape[-1])]
    torchao = torch.ops.torchao
    eps = torch.finfo(torch.float32).eps
    choose = graph.call_function(
        torchao.choose_qparams_affine.default,
        (x, "ASYMMETRIC", block, torch.int8, -128, 127, eps, torch.float32, torch.int8),
    )
    scale, zero = (graph.call_function(operator.getitem, (choose, i)) for i in (0, 1))
    q = graph.call_function(torchao.quantize_affine.default, (x, block, scale, zero, torch.int8, -128, 127))
    return graph.call_function(torchao.dequantize_affine.default, (q, block, scale, zero, torch.int8, -128, 127))


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def lower(module: fx.GraphModule, context: int) -> bytes:
    """ExecuTorch's own chain, XNNPACK partitioners in the order of its LLM exporter."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    length = torch.export.Dim("s", min=1, max=context - 1)
    inputs = (torch.zeros(1, 7, dtype=torch.int64), torch.arange(7))
    with torch.no_grad():
        exported = torch.export.export(module, inputs, dynamic_shapes=({1: length}, {0: length}), strict=False)
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods={"get_max_seq_len": context - 1, "get_max_context_len": context, "use_kv_cache": True},
    )
    return bytes(
        edge.to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                do_quant_fusion_and_const_prop=False,
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            )
        ).buffer
    )


def program_of(model: Path, recipe: str) -> Any:
    """The model after the recipe's passes: what both routes lower."""
    from drawplate.canonical import canonicalise
    from drawplate.capture import capture
    from drawplate.passbase import Env
    from drawplate.plugins.manager import Session
    from drawplate.recipe import Recipe
    from drawplate.runner import run_passes

    loaded = Recipe.load(recipe, Session())
    return run_passes(canonicalise(capture(model).program), loaded.passes, Env(seed=loaded.seed)).program


def main(
    model: Path, out: Path, recipe: Annotated[str, typer.Option(help="Preset, file or text.")] = "meta-8da4w"
) -> None:
    """Lower MODEL the stock way into OUT and print what that took, as JSON."""
    program = program_of(model, recipe)
    context = max(int(s.shape[1]) for s in program.state)
    wall, cpu = time.perf_counter(), time.process_time()
    data = lower(expand(program), context)
    took = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**took, "peak_rss_bytes": peak, "file_bytes": len(data)}))


if __name__ == "__main__":
    typer.run(main)
