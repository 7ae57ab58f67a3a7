"""explain: from an artifact to tables, a document and a page, on the command line alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import drawplate as api
from tests.cli.conftest import Run

CACHED = "add-kv-cache{context=64},last-position,pack-weights"
RECIPE = f"quantize-embedding,quantize-weights{{scale=bf16}},quantize-activations,{CACHED} -> xnnpack"


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in 4 bits."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    api.compile(str(model), RECIPE, out=folder, cache=False)
    return folder


def test_a_table_a_document_and_a_page(drawplate: Run, artifact: Path, model: Path, text: Path) -> None:
    asked = ("explain", artifact, "--model", model, "--text", text, "--sites", 3, "--tokens", 64)
    done = drawplate(*asked, "--html", "page.html", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {
        *("model", "recipe", "text", "tokens", "window", "file_bytes", "loss", "rewritten", "parts", "layers"),
        *("by_layer", "components", "activations", "curve", "fallbacks", "notes", "verdict", "units"),
    }
    parts = found["parts"]
    assert [p["rank"] for p in parts] == list(range(1, 16))
    assert sum(p["harm_is"] == "measured" for p in parts) == 3
    assert all((p["won_back"] is None) == (p["harm_is"] == "expected") for p in parts)
    assert parts[0]["share"] == parts[0]["harm"] / found["loss"]["kl"]["value"]
    assert found["tokens"] == 64
    assert found["file_bytes"] == (artifact / "model.pte").stat().st_size
    html = Path("page.html").read_text()
    assert html.startswith("<!doctype html>")
    assert all(p["name"] in html for p in parts)
    assert "//cdn" not in html

    shown = drawplate(*asked)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("* What the compressed model predicts is ")
    assert (
        "15 of 15 weights, the worst first; 3 measured on 64 tokens of text.txt, the others (≈) expected"
        in shown.stdout
    )
    where = "layer {layer} {component}" if parts[0]["layer"] != "in" else "{component}"
    assert where.format(**parts[0]) in shown.stdout
    assert shown.stdout.count("≈ ") == 12

    again = drawplate(*asked, "--html", "page.html")
    assert again.returncode == 1
    assert (
        again.stderr == "there is a file already\n  where: page.html\n  do:    give another name, or add --overwrite\n"
    )


def test_an_artifact_that_was_made_with_a_text(drawplate: Run, model: Path, text: Path) -> None:
    recipe = f"allocate-bits{{budget=6bpw}},quantize-activations,{CACHED} -> xnnpack"
    read = ("--calibration", text, "--calibration-tokens", 512)
    made = drawplate("compile", model, "--recipe", recipe, "--out", "small", "--no-verify", *read)
    assert made.returncode == 0, made.stderr
    asked = ("explain", "small", "--model", model, "--text", text, "--sites", 1, "--tokens", 64)
    found = json.loads(drawplate(*asked, *read, "--json").stdout)
    assert found["curve"]["source"] == "what allocate-bits chose from"
    none = drawplate(*asked)
    assert none.returncode == 1
    assert none.stderr.startswith("the artifact was made with a calibration text, and none is given\n")
    other = drawplate(*asked, "--calibration", text, "--calibration-tokens", 1024)
    assert other.stderr.startswith("this is not the calibration text that the artifact was made with\n")


def test_what_is_missing_is_told_before_anything_is_run(drawplate: Run, artifact: Path, model: Path) -> None:
    assert drawplate("explain", artifact).stderr == (
        "the model that the artifact was compiled from is needed\n"
        f"  where: {artifact}\n"
        "  why:   an artifact holds what was stored, and not what it was rounded from\n"
        "  do:    add --model MODEL\n"
    )
    assert drawplate("explain", artifact, "--model", model).stderr == (
        "a text is needed to measure harm on\n"
        "  why:   harm is how far predictions move, and that depends on what is read\n"
        "  do:    add --text FILE, prose of a few thousand words in the model's language\n"
    )


def test_a_damaged_artifact_and_a_model_that_is_none(
    drawplate: Run, artifact: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    (damaged / "model.pte").write_bytes(b"short")
    asked = ("--model", model, "--text", text)
    assert drawplate("explain", damaged, *asked).stderr.startswith("the artifact is damaged\n")
    assert drawplate("explain", model, *asked).stderr.startswith("this is not an artifact\n")
    done = drawplate("explain", artifact, *asked, "--device", "oneplus-13")
    assert done.returncode == 1
    assert "oneplus-12" in done.stderr


def test_a_page_that_cannot_be_is_refused_before_anything_is_run(
    drawplate: Run, artifact: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("explain", artifact, "--model", model, "--text", text)
    assert drawplate(*asked, "--html", "no/page.html").stderr == (
        "the page cannot be written\n  where: no/page.html\n  why:   there is no such folder\n"
    )
    find = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "altair" else find(name))
    assert drawplate(*asked, "--html", "page.html").stderr == (
        "the page cannot be drawn\n"
        "  why:   altair is not installed\n"
        "  do:    pip install 'drawplate[explain]', or leave --html out\n"
    )
