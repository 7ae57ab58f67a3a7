"""Tiny models with random weights, one per architecture, for every test that wants many kinds of model.

`eager("gemma2")` is a float32 transformers model, `captured("gemma2")` its canonical program; made once per run.
The sizes are all different, so that a mixed-up axis shows. DECODERS says what canonical form must find in each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.program import Dim, Program

LAYERS = 2
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 5


@dataclass(frozen=True)
class Architecture:
    """A transformers configuration and what must be found in it.

    norms, rotaries, linears, attentions: how many in a model of LAYERS layers. kind: rms_norm or layer_norm.
    windows: how many attentions see the last WINDOW positions only. residue: operations that are expected to stay.
    """

    config: str
    norms: int
    linears: int
    kind: str = "rms_norm"
    rotaries: int = 2 * LAYERS
    attentions: int = LAYERS
    windows: int = 0
    interleaved: bool = False
    residue: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


DECODERS = {
    "llama": Architecture("LlamaConfig", norms=5, linears=15, options={"tie_word_embeddings": True}),
    "mistral": Architecture(
        "MistralConfig", norms=5, linears=15, windows=2, options={"sliding_window": WINDOW, "head_dim": 8}
    ),
    "mixtral": Architecture(
        "MixtralConfig", norms=5, linears=11, options={"num_local_experts": 4, "head_dim": 8}, residue=("aten.bmm",)
    ),
    "qwen2": Architecture("Qwen2Config", norms=5, linears=15),
    "qwen3": Architecture("Qwen3Config", norms=9, linears=15, options={"head_dim": 16}),
    "gemma": Architecture("GemmaConfig", norms=5, linears=15, options={"head_dim": 8}),
    "gemma2": Architecture(
        "Gemma2Config",
        norms=9,
        linears=15,
        windows=1,
        options={"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": None, "query_pre_attn_scalar": 11},
    ),
    "gemma2-softcap": Architecture(
        "Gemma2Config",
        norms=9,
        linears=15,
        attentions=0,
        options={"head_dim": 8, "sliding_window": WINDOW},
        residue=("aten.softmax.int",),
    ),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        norms=13,
        linears=15,
        windows=1,
        options={"head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi": Architecture("PhiConfig", norms=3, linears=13, kind="layer_norm", options={"num_key_value_heads": 6}),
    "phi3": Architecture("Phi3Config", norms=5, linears=9, options={"sliding_window": WINDOW}, windows=2),
    "gpt-neox": Architecture("GPTNeoXConfig", norms=5, linears=9, kind="layer_norm", options={"rotary_pct": 0.5}),
    "gpt2": Architecture("GPT2Config", norms=5, linears=9, kind="layer_norm", rotaries=0),
    "olmo2": Architecture("Olmo2Config", norms=9, linears=15),
    "stablelm": Architecture("StableLmConfig", norms=5, linears=15, kind="layer_norm"),
    "smollm3": Architecture("SmolLM3Config", norms=5, linears=15, rotaries=2, options={"no_rope_layers": [1, 0]}),
    "granite": Architecture(
        "GraniteConfig",
        norms=5,
        linears=15,
        options={
            "embedding_multiplier": 1.5,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
        },
    ),
    "cohere": Architecture("CohereConfig", norms=3, linears=15, kind="layer_norm", interleaved=True),
}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 8}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {"pad_token_id": None}),
    "qwen2-moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3-moe": ("Qwen3MoeConfig", EXPERTS),
}
"""Configurations of which nothing is promised; the encoder has no padding id, so that every row of its table counts."""


def build(name: str, seed: int = 0) -> Any:
    """The eager model in float32, weights drawn so that every vector and bias matters."""
    import transformers

    kind, options = OTHERS[name] if name in OTHERS else (DECODERS[name].config, DECODERS[name].options)
    config = getattr(transformers, kind)(**{**SIZES, **options})
    auto = transformers.AutoModel if name == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) / 5
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model


@cache
def eager(name: str) -> Any:
    """build(name), once per run: leave it as it is."""
    return build(name)


@cache
def captured(name: str) -> Program:
    """The canonical program of eager(name)."""
    return canonicalise(capture(eager(name), name=name).program)


@cache
def captured_convnet() -> Program:
    """The canonical program of convnet()."""
    network, inputs, dynamic = convnet()
    return canonicalise(capture(network, example_inputs=inputs, dynamic=dynamic).program)


def decoder_inputs(batch: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(input_ids, position_ids) i64[batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, SIZES["vocab_size"], (batch, length), generator=generator)
    return ids, torch.arange(length).repeat(batch, 1)


class SmallConvNet(nn.Module):
    """images f32[b, 3, 16, 16] -> class scores [b, 10]: convolutions, batch norm, pooling, a residual, two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 10)
        self.drop = nn.Dropout(0.1)

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        x = torch.relu(self.norm(self.stem(images)))
        x = x + torch.relu(self.deep(x))
        x = nn.functional.max_pool2d(x, 2).mean(dim=(2, 3))
        return self.head(self.drop(nn.functional.gelu(self.hidden(x))))


def convnet(seed: int = 0) -> tuple[SmallConvNet, dict[str, Tensor], dict[str, dict[int, Dim]]]:
    """The network, example inputs, and its dynamic axis."""
    torch.manual_seed(seed)
    return SmallConvNet().eval(), {"images": torch.randn(3, 3, 16, 16)}, {"images": {0: Dim("b", 1, 64)}}
