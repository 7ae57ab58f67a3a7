"""The two example distributions, installed as a user would, and a small model to use them on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

Save = Callable[[transformers.PretrainedConfig], Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both plugins in a folder of their own: modules and metadata, from built wheels."""
    target = tmp_path_factory.mktemp("installed")
    sources = [tmp_path_factory.mktemp("source") / name for name in ("a_pass_plugin", "a_backend_plugin")]
    for source in sources:  # building leaves its own files beside the source
        shutil.copytree(EXAMPLES / source.name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), *map(str, sources)], check=True)
    return target


@pytest.fixture
def installed(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder is on the path, of this process and of those that it starts."""
    monkeypatch.syspath_prepend(built)
    monkeypatch.setenv("PYTHONPATH", str(built))
    return built


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a model of this configuration with random weights and a byte-level tokenizer of 300 tokens."""

    def write(config: transformers.PretrainedConfig) -> Path:
        folder = tmp_path / config.model_type
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases: not all ones and zeros, so that a mix-up shows
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder

    return write


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges and a special token."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    backend.train_from_iterator(["the wire is drawn through the plate, hole after hole"] * 9, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>", chat_template=CHAT
    )


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 304,
    "max_position_embeddings": 128,
}
