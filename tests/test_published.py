"""Meta's published table for quantised Llama 3.2: six file sizes from configurations alone, and one phone's rates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from drawplate.api import plan
from drawplate.capture import Captured
from drawplate.planning import Plan
from drawplate.plugins.manager import Session
from drawplate.recipe import Recipe
from drawplate.sources.outline import capture_config

# Model card and ExecuTorch's examples/models/llama/README.md: .pte in MiB; decode and prefill in tokens per second on a
# OnePlus 12, with prompts of 64 tokens.
PUBLISHED = {
    ("llama-3.2-1b", "bf16"): (2358, 19.2, 60.3),
    ("llama-3.2-1b", "meta-spinquant"): (1083, 50.2, 260.5),
    ("llama-3.2-1b", "meta-qlora"): (1127, 45.8, 252.0),
    ("llama-3.2-3b", "bf16"): (6129, 7.6, 21.2),
    ("llama-3.2-3b", "meta-spinquant"): (2435, 19.7, 89.7),
    ("llama-3.2-3b", "meta-qlora"): (2529, 18.5, 88.8),
}
CONTEXT = 64


@cache
def captured(config: str) -> Captured:
    return capture_config(config)


def planned(config: str, recipe: str) -> Plan:
    session = Session()
    loaded = Recipe.load(recipe, session)
    short = [replace(p, context=CONTEXT) if p.name == "add-kv-cache" else p for p in loaded.passes]  # type: ignore[call-arg]
    return plan(captured(config), replace(loaded, passes=tuple(short)), device="oneplus-12", session=session)


@pytest.mark.parametrize(("config", "recipe"), PUBLISHED)
def test_sizes_are_the_published_ones_and_the_1b_model_s_rates_predict_the_3b_model_s(config: str, recipe: str) -> None:
    """One test of both, since a plan takes seconds and workers share none."""
    found = planned(config, recipe)
    size, decode, prefill = PUBLISHED[config, recipe]
    assert not found.backend_refusals
    assert found.file_bytes / 2**20 == pytest.approx(size, rel=0.005)
    time = found.time
    assert time is not None
    known = config == "llama-3.2-1b"  # SpinQuant and QLoRA share one rate, which is 2.7 % from either
    assert 1 / time.decode_seconds == pytest.approx(decode, rel=0.03 if known else 0.06)
    assert time.prompt / time.prompt_seconds == pytest.approx(prefill, rel=0.03 if known else 0.06)
