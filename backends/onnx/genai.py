"""genai_config.json: what onnxruntime-genai must know of a model that it generates with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from drawplate.backends.onnx.lower import IDS, LOGITS, MASK, POSITIONS, attentions, results
from drawplate.backends.onnx.ops_attention import PAST, PRESENT
from drawplate.backends.onnx.runner import EXACT, MODEL
from drawplate.canonical.match import aten, value
from drawplate.program import Program
from drawplate.runtime import ProgramRunner
from drawplate.sources.source import Assets

if TYPE_CHECKING:
    from drawplate.backends.onnx.backend import OnnxBackend

KIND = "decoder"
"""Its word for a model that is described by this file alone."""
NO_END = 0
"""What it is told to stop at where the model names no end: it asks for a token."""


def config(program: Program, assets: Assets, options: OnnxBackend) -> str:
    """The file's text, of a program with a cache. It generates greedily, as long as the cache has room."""
    known = attentions(program)
    q, k = (value(x) for x in known[0].args[:2])  # type: ignore[arg-type]
    context = ProgramRunner.limit(program)
    first = assets.eos[0] if assets.eos else NO_END
    end: Any = list(assets.eos) if len(assets.eos) > 1 else first
    positions = {"position_ids": POSITIONS} if options.position_ids else {}
    decoder = {
        "session_options": {"log_id": "drawplate", "provider_options": [], **(EXACT if options.form == "qdq" else {})},
        "filename": MODEL,
        "head_size": int(q.shape[3]),
        "hidden_size": _hidden(program),
        "num_attention_heads": int(q.shape[1]),
        "num_hidden_layers": len(known),
        "num_key_value_heads": int(k.shape[1]),
        "inputs": {
            "input_ids": IDS,
            "attention_mask": MASK,
            **positions,
            "past_key_names": PAST.format("%d", "key"),
            "past_value_names": PAST.format("%d", "value"),
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": PRESENT.format("%d", "key"),
            "present_value_names": PRESENT.format("%d", "value"),
        },
    }
    model = {
        "type": KIND,
        "bos_token_id": first if assets.bos is None else assets.bos,
        "eos_token_id": end,
        "pad_token_id": first,
        "context_length": context,
        "vocab_size": int(value(results(program)[0]).shape[-1]),
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": context, "past_present_share_buffer": True}
    return json.dumps({"model": model, "search": search}, indent=1) + "\n"


def _hidden(program: Program) -> int:
    """Width of what the table of tokens gives."""
    table = next(program.nodes(aten.embedding.default))
    return int(value(table).shape[-1])
