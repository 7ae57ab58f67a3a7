"""plan --config: bytes and milliseconds of a model that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_bytes_and_time_follow_from_a_configuration(drawplate: Run, model: Path) -> None:
    options = ["--recipe", "meta-8da4w", "--context", 64, "--json"]
    told = drawplate("plan", "--config", model / "config.json", "--device", "oneplus-12", *options)
    assert told.returncode == 0, told.stderr
    found, whole = (json.loads(done.stdout) for done in (told, drawplate("plan", model, *options)))
    files = sum(r["bytes"] for r in whole["bytes"] if r["role"] == "asset")
    assert found["total_bytes"] == found["file_bytes"] == whole["total_bytes"] - files
    assert found["time"]["device"] == "oneplus-12"
    assert found["time"]["context"] == 64
    assert 0 < found["time"]["decode_seconds"] < found["time"]["prompt_seconds"] < 0.1
    assert whole["time"] is None


def test_a_person_is_told_the_time(drawplate: Run, model: Path) -> None:
    shown = drawplate("plan", "--config", model / "config.json", "--context", 64, "--device", "oneplus-12").stdout
    assert "on oneplus-12: " in shown
    assert "ms per token" in shown
    assert "for a prompt of 64" in shown


def test_a_name_that_is_not_shipped(drawplate: Run) -> None:
    done = drawplate("plan", "--config", "llama-3.2-7b")
    assert done.returncode == 1
    assert done.stderr == (
        "there is no configuration 'llama-3.2-7b'\n"
        "  where: by name or as a file\n"
        "  do:    did you mean 'llama-3.2-3b'?; or give the path of a config.json\n"
    )


def test_a_configuration_that_is_none(drawplate: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{}")
    done = drawplate("plan", "--config", path)
    assert done.returncode == 1
    assert "config.json cannot be used" in done.stderr
    assert str(path) in done.stderr


@pytest.mark.parametrize("arguments", [[], ["some/model", "--config", "llama-3.2-1b"]])
def test_a_model_or_a_configuration(drawplate: Run, arguments: list[str]) -> None:
    done = drawplate("plan", *arguments)
    assert done.returncode == 2
    assert "give a MODEL or a --config, one of the two" in done.stderr


def test_an_unknown_device_is_refused_before_anything_is_read(drawplate: Run) -> None:
    done = drawplate("plan", "no/model", "--device", "oneplus")
    assert done.returncode == 1
    assert "no device is called 'oneplus'" in done.stderr
    assert "did you mean 'oneplus-12'?" in done.stderr
