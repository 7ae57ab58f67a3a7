"""onnxruntime-genai on the folder as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import captured
from onnxkit import END, EXACT, emitted, stored
from xnnkit import CACHED, passed, relative

from drawplate.backends.onnx.backend import OnnxBackend
from drawplate.program import Program
from drawplate.runtime import ProgramRunner, generate
from drawplate.sources.source import Assets

genai: Any = pytest.importorskip("onnxruntime_genai")
pytest.importorskip("onnx")

PROMPT = [3, 5, 7, 11, 13]
NEW = 24
FOUR_BITS = "quantize-embedding{bits=4,block=1x32},quantize-weights{bits=4,block=1x32,scale=f16}"
CASES = {
    "MatMulNBits": (FOUR_BITS, OnnxBackend()),
    "positions as an input": (FOUR_BITS, OnnxBackend(position_ids=True)),
    "DequantizeLinear": ("quantize-weights{bits=4,block=1x32,symmetric=false}", OnnxBackend(form="qdq")),
    "DequantizeLinear, 2 bits": ("quantize-weights{bits=2,block=1x32}", OnnxBackend(form="qdq")),
}


def generator(folder: Path, prompt: Sequence[int]) -> Any:
    """It, with the prompt fed."""
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + NEW)
    made = genai.Generator(model, settings)
    made.append_tokens(np.array(prompt, dtype=np.int32))
    return made


def continued(folder: Path, prompt: Sequence[int]) -> list[int]:
    """Greedily, without the end token."""
    made = generator(folder, prompt)
    while not made.is_done():
        made.generate_next_token()
    return [int(i) for i in made.get_sequence(0)][len(prompt) :]


def ours(program: Program) -> list[int]:
    """The program's greedy text, without the end token."""
    return [i for i in generate(ProgramRunner(program), PROMPT, NEW, eos=(END,)).ids if i != END]


@pytest.mark.parametrize("case", CASES)
def test_the_same_text(case: str, tmp_path: Path) -> None:
    passes, backend = CASES[case]
    program = stored(passes)
    emitted(program, tmp_path, backend)
    assert continued(tmp_path, PROMPT) == ours(program)


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "gpt2", "mixtral"])
def test_windows_norms_positions_and_experts(name: str, tmp_path: Path) -> None:
    program = passed(captured(name), CACHED)
    emitted(program, tmp_path)
    assert continued(tmp_path, PROMPT) == ours(program)


def test_every_position_of_a_prompt(tmp_path: Path) -> None:
    """Without last-position the model answers everywhere, and the last answer counts."""
    program = passed(captured("gemma3"), "add-kv-cache{context=64}")
    emitted(program, tmp_path)
    assert continued(tmp_path, PROMPT) == ours(program)


def test_standard_operators_are_fused_without_rounding_activations(tmp_path: Path) -> None:
    """The runtime fuses DequantizeLinear and MatMul, and would compute in int8 if the configuration did not tell it."""
    program = stored("quantize-weights{bits=4,block=1x32,scale=f32,symmetric=false}")
    emitted(program, tmp_path, OnnxBackend(form="qdq"))
    expected = ProgramRunner(program).step(torch.tensor(PROMPT))[-1]
    logits = torch.from_numpy(generator(tmp_path, PROMPT).get_logits()).flatten()
    assert relative(logits, expected) < EXACT
    path = tmp_path / "genai_config.json"
    config = json.loads(path.read_text())
    del config["model"]["decoder"]["session_options"]["session.qdq_matmulnbits_accuracy_level"]
    path.write_text(json.dumps(config))
    logits = torch.from_numpy(generator(tmp_path, PROMPT).get_logits()).flatten()
    assert relative(logits, expected) > 1e-3


def test_a_model_without_an_end_is_told(tmp_path: Path) -> None:
    program = passed(captured("gpt2"), CACHED)
    emission = OnnxBackend().emit(program, tmp_path, Assets())
    assert "the model names no end token, and onnxruntime-genai wants one: it stops at token 0" in emission.notes
    assert continued(tmp_path, PROMPT)
