"""A model with its first layers only: for figures that should grow with depth in a straight line.

python benchmarks/truncate.py MODEL OUT LAYERS
"""

from __future__ import annotations

import shutil
from pathlib import Path

import typer


def truncate(model: Path, out: Path, layers: int) -> Path:
    """Write the Hugging Face folder `out`: `model` with its first `layers` decoder layers. Kept if it is there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if (out / "config.json").is_file():
        return out
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = layers
    AutoModelForCausalLM.from_pretrained(model, config=config).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model / name).is_file():
            shutil.copy(model / name, out / name)
    return out


if __name__ == "__main__":
    typer.run(truncate)
