"""The stock ExecuTorch LLM runner generates from our file, with the model's own tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from xnnkit import passed

import drawplate
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.runtime import generate
from drawplate.sources.source import Assets
from drawplate.tokens import Tokenizer

from fetch_data import ROOT

MODEL = ROOT / "smollm2-135m-instruct" / "hf"
REAL = ROOT / "smollm2-135m-instruct" / "ungridded"
PROMPT = "Wire is pulled through"
RUN = """
import json, sys
import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

runner, parts = TextLLMRunner(sys.argv[1], sys.argv[2]), []
runner.generate(sys.argv[3], GenerationConfig(echo=False, temperature=0.0, max_new_tokens=12), parts.append)
print("\\n" + json.dumps("".join(parts)))
"""


@pytest.mark.parametrize("rounded", ["", "quantize-cache,"], ids=["float cache", "integer cache"])
@pytest.mark.skipif(not MODEL.is_dir(), reason="scripts/fetch_data.py was not run")
def test_it_generates(rounded: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    captured = canonicalise(capture(LlamaForCausalLM(config).eval(), name="small").program)
    program = passed(captured, f"{rounded}add-kv-cache{{context=64}},last-position")
    assets = Assets(MODEL, (MODEL / "tokenizer.json",), context=64, bos=1, eos=(2,), vocabulary=49152)
    emission = XnnpackBackend().emit(program, tmp_path, assets)
    assert [f.name for f in emission.files] == ["model.pte", "tokenizer.json"]

    both_generate(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="scripts/fetch_data.py was not run")
def test_it_generates_from_the_real_model(tmp_path: Path) -> None:
    artifact = drawplate.compile(REAL, "meta-8da4w", out=tmp_path / "real")
    assert len(both_generate(artifact.folder).split()) > 3


def both_generate(folder: Path) -> str:
    """The stock runner's text of a folder's model.pte; ours is the same as far as the shorter goes."""
    arguments = [str(folder / "model.pte"), str(folder / "tokenizer.json"), PROMPT]
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs: str = json.loads(done.stdout.splitlines()[-1])

    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(PROMPT)
    ours = tokenizer.decode(generate(XnnpackBackend().open(folder), ids, 12).ids)
    assert theirs
    assert ours.startswith(theirs) or theirs.startswith(ours)
    return theirs
