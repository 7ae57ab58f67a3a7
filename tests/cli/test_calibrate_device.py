"""calibrate-device: from nothing to a device that plans understand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_a_file_that_is_there_is_not_overwritten(drawplate: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    done = drawplate("calibrate-device", "--out", path)
    assert done.returncode == 1
    assert done.stderr == (f"the output exists\n  where: {path}\n  do:    choose another, or replace it: --overwrite\n")
    assert path.read_text() == "mine"


def test_a_name_that_no_device_option_takes_is_refused_before_measuring(drawplate: Run) -> None:
    done = drawplate("calibrate-device", "--out", "mine")
    assert done.returncode == 1
    assert done.stderr == (
        "the output is no .toml file\n"
        "  where: mine\n"
        "  why:   --device takes a shipped name, or the path of a .toml file\n"
        "  do:    write to mine.toml\n"
    )


def test_a_folder_that_does_not_exist_is_refused_before_measuring(drawplate: Run) -> None:
    done = drawplate("calibrate-device", "--out", "no/such/mine.toml")
    assert done.returncode == 1
    assert done.stderr == (
        "the output's folder does not exist\n  where: no/such\n  do:    make the folder, or choose another\n"
    )


@pytest.mark.slow
def test_this_host_as_a_device(drawplate: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    done = drawplate("calibrate-device", "--out", path, "--rounds", 1, "--threads", 2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["integer"]["read"] < 1.5 * found["memory_read_rate"]
    planned = drawplate("plan", model, "--context", 64, "--device", path, "--json")
    assert json.loads(planned.stdout)["time"]["device"] == "mine"
