"""The architectures that llama.cpp rebuilds from their names, and what it wants to know of each.

A GGUF file holds weights and a name; the graph is llama.cpp's own. So this backend has to know names, which drawplate
itself never does, and has to make sure that the program is still the graph that the name promises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, TensorNameMap, get_tensor_name_map
from torch import Tensor, fx

from drawplate.errors import BackendError, Refusal
from drawplate.program import Program

aten = torch.ops.aten
ours = torch.ops.drawplate

# What the compute ops of a layer are, by count. Everything that only moves data is left out.
_LLAMA_LAYER = {
    "linear": 7,
    "rms_norm": 2,
    "rotary": 2,
    "scaled_dot_product_attention": 1,
    "silu": 1,
    "mul": 1,
    "add": 2,
}
_MOVES = frozenset({
    "_to_copy", "alias", "chunk", "clone", "contiguous", "detach", "expand", "getitem", "last_position", "permute",
    "reshape", "slice", "split", "split_with_sizes", "squeeze", "sym_size", "to", "transpose", "unsqueeze", "view",
})  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """gguf: the name in the file. permute: q and k rows stand in pairs, not in halves (llama.cpp's rope type NORM).
    layer: compute ops of one layer, by count."""

    gguf: MODEL_ARCH
    permute: bool
    layer: Mapping[str, int] = field(default_factory=lambda: _LLAMA_LAYER)


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, permute=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, permute=False),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, permute=False, layer={**_LLAMA_LAYER, "rms_norm": 4}),
}


@dataclass(frozen=True)
class Model:
    """What the file says of the model: from its config.json, as Hugging Face spells it."""

    architecture: Architecture
    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocabulary: int
    epsilon: float
    rope_base: float

    @classmethod
    def read(cls, config: Mapping[str, Any], name: str) -> Model:
        """Raises BackendError where llama.cpp would compute something else."""
        family = config.get("model_type")
        if family not in ARCHITECTURES:
            raise BackendError(
                f"this backend does not write models of type {family!r}",
                where="config.json: model_type",
                why="a GGUF file names an architecture, and llama.cpp builds the graph from that name",
                fix=f"use another backend; gguf writes {', '.join(sorted(ARCHITECTURES))}",
            )
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise BackendError(
                f"this backend does not write rotary embeddings of type {kind!r}",
                where="config.json: rope_parameters",
                why="llama.cpp scales them by rules of its own",
                fix="use another backend; gguf writes the types default and llama3",
            )
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            architecture=ARCHITECTURES[family],
            name=name,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            context=int(config["max_position_embeddings"]),
            vocabulary=int(config["vocab_size"]),
            epsilon=float(config["rms_norm_eps"]),
            rope_base=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        )

    def names(self) -> TensorNameMap:
        """Checkpoint names -> GGUF names."""
        return get_tensor_name_map(self.architecture.gguf, self.layers)

    def describe(self, writer: GGUFWriter) -> None:
        """The architecture's keys, as convert_hf_to_gguf.py sets them."""
        writer.add_name(self.name)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_rope_freq_base(self.rope_base)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_vocab_size(self.vocabulary)

    def row_order(self, name: str, rows: int) -> Tensor | None:
        """The order in which llama.cpp wants the rows of the weight `name` (a GGUF name); None: as they are."""
        heads = self.heads if ".attn_q." in name else self.kv_heads if ".attn_k." in name else 0
        return paired_rows(rows, heads) if heads and self.architecture.permute else None

    def differences(self, program: Program) -> list[Refusal]:
        """Where the program computes something else than the architecture's layers say."""
        expected = Counter({op: n * self.layers for op, n in self.architecture.layer.items()})
        expected.update({"embedding": 1, "rms_norm": 1, "linear": 1})
        found = Counter(_op(n) for n in _from_tokens(program) if _op(n) not in _MOVES)
        return [
            Refusal(
                program.name,
                op,
                f"{found[op]} of them where {self.layers} layers of {self.architecture.gguf.name} have {expected[op]}",
                fix="leave out the passes that change the graph: llama.cpp would not see them",
            )
            for op in sorted(set(expected) | set(found))
            if expected[op] != found[op]
        ]


def paired_rows(rows: int, heads: int) -> Tensor:
    """Row order that turns halves into pairs within each head: 0, d/2, 1, d/2 + 1, ..

    The `permute` of llama.cpp's convert_hf_to_gguf.py, as an index: it lets the rotary embedding turn neighbours.

    >>> paired_rows(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return torch.arange(rows).reshape(heads, 2, rows // heads // 2).transpose(1, 2).reshape(-1)


def rope_factors(frequencies: Tensor, base: float) -> Tensor | None:
    """By how much each rotary frequency was slowed down against base^(-2i/d); None if none was. f64 [d/2]."""
    count = frequencies.numel()
    plain = base ** (-torch.arange(count, dtype=torch.float64) / count)
    factors = plain / frequencies.double()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors


def _op(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))


def _from_tokens(program: Program) -> list[fx.Node]:
    """The call_function nodes that the first input reaches: all but the rotary angles."""
    reached = {next(n for n in program.graph.nodes if n.op == "placeholder")}
    for node in program.graph.nodes:
        if node.op == "call_function" and reached & set(node.all_input_nodes):
            reached.add(node)
    return [n for n in program.graph.nodes if n.op == "call_function" and n in reached]
