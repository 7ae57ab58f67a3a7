"""Which programs an artifact is explained by, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import captured

from drawplate.analysis.adapters import adapters
from drawplate.artifact import Artifact
from drawplate.calibration import Calibration
from drawplate.encoding import QTensor
from drawplate.errors import EvaluationError
from drawplate.explain.damage import damage
from drawplate.explain.twins import Twins, twins
from drawplate.explaining import explain
from drawplate.progress import quiet
from tests.explain.explainkit import BACKEND, BITS4, ROTATED, SESSION, TEXT, artifact, pair

OTHER = Calibration.of(torch.ones(2, 8, dtype=torch.int64), "other.txt")


def test_they_differ_in_what_is_rounded_and_read_whole_texts(programs: Twins) -> None:
    assert not programs.floating.encodings
    assert set(programs.weights) == set(programs.stored.encodings)
    assert len(programs.weights) == 15
    encode = torch.ops.drawplate.encode.default
    assert any(programs.stored.nodes(encode))
    assert not any(programs.floating.nodes(encode))
    assert not programs.stored.state
    assert programs.notes == ()


def test_the_codes_are_those_of_the_artifact(made: Artifact, programs: Twins) -> None:
    rows = {row.name: row for row in made.manifest.bytes if row.role == "weight"}
    table = programs.stored.weights["model.embed_tokens.weight"]
    assert isinstance(table, QTensor)
    assert rows["model.embed_tokens.weight"].encoding == str(table.encoding)
    data = (made.folder / "model.pte").read_bytes()
    assert table.codes.numpy().tobytes() in data


def test_rotations_are_in_both(tmp_path: Path) -> None:
    programs = pair(artifact(tmp_path / "out", ROTATED))
    name = "model.layers.0.mlp.up_proj.weight"
    floating, stored = programs.floating.weights[name], programs.stored.weights[name]
    assert isinstance(floating, torch.Tensor)
    assert isinstance(stored, QTensor)
    assert not torch.allclose(floating, captured("llama").weights[name], atol=0.1)  # type: ignore[arg-type]
    assert float((stored.dequantize() - floating).norm() / floating.norm()) < 0.15


ADAPTED = f"{BITS4},quantize-activations,add-lora{{rank=4,dtype=bf16}},train-lora{{epochs=6,rate=0.01,held=0}}"


def test_what_is_folded_behind_the_rounding_is_explained(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", f"{ADAPTED},fold-lora{{method=round}},{BACKEND}", calibration=TEXT)
    programs = pair(made)
    assert len(programs.weights) == 15
    assert adapters(programs.stored) == ()
    table = programs.stored.weights["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(table, QTensor)
    assert table.pack().codes.numpy().tobytes() in (made.folder / "model.pte").read_bytes()
    assert any("weights stored again" in note for note in programs.notes)


@pytest.mark.parametrize(("keep", "others"), [("", 0), (",fold-lora{method=keep,bits=8}", 28)])
def test_adapters_that_are_kept_are_explained_with_what_they_stand_beside(
    keep: str, others: int, tmp_path: Path
) -> None:
    made = artifact(tmp_path / "out", f"{ADAPTED}{keep},{BACKEND}", calibration=TEXT)
    programs = pair(made)
    assert len(adapters(programs.stored)) == 14
    assert adapters(programs.floating) == ()
    left_out = [note for note in programs.notes if note.startswith("not told apart")]
    assert len(left_out) == bool(others)
    found = damage(programs, [], [[TEXT.windows, torch.arange(32).expand_as(TEXT.windows)]], quiet)
    assert found.loss.kl.value < found.weights  # the adapters make up for rounding
    assert found.activations is not None
    assert found.activations.only.value < found.loss.kl.value  # and add nothing beside what is as it was


def test_what_is_renamed_between_roundings_is_told(tmp_path: Path) -> None:
    recipe = f"{BITS4},merge-linears,quantize-activations,{BACKEND} with{{pinned=true}}"
    programs = pair(artifact(tmp_path / "out", recipe))
    assert len(programs.weights) == 5  # per layer the projections that are merged with none; and the table
    assert programs.notes == (
        "not told apart: 4 stored weights that the recipe renamed or added after its first rounding",
    )


def test_other_versions_are_told_where_it_is_not_known_that_the_weights_are_the_same(made: Artifact) -> None:
    manifest = replace(made.manifest, versions={**made.manifest.versions, "torch": "1.0"})
    assert twins(manifest, captured("llama"), SESSION).notes == ()
    (note,) = twins(replace(manifest, weights_digest=""), captured("llama"), SESSION).notes
    assert note.startswith("made with torch 1.0 (now ")
    assert note.endswith("): the weights computed again may differ from those in the artifact")


def test_other_encodings_and_other_contents_are_refused(made: Artifact) -> None:
    eight = "quantize-weights{bits=8,block=1x-1}"
    wide = replace(made.manifest, recipe=made.manifest.recipe.replace("quantize-weights{block=1x-1}", eight))
    layer = "model.layers.0.self_attn"
    for manifest in (wide, replace(wide, weights_digest="")):
        with pytest.raises(EvaluationError) as error:
            twins(manifest, captured("llama"), SESSION)
        four, told = "i4 block 1x-1 sym scale f32", error.value.why.splitlines()
        assert f"{layer}.o_proj.weight: {four} in the artifact, i8 block 1x-1 sym scale f32 now" in told
        assert len(told) == 4
        assert told[-1] == "and 5 more"
    closer = made.manifest.recipe.replace("quantize-weights{block=1x-1}", "quantize-weights{block=1x-1,range=mse}")
    with pytest.raises(EvaluationError) as error:
        twins(replace(made.manifest, recipe=closer), captured("llama"), SESSION)
    assert str(error.value) == (
        "the recipe now gives other weights than those in the artifact\n"
        f"  where: recipe {closer}\n"
        "  why:   every weight is stored in the same encoding, and contents differ\n"
        "  do:    put back what the recipe reads, such as its files, as it was when compiled; or compile it again"
    )


def test_another_model_is_refused(made: Artifact) -> None:
    with pytest.raises(EvaluationError) as error:
        twins(made.manifest, captured("qwen2"), SESSION)
    assert str(error.value) == (
        "this is not the model that the artifact was made from\n"
        "  where: qwen2\n"
        f"  why:   the digest of its graph and weights is not {made.manifest.source_digest}\n"
        "  do:    give --model the folder that was compiled, as it was; or compile it again"
    )


def test_a_text_other_than_the_compile_s_is_refused(made: Artifact) -> None:
    with_text = replace(made.manifest, calibration={"source": TEXT.source, "digest": TEXT.digest})
    with pytest.raises(EvaluationError) as error:
        twins(with_text, captured("llama"), SESSION, calibration=OTHER)
    assert str(error.value) == (
        "this is not the calibration text that the artifact was made with\n"
        "  where: other.txt\n"
        "  why:   that was random.txt; the digests of the tokens differ\n"
        "  do:    give the same --calibration and --calibration-tokens as the compile"
    )
    with pytest.raises(EvaluationError) as error:
        twins(with_text, captured("llama"), SESSION)
    assert str(error.value) == (
        "the artifact was made with a calibration text, and none is given\n"
        f"  where: recipe {made.manifest.recipe}\n"
        "  why:   that was random.txt; without it passes may give other weights\n"
        "  do:    give the same --calibration and --calibration-tokens as the compile (in Python, calibration=..)"
    )
    with pytest.raises(EvaluationError) as error:
        twins(made.manifest, captured("llama"), SESSION, calibration=TEXT)
    assert str(error.value) == (
        "the artifact was made without a calibration text, and one is given\n"
        "  where: random.txt\n"
        "  why:   with it passes may give other weights\n"
        "  do:    leave --calibration out (in Python, calibration=None)"
    )


def test_what_the_passes_say_of_their_result_is_told(tmp_path: Path) -> None:
    recipe = f"split-bands{{bands=2,multiple=8}},{BITS4},quantize-activations,{BACKEND}"
    programs = pair(artifact(tmp_path / "out", recipe))
    assert programs.notes == ("split-bands: channels are sorted by the weights alone, since there is no text",)


def test_an_artifact_without_integers_has_nothing_to_blame(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", f"merge-linears,{BACKEND.replace(',pack-weights', '')}")
    with pytest.raises(EvaluationError) as error:
        pair(made)
    assert "there is no weight to blame" in str(error.value)
    assert "why:   no weight of this artifact is stored as integers" in str(error.value)


def test_models_that_predict_no_tokens_are_refused(made: Artifact) -> None:
    with pytest.raises(EvaluationError) as error:
        explain(made, captured("bert"), TEXT, SESSION)
    assert str(error.value).startswith("only models that predict tokens can be explained\n  where: bert\n")
