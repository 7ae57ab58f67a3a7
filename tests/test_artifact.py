"""The artifact's manifest: every byte accounted for, the same each time, and read back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flowkit import Plain, RoundWeights, ScaleWeights, kit_session, mlp

from drawplate.artifact import MANIFEST, Artifact, Manifest, finish, load_whole
from drawplate.backendbase import ByteRow, Emission, state_rows, weight_rows
from drawplate.capture import Assets
from drawplate.errors import BackendError, OutputError, RecipeError, RuntimeMissing
from drawplate.passbase import Certificate, Env
from drawplate.program import Spec
from drawplate.recipe import Recipe
from drawplate.runner import run_passes

RECIPE = Recipe.of([ScaleWeights(), RoundWeights()], Plain())


def emit(folder: Path, change: Callable[[Emission], Emission] = lambda e: e, **changes: object) -> Manifest:
    folder.mkdir(exist_ok=True)
    outcome = run_passes(mlp(), RECIPE.passes, Env())
    emission = change(Plain().emit(outcome.program, folder, Assets()))
    outcome = replace(outcome, **changes)  # type: ignore[arg-type]
    return finish(
        folder, outcome, emission, source_digest="0", recipe=RECIPE, passes=["scale-weights"], plugins={"kit": "1.0"}
    )


def test_the_rows_add_up_to_the_files(tmp_path: Path) -> None:
    manifest = emit(tmp_path)
    assert [(f.name, f.bytes) for f in manifest.files] == [("weights.bin", 65536)]
    assert sum(row.bytes for row in manifest.bytes) == manifest.file_bytes == 65536
    assert manifest.recipe == "scale-weights,round-weights -> plain"
    assert manifest.versions["kit"] == "1.0"


def test_it_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest = emit(tmp_path)
    assert Artifact.load(tmp_path).manifest == manifest
    assert Artifact.load(tmp_path).model_files == (tmp_path / "weights.bin",)


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    emit(tmp_path / "a")
    emit(tmp_path / "b")
    for name in (MANIFEST, "weights.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / MANIFEST).read_text()


def test_infinite_errors_are_json(tmp_path: Path) -> None:
    certificate = Certificate("p", "i", True, 0.123456, float("inf"))
    (read,) = emit(tmp_path, certificates=(certificate,)).certificates
    assert (read.error, read.bound) == (0.123, 1e300)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda e: replace(e, bytes=e.bytes[1:]),
            ["weight up.weight is in no row", "weights.bin has 65536 bytes, its rows add up to 32768"],
        ),
        (
            lambda e: replace(e, bytes=(e.bytes[0], *e.bytes)),
            ["weight up.weight is in 2 rows", "weights.bin has 65536 bytes, its rows add up to 98304"],
        ),
        (
            lambda e: replace(e, bytes=(*e.bytes, ByteRow("ghost", "weight", "f32", "weights.bin", 0))),
            ["row ghost is no weight of the program"],
        ),
        (
            lambda e: replace(e, bytes=(*e.bytes, ByteRow("graph", "graph", "", "net.bin", 0))),
            ["rows name net.bin, which is not among the files"],
        ),
        (
            lambda e: replace(e, files=()),
            [
                "rows name weights.bin, which is not among the files",
                "weights.bin was written and is not among the files",
            ],
        ),
    ],
)
def test_a_table_that_does_not_add_up_is_refused(
    tmp_path: Path, change: Callable[[Emission], Emission], why: list[str]
) -> None:
    with pytest.raises(BackendError) as caught:
        emit(tmp_path, change)
    assert caught.value.what == "backend 'plain' does not account for what it wrote"
    assert caught.value.why == "; ".join(why)


def test_state_is_in_the_table_and_in_no_file(tmp_path: Path) -> None:
    manifest = emit(tmp_path, lambda e: replace(e, bytes=(*e.bytes, ByteRow("cache.0.key", "state", "f32", "", 4096))))
    assert manifest.file_bytes == 65536


def test_damage_is_found(tmp_path: Path) -> None:
    emit(tmp_path)
    artifact = Artifact.load(tmp_path)
    assert artifact.damage() == []
    path = tmp_path / "weights.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert artifact.damage() == ["weights.bin has other contents"]
    path.write_bytes(data[:-1])
    assert artifact.damage() == ["weights.bin has 65535 bytes, not 65536"]
    with pytest.raises(OutputError) as caught:
        load_whole(tmp_path)
    assert str(caught.value) == (
        "the artifact is damaged\n"
        f"  where: {tmp_path}\n"
        "  why:   weights.bin has 65535 bytes, not 65536\n"
        "  do:    copy it again from where it was compiled, or compile it again"
    )
    path.unlink()
    assert artifact.damage() == ["weights.bin is missing"]
    path.write_bytes(data)
    assert load_whole(tmp_path) == artifact


def test_its_backend_and_what_does_not_run(tmp_path: Path) -> None:
    emit(tmp_path)
    artifact = Artifact.load(tmp_path)
    assert artifact.backend(kit_session()) == Plain()
    with pytest.raises(RuntimeMissing, match="an artifact of backend 'plain' does not run on this machine"):
        artifact.open(kit_session())
    other = replace(artifact, manifest=replace(artifact.manifest, backend="plane"))
    with pytest.raises(RecipeError, match="no backend is called 'plane'"):
        other.backend(kit_session())


def test_parity_is_written_into_the_manifest(tmp_path: Path) -> None:
    emit(tmp_path)
    artifact = Artifact.load(tmp_path)
    (tmp_path / MANIFEST).write_text(replace(artifact.manifest, parity={"kl": 0.01}).to_json())
    assert Artifact.load(tmp_path).manifest.parity == {"kl": 0.01}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file or directory"),
        ("{", "manifest.json: Expecting property name"),
        ('{"format": "drawplate artifact 9"}', "manifest.json: its format is 'drawplate artifact 9'"),
        ("[]", "manifest.json: list indices"),
    ],
)
def test_what_is_no_artifact(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(OutputError, match="this is not an artifact") as caught:
        Artifact.load(tmp_path)
    assert caught.value.why.startswith(why)


def test_rows_of_weights_and_state() -> None:
    outcome = run_passes(mlp(), [ScaleWeights(), RoundWeights(skip=("up.weight",))], Env())
    up, down = weight_rows(outcome.program)
    assert (up.encoding, up.bytes) == ("f32", 4 * 128 * 64)
    assert (down.encoding, down.bytes) == ("i4 block 1x32 sym scale f32", 64 * 128 // 2 + 4 * 64 * 4)
    state = (Spec("cache.0.key", torch.bfloat16, (1, 16, 2, 8)),)
    assert state_rows(replace(outcome.program, state=state)) == (ByteRow("cache.0.key", "state", "bf16", "", 512),)


def test_the_manifest_is_json(tmp_path: Path) -> None:
    emit(tmp_path)
    table = json.loads((tmp_path / MANIFEST).read_text())
    assert list(table) == sorted(table)
