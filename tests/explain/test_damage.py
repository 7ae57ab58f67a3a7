"""The figures, against whole runs of programs in which one weight is exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from architectures import captured

from drawplate.artifact import Artifact
from drawplate.device import Device, Rates
from drawplate.evaluation import language
from drawplate.explain.report import Explanation
from drawplate.explain.twins import Twins
from drawplate.explaining import BYTES_ALONE, time_shares
from drawplate.program import Program, Weight
from tests.explain.explainkit import ROTATED, TEXT, artifact, explained, pair

POSITIONS = torch.arange(TEXT.windows.shape[1]).expand_as(TEXT.windows)


def kl(program: Program, weights: Mapping[str, Weight], name: str) -> float:
    """Of the program with these weights in place of its own to the original, per token."""
    other = replace(program, weights=MappingProxyType({**program.weights, **weights}))
    a, b = (p.module()(TEXT.windows, POSITIONS).double().log_softmax(-1) for p in (captured(name), other))
    return float((a.exp() * (a - b)).sum(-1).mean())


def check(found: Explanation, programs: Twins, name: str) -> None:
    """Every figure of the explanation, against whole runs."""
    floats = {n: programs.floating.weights[n] for n in programs.weights}
    codes = {n: programs.stored.weights[n] for n in programs.weights}
    whole = kl(programs.stored, {}, name)
    assert found.loss.kl.value == pytest.approx(whole, rel=1e-3)
    assert found.rewritten == pytest.approx(kl(programs.floating, {}, name), abs=1e-6)
    assert sorted(p.name for p in found.parts) == sorted(programs.weights)
    for part in found.parts:
        assert part.only is not None
        assert part.won_back is not None
        alone = kl(programs.floating, {part.name: codes[part.name]}, name)
        without = kl(programs.stored, {part.name: floats[part.name]}, name)
        assert part.only.value == pytest.approx(alone, rel=1e-3, abs=1e-6)
        assert part.won_back.value == pytest.approx(whole - without, rel=1e-3, abs=1e-4 * whole)
    assert found.activations is not None
    assert found.activations.only.value == pytest.approx(kl(programs.stored, floats, name), rel=1e-2, abs=1e-6)
    stored_alone = kl(programs.floating, codes, name)
    assert found.activations.won_back.value == pytest.approx(whole - stored_alone, rel=1e-2, abs=1e-3 * whole)


def test_only_this_one_and_all_but_this_one(found: Explanation, programs: Twins) -> None:
    check(found, programs, "llama")


def test_of_a_rotated_model_too(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", ROTATED, "qwen3")
    check(explained(made, name="qwen3"), pair(made, "qwen3"), "qwen3")


def test_the_error_of_what_a_weight_gives_on_the_original_s_input(found: Explanation, programs: Twins) -> None:
    part = next(p for p in found.parts if p.component == "self_attn.q_proj" and p.layer == "0")
    weights = programs.floating.weights
    hidden = weights["model.embed_tokens.weight"][TEXT.windows]
    read = torch.nn.functional.rms_norm(hidden, [48], weights["model.layers.0.input_layernorm.weight"], 1e-6)
    exact, stored = (read @ w.T for w in (weights[part.name], programs.stored.weights[part.name].dequantize()))
    assert part.output_error == pytest.approx(float((stored - exact).norm() / exact.norm()), rel=1e-4)


def test_the_worst_by_expectation_are_measured_and_the_rest_expected(made: Artifact) -> None:
    found = explained(made, measured=4)
    assert len(found.measured) == 4
    by_expectation = sorted(found.parts, key=lambda p: -p.expected)
    assert {p.name for p in by_expectation[:4]} == {p.name for p in found.measured}
    assert [p.harm for p in found.parts] == sorted((p.harm for p in found.parts), reverse=True)
    assert all((p.only is None) == (p.won_back is None) for p in found.parts)
    assert all(p.harm == (p.only.value + p.won_back.value) / 2 for p in found.parts if p.only and p.won_back)
    assert all(p.harm == p.expected for p in found.parts if not p.measured)


def test_expectations_are_of_the_measured_s_size(found: Explanation) -> None:
    """Of 128 tokens: each about, and together nearer."""
    pairs = [(part.expected, part.only.value) for part in found.parts[:8] if part.only is not None]
    assert len(pairs) == 8
    assert all(measured / 3 < expected < 3 * measured for expected, measured in pairs)
    assert sum(e for e, _ in pairs) == pytest.approx(sum(m for _, m in pairs), rel=0.4)


def test_the_loss_is_what_eval_says(found: Explanation, programs: Twins) -> None:
    said = language({"original": programs.original, "stored": programs.stored}, TEXT.windows, "original")
    assert found.loss.perplexity == pytest.approx(said["stored"].perplexity.value, rel=1e-3)
    assert found.loss.original_perplexity == pytest.approx(said["original"].perplexity.value, rel=1e-3)


def test_layers_are_the_sums_of_their_weights(found: Explanation) -> None:
    layers = found.as_json()["by_layer"]
    assert list(layers) == ["in", "0", "1"]
    assert sum(x["harm"] for x in layers.values()) == pytest.approx(sum(p.harm for p in found.parts))
    assert layers["0"]["share"] == pytest.approx(layers["0"]["harm"] / found.loss.kl.value)


def test_a_device_that_multiplies_slowly_shares_time_otherwise(programs: Twins) -> None:
    plain = time_shares(programs.stored, BYTES_ALONE)
    slow = time_shares(programs.stored, Device("", "", Rates(1e9, 1.0), Rates(1e9, 1.0)))
    assert sum(plain.values()) == pytest.approx(1.0)
    assert sum(slow.values()) == pytest.approx(1.0)
    table = "model.embed_tokens.weight"  # 8 bits for each multiply-add, where the others have 4
    assert slow[table] < 0.75 * plain[table]


def test_bytes_and_time_are_shared_out(made: Artifact, found: Explanation, programs: Twins) -> None:
    assert {p.name: p.bytes for p in found.parts} == {n: programs.stored.weights[n].nbytes for n in programs.weights}
    assert 0.8 < sum(p.time_share for p in found.parts) <= 1.0
    largest = max(found.parts, key=lambda p: p.bytes)
    assert largest.time_share == max(p.time_share for p in found.parts)
    assert found.file_bytes == (made.folder / "model.pte").stat().st_size
