"""A small model, and the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from drawplate import cli

Run = Callable[..., subprocess.CompletedProcess[str]]
WORDS = "the wire is drawn through the plate, hole after hole, and each pull is called a pass\n"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of two layers with a byte-level tokenizer of 300 tokens and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    backend.train_from_iterator([WORDS] * 9, trainer)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=template
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of a few thousand tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(WORDS * 200)
    return path


@pytest.fixture
def drawplate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `drawplate ARGUMENTS` as the entry point does, in an empty folder with a cache of its own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DRAWPLATE_PLUGINS", "")

    def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = ["drawplate", *map(str, arguments)]
        monkeypatch.setenv("DRAWPLATE_DEBUG", "")  # --debug sets it
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code: object = 0
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                cli.main()
            except SystemExit as exit_:
                code = exit_.code
        return subprocess.CompletedProcess(command, int(str(code or 0)), out.getvalue(), err.getvalue())

    return run
