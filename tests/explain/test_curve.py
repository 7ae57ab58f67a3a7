"""What else the bytes could buy."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from drawplate.allocation import Item, Option, allocate
from drawplate.artifact import Artifact
from drawplate.errors import OutputError
from drawplate.explain.curve import corrected, curve, upgrades
from drawplate.explain.report import Explanation, Point, Upgrade
from tests.explain.explainkit import ALLOCATED, TEXT, artifact, explained

EIGHT = "i8 block 1x-1 sym scale f32"
ITEMS = [
    Item("a", (Option(4, 1.0, "i4 block 1x-1 sym scale f32"), Option(8, 0.1, EIGHT), Option(32, 0.0)), ("a", "b")),
    Item("c", (Option(4, 5.0, "i4 block 1x-1 sym scale f32"), Option(8, 4.0, EIGHT), Option(32, 0.0)), ("c",)),
]
CHOSEN = {"a": ITEMS[0].options[0], "c": ITEMS[1].options[0]}


def test_each_point_is_the_best_spending_of_its_bytes() -> None:
    found = curve(ITEMS, CHOSEN, 108, 0.5, "test")
    assert found.artifact == Point(108, 6.0)
    assert found.points[0] == Point(108, 6.0)
    assert found.points[-1] == Point(164, 0.0)
    assert all(p.kl == pytest.approx(allocate(ITEMS, p.bytes - 100).damage, abs=1e-12) for p in found.points)
    assert found.at(107) is None
    best = found.at(115)
    assert best is not None
    assert best.bytes == 112
    assert best.kl == pytest.approx(1.0 + 4.0)


def test_an_upgrade_is_the_smallest_option_that_helps_for_all_that_must_agree() -> None:
    found = upgrades(ITEMS, CHOSEN)
    assert found["a"] == found["b"] == Upgrade(EIGHT, 8.0, 4, 0.1, ("a", "b"))
    assert found["c"] == Upgrade("float", 32.0, 28, 0.0, ("c",))


def test_what_was_measured_corrects_what_is_expected() -> None:
    items, chosen = corrected(ITEMS, CHOSEN, {"a": 0.4, "b": 0.6, "c": 5.0}, {"a": 0.15})
    assert [o.damage for o in items[0].options] == pytest.approx([0.75, 0.075, 0.0])  # 0.15 and 0.6, not 1.0
    assert chosen["a"].damage == pytest.approx(0.75)
    assert items[1].options == ITEMS[1].options
    assert chosen["c"] == CHOSEN["c"]


def test_the_menu_of_the_target_is_what_is_chosen_from(found: Explanation) -> None:
    assert found.curve is not None
    assert found.curve.source == "the menu of xnnpack, ranges by minmax"
    assert all(a.bytes < b.bytes and a.kl > b.kl for a, b in pairwise(found.curve.points))
    alone = sum(p.only.value for p in found.parts if p.only is not None)
    assert found.curve.artifact.kl == pytest.approx(alone, rel=0.1)  # what must be stored alike is rated together
    best = found.curve.at(found.file_bytes)
    assert best is not None
    assert best.kl <= found.curve.artifact.kl
    up = next(p.upgrade for p in found.parts if p.component == "mlp.down_proj")
    assert up is not None
    assert up.encoding == EIGHT


def test_the_record_of_allocate_bits_is_used_where_there_is_one(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", ALLOCATED, calibration=TEXT)
    found = explained(made, measured=0)
    record = json.loads((made.folder / "allocation.json").read_text())
    assert found.curve is not None
    assert found.curve.source == "what allocate-bits chose from"
    assert found.curve.artifact.kl == sum(i["options"][i["chosen"]]["damage"] for i in record["items"])
    best = found.curve.at(found.file_bytes)
    assert best is not None
    assert best.kl == pytest.approx(found.curve.artifact.kl, rel=1e-6)  # that is what was allocated

    (made.folder / "allocation.json").write_text('{"cost": "kl", "items": [{"name": "a"}]}')
    with pytest.raises(OutputError) as error:
        explained(made, measured=0)
    assert str(error.value) == (
        "the record of what was allocated cannot be read\n"
        f"  where: {made.folder / 'allocation.json'}\n"
        "  why:   KeyError: 'options'"
    )


def test_options_are_rated_alike_however_the_artifact_s_own_codes_were_found(made: Artifact, tmp_path: Path) -> None:
    """All rounded to nearest, each block's range as the recipe finds it."""
    compensated = made.manifest.recipe.replace("quantize-weights{block=1x-1", "quantize-weights{method=gptq,block=1x-1")
    closer = made.manifest.recipe.replace("{block=1x-1", "{range=mse,block=1x-1")
    plain, gptq, mse = (
        explained(one, measured=0)
        for one in (
            made,
            artifact(tmp_path / "gptq", compensated, calibration=TEXT),
            artifact(tmp_path / "mse", closer),
        )
    )
    assert plain.curve is not None
    assert gptq.curve is not None
    assert mse.curve is not None
    assert [p.expected for p in gptq.parts] != [p.expected for p in plain.parts]
    assert gptq.curve.artifact.kl == plain.curve.artifact.kl
    assert gptq.curve.points == plain.curve.points
    assert mse.curve.source == "the menu of xnnpack, ranges by mse"


def test_without_a_target_there_is_no_curve(made: Artifact) -> None:
    recipe = made.manifest.recipe.partition(" ->")[0]
    found = explained(replace(made, manifest=replace(made.manifest, recipe=recipe)), measured=0)
    assert found.curve is None
    assert all(p.upgrade is None for p in found.parts)
