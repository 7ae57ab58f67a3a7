"""The presets: each parses, orders and runs on a small decoder, and stores what its name says."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from architectures import captured

from drawplate.backendbase import Backend
from drawplate.encoding import QTensor
from drawplate.passbase import Env
from drawplate.plugins.manager import Session
from drawplate.recipe import Recipe
from drawplate.rehearsal import rehearse
from drawplate.runner import run_passes
from drawplate.schedule import schedule

PRESETS = ["meta-8da4w", "8da8w", "bf16", "fp32", "meta-8da4w-kv8", "meta-spinquant", "meta-qlora"]


@dataclass(frozen=True)
class Named(Backend):
    """Only a name and an option to parse."""

    group_scales: str = "bf16"

    name: ClassVar = "xnnpack"

    def check(self, program):
        return []

    def emit(self, program, into, assets):
        raise AssertionError


@pytest.fixture(scope="module")
def registry():
    session = Session(environment={"DRAWPLATE_PLUGINS": ""})
    return SimpleNamespace(passes=session.passes, recipes=session.recipes, backends={"xnnpack": Named})


def test_the_presets_are_there(registry):
    assert set(PRESETS) <= registry.recipes.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_in_its_own_order_and_has_one_text(name, registry):
    recipe = Recipe.load(name, registry)
    assert Recipe.parse(str(recipe), registry) == recipe
    assert recipe.description
    small = [type(p)(32) if p.name == "add-kv-cache" else p for p in recipe.passes]
    small = [
        type(p)(block=(1, 16), scale="bf16") if str(getattr(p, "encoding", "")).startswith("i4") else p for p in small
    ]
    program = captured("llama")
    plan = schedule(small, {"weights.float", "attention.plain"})
    assert plan.order == tuple(small)
    after = run_passes(program, plan.order, Env()).program
    rehearsed = rehearse(program, plan.order, Env()).program
    assert str(rehearsed) == str(after)  # without the weights, the same
    assert {"cache.inserted", "head.last_position"} <= after.facts
    kinds = {
        str(w.encoding) if isinstance(w, QTensor) else w.dtype for n, w in after.weights.items() if len(w.shape) > 1
    }
    rows = "i8 block 1x-1 sym scale f32"
    expected = {
        "meta-8da4w": {rows, "i4 block 1x16 sym scale bf16"},
        "meta-8da4w-kv8": {rows, "i4 block 1x16 sym scale bf16"},
        "8da8w": {rows},
        "bf16": {torch.bfloat16},
        "fp32": {torch.float32},
        "meta-spinquant": {rows, "i4 block 1x16 sym scale bf16"},
        "meta-qlora": {rows, "i4 block 1x16 sym scale bf16", torch.float32},
    }
    assert kinds == expected[name]
