"""inspect --rotations: what may be turned after fold-norms, and every reason why something may not."""

from __future__ import annotations

import json
from pathlib import Path

from architectures import captured

from drawplate.commands.rotations import rotations
from drawplate.passes.fold_norms import FoldNorms
from tests.cli.conftest import Run


def test_a_model_s_rotations(drawplate: Run, model: Path) -> None:
    done = drawplate("inspect", "--rotations", model, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (stream,) = found["r1"]
    assert (stream["name"], stream["width"]) == ("model.embed_tokens.weight", 64)
    assert stream["maps"] == [{"weight": "model.norm.weight", "macs_per_token": 64 * 64}]
    assert {"weight": "model.layers.1.mlp.down_proj.weight", "axis": 0} in stream["writers"]
    assert {"weight": "model.embed_tokens.weight", "axis": 1} in stream["readers"]
    assert [(v["heads"], v["width"]) for v in found["r2"]] == [(2, 16), (2, 16)]
    assert [(o["width"], o["block"]) for o in found["r4"]] == [(96, 96), (96, 96)]
    assert len(found["r3"]) == 4
    assert [r["site"] for r in found["not_folded"]] == ["model.norm.weight"]
    assert found["not_turned"] == []


def test_layers_that_are_alike_are_one_row(drawplate: Run, model: Path) -> None:
    shown = drawplate("inspect", "--rotations", model).stdout
    assert "1 (at most 4.1 k multiply-adds/token)" in shown
    assert shown.count("self_attn.o_proj.weight") == 2  # R1 writes it, R2 reads it
    assert "\n  model.norm.weight (aten.rms_norm): not folded: model.embed_tokens.weight reads it" in shown
    assert shown.endswith("not turned: none\n")


def test_what_cannot_be_turned_has_the_model_s_own_line() -> None:
    found = rotations(captured("gpt2"), {"fold-norms": FoldNorms})
    assert found["r1"] == []
    assert [r["fix"] for r in found["not_folded"]] == ["use tied=split"]
    (refusal,) = found["not_turned"]
    assert "'layer_norm' subtracts the mean over the channels at modeling_gpt2.py:" in refusal["why"]


def test_an_artifact_is_refused(drawplate: Run, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    done = drawplate("inspect", "--rotations", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "an artifact cannot be turned\n"
        f"  where: {tmp_path}\n"
        "  why:   --rotations shows what passes may do to a model, and an artifact has been through its passes\n"
        "  do:    point --rotations at the model that it was made from\n"
    )
