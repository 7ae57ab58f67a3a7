"""A cache of integers on the command line: planned, compiled, verified in the stock runtime, and generated from."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


def test_a_recipe_for_long_contexts(drawplate: Run, model: Path) -> None:
    plans = {}
    for recipe in ("meta-8da4w", "meta-8da4w-kv8"):
        done = drawplate("plan", model, "--recipe", recipe, "--context", 64, "--json")
        plans[recipe] = json.loads(done.stdout)["state_bytes"]
    rows = 2 * 2 * 64 * 2  # layers, keys and values, positions, heads
    assert plans == {"meta-8da4w": rows * 4 * 16, "meta-8da4w-kv8": rows * (16 + 4 + 1)}

    made = drawplate("compile", model, "--recipe", "meta-8da4w-kv8", "--context", 64, "-o", "out", "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)["manifest"]
    state = {row["name"]: row["encoding"] for row in manifest["bytes"] if row["role"] == "state"}
    assert {name.removeprefix("cache.1.key"): kind for name, kind in state.items() if "cache.1.key" in name} == {
        "": "i8",
        "_scale": "f32",
        "_zero_point": "i8",
    }
    kept = {(c["pass_name"], c["invariant"]): c["holds"] for c in manifest["certificates"]}
    assert kept["quantize-cache", "ROUNDS"]
    assert kept["add-kv-cache", "SAME_FUNCTION"]
    assert manifest["parity"]

    answer = json.loads(drawplate("run", "out", "--prompt", "the wire", "-n", 3, "--json").stdout)
    assert 1 <= answer["tokens"] <= 3


def test_rounding_that_comes_too_late_is_put_in_its_place(drawplate: Run, model: Path) -> None:
    recipe = "add-kv-cache{context=64},quantize-cache,last-position -> xnnpack"
    found = json.loads(drawplate("plan", model, "--recipe", recipe, "--json").stdout)
    order = "\n".join(found["schedule"])
    assert order.index("quantize-cache") < order.index("add-kv-cache")
    assert "must run before 'attention.plain' is broken" in order
