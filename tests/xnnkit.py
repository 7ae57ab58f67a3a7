"""Small programs for the xnnpack backend, and the way from a program to numbers out of the real runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from architectures import captured
from torch import Tensor, nn

from drawplate.backendbase import Emission
from drawplate.backends.xnnpack import executorch_adapter
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.program import Dim, Program
from drawplate.recipe import Recipe
from drawplate.runtime import ProgramRunner, Runnable
from drawplate.sources.source import Assets

CONTEXT, VOCABULARY = 64, 97
CACHED = f"add-kv-cache{{context={CONTEXT}}},last-position"


@lru_cache(maxsize=1)
def session() -> Session:
    """All built-in passes by name."""
    return Session()


def passed(program: Program, passes: str) -> Program:
    """The program after the passes of a recipe's text, unmeasured: their own tests measure them."""
    for pass_ in Recipe.parse(passes, session()).passes:
        program = pass_.run(program, Env())
    return program


@cache
def decoder(tied: bool = True, layers: int = 2) -> Program:
    """Two layers of a Llama whose sizes 4-bit groups of 32 divide, canonical; the same weights in every test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape) / 5
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return canonicalise(capture(model, name="decoder").program)


@cache
def preset(name: str, tied: bool = True) -> Program:
    """The small decoder through a preset's passes, with a cache of CONTEXT."""
    recipe = Recipe.load(name, session())
    program = decoder(tied)
    for pass_ in (*recipe.passes, *XnnpackBackend().legalise()):
        if pass_.name == "add-kv-cache":
            pass_ = replace(pass_, context=CONTEXT)  # type: ignore[type-var]
        program = pass_.run(program, Env())
    return program


def cached(architecture: str) -> Program:
    """A tiny model of this architecture in float32, with a cache, ready to emit."""
    return XnnpackBackend().legalise()[0].run(passed(captured(architecture), CACHED), Env())


def well_predicted(program: Program, emission: Emission, backend: XnnpackBackend | None = None) -> None:
    """Weight by weight to the byte; graphs and headers about, which are most of so small a file."""
    predicted = {r.name: r.bytes for r in (backend or XnnpackBackend()).predict(program, Assets())}
    stored = {r.name: r.bytes for r in emission.bytes}
    assert predicted.keys() == stored.keys()
    assert {n: predicted[n] for n in program.weights} == {n: stored[n] for n in program.weights}
    rest = [sum(v for n, v in rows.items() if n not in program.weights) for rows in (predicted, stored)]
    assert 0.6 < rest[0] / rest[1] < 1.7, rest


def emitted(program: Program, folder: Path, backend: XnnpackBackend | None = None) -> Emission:
    """model.pte in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return (backend or XnnpackBackend()).emit(program, folder, Assets(bos=1, eos=(2,), vocabulary=VOCABULARY))


def traced(module: nn.Module, *inputs: Tensor, dynamic: dict[str, dict[int, Dim]] | None = None) -> Program:
    """A module as a canonical program; inputs are called as forward calls them."""
    import inspect

    names = inspect.signature(module.forward).parameters
    given = dict(zip(names, inputs, strict=True))
    return canonicalise(capture(module.eval(), example_inputs=given, dynamic=dynamic, name="small").program)


def called(folder: Path, *inputs: Tensor) -> list[Tensor]:
    """Results of the emitted program, copied."""
    return [out.clone() for out in executorch_adapter.load(folder / "model.pte")(*inputs)]


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def steps(program: Program, folder: Path, lengths: Sequence[int], seed: int = 0) -> list[float]:
    """Feed both the same tokens in pieces of these lengths: relative differences of the last logits after each."""
    ours, theirs = ProgramRunner(program), XnnpackBackend().open(folder)
    return [relative(b, a) for a, b in zip(*(fed(r, lengths, seed) for r in (ours, theirs)), strict=True)]


def agree(program: Program, folder: Path, lengths: Sequence[int]) -> None:
    """Nine short texts agree up to float32 rounding, in the median; the long one is close.

    Where rounding carries an encoded activation over a half step, that moves it by a whole one, and through the cache
    every later position with it. So a mistake is seen in the short texts, of which few are touched by that.
    """
    short = sorted(max(steps(program, folder, (1, 3, 1), seed)) for seed in range(1, 10))
    assert short[4] < 1e-5, short
    long = steps(program, folder, lengths)
    rounds = any(True for _ in program.nodes(torch.ops.drawplate.encode.default))
    assert max(long) < (5e-2 if rounds or program.encodings else 1e-5), long


def fed(runnable: Runnable, lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """The last logits after each piece."""
    ids = torch.randint(0, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    runnable.reset()
    return [runnable.step(part)[-1] for part in ids.split(list(lengths))]


def sites_of(refusals: Sequence[Any]) -> list[str]:
    """What was refused, as text."""
    return [str(r) for r in refusals]
