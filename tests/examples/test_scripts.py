"""The numbered scripts run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.examples.conftest import EXAMPLES, SIZES, Save


def run(script: str, *arguments: object, cache: Path) -> str:
    """Its output; its exit code is 0."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-P", str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_run_here_and_listed_in_the_readme() -> None:
    scripts = sorted(p.name for p in EXAMPLES.glob("*.py"))
    here, readme = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    assert [s for s in scripts if f'"{s}"' not in here or f"`{s}`" not in readme] == []


@pytest.mark.slow
def test_compile_look_inside_measure(save: Save, tmp_path: Path) -> None:
    model = save(transformers.LlamaConfig(**{**SIZES, "max_position_embeddings": 512}, tie_word_embeddings=True))
    (tmp_path / "text.txt").write_text("the wire is drawn through the plate, hole after hole. " * 60)
    said = run("01_compile.py", model, tmp_path / "out", cache=tmp_path)
    assert "add-kv-cache" in said
    assert "model.embed_tokens.weight" in said
    assert (tmp_path / "out" / "manifest.json").is_file()
    said = run("02_look_inside.py", model, cache=tmp_path)
    assert "tied      model.embed_tokens.weight" in said
    said = run("03_measure.py", model, tmp_path / "out", tmp_path / "text.txt", 32, cache=tmp_path)
    assert "same top token" in said


def test_write_a_pass(tmp_path: Path) -> None:
    said = run("04_write_a_pass.py", cache=tmp_path)
    assert "mine (given by the caller) brings round-norms" in said
    assert "as it claims to keep the function" in said
    assert "SAME_FUNCTION" in said
    assert said.endswith("as it should be: SIGNATURE\n")
