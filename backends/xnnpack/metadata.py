"""What ExecuTorch's LLM runner asks a .pte before it generates from it: methods that return a constant."""

from __future__ import annotations

from typing import Any

from drawplate.canonical.match import value
from drawplate.program import Program
from drawplate.sources.source import Assets

CONTEXT = "get_max_context_len"
LONGEST = "get_max_seq_len"


def metadata(program: Program, assets: Assets) -> dict[str, Any]:
    """Method name -> constant. Empty for a program without a cache: the runner is for those that generate."""
    if not program.state:
        return {}
    context = min(int(spec.shape[1]) for spec in program.state)
    longest = program.inputs[0].shape[-1]
    known: dict[str, Any] = {
        CONTEXT: context,
        LONGEST: next(d.high for d in program.dims if d.name == longest) if isinstance(longest, str) else longest,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": isinstance(longest, str),
        "get_vocab_size": assets.vocabulary or vocabulary(program),
    }
    if assets.bos is not None:
        known["get_bos_id"] = assets.bos
    if assets.eos:
        known["get_eos_ids"] = list(assets.eos)
    return known


def vocabulary(program: Program) -> int:
    """The number of logits."""
    (result,) = (n for n in program.graph.nodes if n.op == "output")
    return int(value(result.all_input_nodes[0]).shape[-1])
