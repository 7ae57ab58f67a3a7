"""The stock ExecuTorch lowering of a drawplate Program: the route to beat, and the .pte to compare speed with.

The program is written out in the operators that ExecuTorch's own partitioners know (torchao's affine quantise and
dequantise, llama.update_cache and llama.custom_sdpa) and goes through `to_edge_transform_and_lower` with the two
XNNPACK partitioners, as ExecuTorch's LLM exporter does. Same weights, integers and cache; only the lowering differs.

    python benchmarks/stock_route.py MODEL OUT.pte --recipe RECIPE --structure model

`--structure model` lowers the model's own graph, as ExecuTorch's route for Hugging Face models does (the same integers,
a cache, attention by custom_sdpa; norms, rotary embeddings and the head of every position as the model has them);
`canonical` lowers what drawplate's passes made, which is kinder to the stock lowering than its users have it.
"""

from __future__ import annotations

import json
import operator
import resource
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, fx

aten = torch.ops.aten


class Stock:
    """Writes a quantised program out in the stock operators, with the inputs that the stock runner gives."""

    def __init__(self, program: Any, context: int) -> None:
        import executorch.extension.llm.custom_ops.custom_ops
        import executorch.kernels.quantized  # noqa: F401
        import torchao.quantization.quant_primitives  # noqa: F401  (all three for the operators they register)

        self.program, self.context = program, context
        self.root: dict[str, Any] = {}
        self.graph = fx.Graph()
        self.made: dict[fx.Node, Any] = {}
        self.start: fx.Node | None = None

    def module(self) -> fx.GraphModule:
        """The whole of it."""
        for node in self.program.graph.nodes:
            self.made[node] = self._write(node)
        self.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or _writes(n))
        return fx.GraphModule(self.root, self.graph)

    def _write(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return self._weight(node.target)
        if node.op == "output":
            return self.graph.output(fx.node.map_arg(node.args[0], lambda n: self.made[n]))
        special = {
            aten.embedding.default: self._embedding,
            aten.linear.default: self._linear,
            aten.scaled_dot_product_attention.default: self._attention,
            torch.ops.drawplate.encode.default: lambda n: self._dynamic_int8(n.args[0]),
            torch.ops.drawplate.cached_attention.default: self._cached_attention,
        }
        return special.get(node.target, self._same)(node)

    def _same(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.made[n])
        return self.graph.call_function(node.target, args, kwargs)

    def _input(self, node: fx.Node) -> fx.Node:
        made = self.graph.placeholder(node.name)
        if node.name == self.program.inputs[0].name:
            return made
        first = self.graph.call_function(aten.select.int, (made, 0, 0))
        self.start = self.graph.call_function(aten.item.default, (first,))
        is_row = node.meta["val"].dim() == 2  # the model's own positions have a batch; the runner's have not
        return self.graph.call_function(aten.unsqueeze.default, (made, 0)) if is_row else made

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        name = name.replace(".", "_")
        self.root[name] = value
        return self.graph.get_attr(name)

    def _weight(self, name: str) -> fx.Node:
        from drawplate.encoding import QTensor

        weight = self.program.weights.get(name)
        if not isinstance(weight, QTensor):
            spec = next((s for s in self.program.state if s.name == name), None)
            return self._buffer(name, weight if spec is None else torch.zeros(spec.shape, dtype=spec.dtype))
        scale = weight.grid.scale
        parts = {"codes": weight.integers(), "scale": scale, "zero": torch.zeros_like(scale, dtype=torch.int8)}
        codes, scales, zeros = (self._buffer(f"{name}.{part}", value) for part, value in parts.items())
        args = (codes, list(weight.encoding.blocks(weight.shape)), scales, zeros, torch.int8, *weight.encoding.range)
        return self.graph.call_function(torch.ops.torchao.dequantize_affine.default, args)

    def _embedding(self, node: fx.Node) -> fx.Node:
        name = node.args[0].target
        if name not in self.program.encodings:
            return self._same(node)
        table = self.program.weights[name]
        parts = (self._buffer("table.codes", table.integers()), self._buffer("table.scale", table.grid.scale))
        byte = torch.ops.quantized_decomposed.embedding_byte.default
        return self.graph.call_function(byte, (*parts, None, *table.encoding.range, self.made[node.args[1]]))

    def _linear(self, node: fx.Node) -> fx.Node:
        """The model's own linears get their activations' encoding here; a canonical program has it in the graph."""
        x, weight, *bias = node.args
        if x.target is torch.ops.drawplate.encode.default or weight.target not in self.program.encodings:
            return self._same(node)
        args = (self._dynamic_int8(x), *(self.made[a] for a in (weight, *bias)))
        return self.graph.call_function(aten.linear.default, args)

    def _dynamic_int8(self, x: fx.Node) -> fx.Node:
        """quantise and dequantise x per token, as torchao's 8da4w writes it."""
        block = [1] * (x.meta["val"].dim() - 1) + [int(x.meta["val"].shape[-1])]
        torchao, call, kind = torch.ops.torchao, self.graph.call_function, torch.int8
        eps = torch.finfo(torch.float32).eps
        ranges = (self.made[x], "ASYMMETRIC", block, kind, -128, 127, eps, torch.float32, kind)
        choose = call(torchao.choose_qparams_affine.default, ranges)
        scale, zero = (call(operator.getitem, (choose, i)) for i in (0, 1))
        q = call(torchao.quantize_affine.default, (self.made[x], block, scale, zero, kind, -128, 127))
        return call(torchao.dequantize_affine.default, (q, block, scale, zero, kind, -128, 127))

    def _attention(self, node: fx.Node) -> fx.Node:
        """The model's own attention, with a cache: repeated heads taken away, which custom_sdpa repeats itself."""
        q, k, v = (_unrepeated(a) for a in node.args[:3])
        caches = []
        for kind, new in (("keys", k), ("values", v)):
            heads, width = int(new.meta["val"].shape[1]), int(new.meta["val"].shape[3])
            caches.append(self._buffer(f"{node.name}.{kind}", torch.zeros(1, self.context, heads, width)))
        return self._sdpa([self.made[a] for a in (q, k, v)], caches, node.kwargs["scale"])

    def _cached_attention(self, node: fx.Node) -> fx.Node:
        q, k, v, keys, values = (self.made[a] for a in node.args[:5])
        return self._sdpa([q, k, v], [keys, values], node.args[6])

    def _sdpa(self, qkv: list[fx.Node], caches: list[fx.Node], scale: float) -> fx.Node:
        call = self.graph.call_function
        q, *news = (call(aten.transpose.int, (t, 1, 2)) for t in qkv)
        for new, cache in zip(news, caches, strict=True):
            call(torch.ops.llama.update_cache.default, (new, cache, self.start))
        out = call(torch.ops.llama.custom_sdpa.default, (q, *caches, self.start, None, 0.0, True, scale))
        return call(aten.transpose.int, (out, 1, 2))


def _unrepeated(node: fx.Node) -> fx.Node:
    """What `repeat_kv` repeated: x in reshape(expand(unsqueeze(x))), or the node itself."""
    chain = [node]
    for target in (aten.reshape.default, aten.expand.default, aten.unsqueeze.default):
        if chain[-1].target is not target:
            return node
        chain.append(chain[-1].args[0])
    return chain[-1]


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


def program_of(model: Path, recipe: str, structure: Structure) -> tuple[Any, int]:
    """The program to lower, and the length of its cache: the canonical one after the recipe's passes, or the model's
    own graph with the same integers."""
    from drawplate.canonical import canonicalise
    from drawplate.capture import capture
    from drawplate.passbase import Env
    from drawplate.plugins.manager import Session
    from drawplate.recipe import Recipe
    from drawplate.runner import run_passes

    loaded, captured = Recipe.load(recipe, Session()), capture(model).program
    done = run_passes(canonicalise(captured), loaded.passes, Env(seed=loaded.seed)).program
    context = max(int(s.shape[1]) for s in done.state)
    if structure == Structure.CANONICAL:
        return done, context
    editor = captured.edit()
    for node in editor.nodes(aten._assert_tensor_metadata.default):  # noqa: SLF001
        editor.graph.erase_node(node)
    editor.weights.update({name: done.weights[name] for name in captured.weights if name in done.encodings})
    return editor.finish(), context


class Structure(StrEnum):
    """Whose graph is lowered."""

    CANONICAL = "canonical"
    MODEL = "model"


def main(
    model: Path,
    out: Path,
    recipe: Annotated[str, typer.Option(help="Preset, file or text; no merged linears.")] = "meta-8da4w",
    structure: Annotated[Structure, typer.Option(help="drawplate's canonical graph, or the model's own.")] = (
        Structure.CANONICAL
    ),
) -> None:
    """Lower MODEL the stock way into OUT and print what that took, as JSON."""
    program, context = program_of(model, recipe, structure)
    wall, cpu = time.perf_counter(), time.process_time()
    data = lower(Stock(program, context).module(), context)
    took = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**took, "peak_rss_bytes": peak, "file_bytes": len(data)}))


if __name__ == "__main__":
    typer.run(main)
