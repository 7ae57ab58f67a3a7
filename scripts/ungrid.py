"""Rewrite a Llama-type Hugging Face folder by channel permutations that keep its function.

Usage: python scripts/ungrid.py SOURCE DESTINATION

The Q4_1 trap. The real decoder our tests and benchmarks use was published as a Q4_1 GGUF: every 32
neighbouring weights already lie on sixteen evenly spaced values. An asymmetric 4-bit quantiser with
groups of 32 therefore finds the very same grid and loses nothing, an 8-bit one neither, and every
comparison of methods on that model flatters the methods that happen to share its grid.

A channel may be renamed freely as long as its writers and its readers agree on the new order. Doing so
for the residual stream, the MLP's inner channels and the value channels inside each head moves
neighbours apart, so the groups no longer coincide with the old grids and the rounding error is the one
a model of honest floats would have. No value changes and, up to the order of float additions, neither
does the function, which is measured here before anything is written.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

SEED = 20261121
TOLERANCE = 1e-4

# What the two axes of each weight run over; norms have one axis. "" is an axis that keeps its order.
AXES = {
    "embed_tokens": ("", "residual"),
    "lm_head": ("", "residual"),
    "norm": ("residual",),
    "input_layernorm": ("residual",),
    "post_attention_layernorm": ("residual",),
    "q_proj": ("", "residual"),
    "k_proj": ("", "residual"),
    "v_proj": ("value", "residual"),
    "o_proj": ("residual", "value by query head"),
    "gate_proj": ("inner", "residual"),
    "up_proj": ("inner", "residual"),
    "down_proj": ("residual", "inner"),
}


@torch.no_grad()
def ungrid(model: PreTrainedModel) -> None:
    """Permute the channels of `model` in place."""
    config = model.config
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    random = torch.Generator().manual_seed(SEED)

    residual = torch.randperm(config.hidden_size, generator=random)
    layers = []
    for _ in range(config.num_hidden_layers):
        inner = torch.randperm(config.intermediate_size, generator=random)
        # [key-value heads, width]: value channels move only inside their own head; the query heads
        # that share a key-value head read its channels in the same new order.
        value = torch.stack([torch.randperm(width, generator=random) for _ in range(key_value_heads)])
        read = value.repeat_interleave(heads // key_value_heads, dim=0)
        orders = {"inner": inner, "value": in_heads(value), "value by query head": in_heads(read)}
        layers.append(orders | {"residual": residual})

    for name, weight in model.named_parameters():  # a tied head comes once
        *path, owner, _ = name.split(".")
        orders = layers[int(path[2])] if "layers" in path else {"residual": residual}
        for dim, axis in enumerate(AXES[owner]):
            if axis:
                weight.copy_(weight.index_select(dim, orders[axis]))


def in_heads(order: Tensor) -> Tensor:
    """An order inside each head as one over all channels. order: [heads, width] -> [heads * width]

    >>> in_heads(torch.tensor([[1, 0], [0, 1]])).tolist()
    [1, 0, 2, 3]
    """
    heads, width = order.shape
    return (order + width * torch.arange(heads)[:, None]).flatten()


def grid_error(weight: Tensor) -> float:
    """Relative error of asymmetric 4-bit rounding in groups of 32: 0 on the old grid, 0.08 on Gaussians."""
    groups = weight.detach().reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / 15
    return float((((groups - low) / step).round() * step + low - groups).norm() / groups.norm())


def main(source: Path, destination: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    probe = torch.randint(model.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(SEED))
    sample = model.model.layers[-1].mlp.down_proj.weight
    with torch.no_grad():
        before, grid_before = model(probe).logits.double(), grid_error(sample)
        ungrid(model)
        after, grid_after = model(probe).logits.double(), grid_error(sample)
    moved = float((after - before).norm() / before.norm())
    if moved > TOLERANCE:
        raise SystemExit(f"{source}: the permuted model moved by {moved:.1e}; nothing was written")
    model.save_pretrained(destination)
    for file in source.iterdir():  # the tokenizer and its chat template do not know about channels
        if not (destination / file.name).exists():
            shutil.copy2(file, destination)
    print(f"function kept to {moved:.1e}; 4-bit g32 error {grid_before:.4f} -> {grid_after:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/ungrid.py SOURCE DESTINATION")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
