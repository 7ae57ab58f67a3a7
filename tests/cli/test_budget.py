"""--budget: bytes, bits per weight and milliseconds per token, from the command line to a file that keeps to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

OPTIONS = ["--context", 64, "--no-cache", "--no-verify", "--calibration-tokens", 1024, "--json"]


def compiled(drawplate: Run, model: Path, text: Path, *options: object) -> dict[str, Any]:
    done = drawplate("compile", model, "-r", "allocated", "--calibration", text, "-o", "out", *options, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["manifest"]  # type: ignore[no-any-return]


def test_all_files_together_take_the_bytes_that_were_given(drawplate: Run, model: Path, text: Path) -> None:
    manifest = compiled(drawplate, model, text, "--budget", "160kB")
    total = sum(file["bytes"] for file in manifest["files"] if file["name"] != "allocation.json")  # no device loads it
    assert 0.9 * 160_000 < total <= 160_000
    assert "allocate-bits{budget=" in manifest["recipe"]


def test_time_on_a_device(drawplate: Run, model: Path, text: Path) -> None:
    manifest = compiled(drawplate, model, text, "--budget", "0.0022ms/token", "--device", "oneplus-12")
    assert any("of 0.0022 ms per token" in note for note in manifest["notes"])
    told = next(note for note in manifest["notes"] if note.startswith("on oneplus-12: "))
    assert 0.0015 < float(told.split()[2]) <= 0.0022


def test_a_plan_spends_it_too(drawplate: Run, model: Path) -> None:
    done = drawplate("plan", model, "-r", "allocated", "--budget", "7bpw", "--context", 64, "--json")
    found = json.loads(done.stdout)
    assert "budget=7bpw" in found["recipe"]
    assert any("bits per weight" in note for note in found["notes"])


@pytest.mark.parametrize("budget", ["1kB", "85kB"])  # too little for the weights, or for what is beside them
def test_the_least_that_is_named_is_enough(drawplate: Run, model: Path, budget: str) -> None:
    options = ["plan", model, "-r", "allocated", "--context", 64]
    done = drawplate(*options, "--budget", budget)
    assert done.returncode == 1
    assert f"a budget of {float(budget[:-2]):.2f} kB cannot be met" in done.stderr
    least = done.stderr.split("give at least ")[1].split(",")[0]
    assert drawplate(*options, "--budget", least).returncode == 0


@pytest.mark.parametrize("command", ["compile", "plan"])
def test_a_recipe_of_fixed_bits_cannot_spend_time(drawplate: Run, command: str) -> None:
    done = drawplate(command, "no/model", "-r", "8da8w", "--budget", "12ms/token", "--device", "oneplus-12")
    assert done.returncode == 1
    assert done.stderr == (
        "no pass of the recipe can spend a budget of 12ms/token\n"
        "  where: recipe 8da8w\n"
        "  why:   its bits are fixed; all that can be asked of its files is not to be larger than so many bytes\n"
        "  do:    use a recipe with allocate-bits, such as 'allocated'; 'plan --device' says what others take\n"
    )


def test_time_needs_a_device(drawplate: Run) -> None:
    done = drawplate("compile", "no/model", "-r", "allocated", "--budget", "12ms/token")
    assert done.returncode == 1
    assert done.stderr == (
        "the budget cannot be spent\n"
        "  where: budget=12ms/token\n"
        "  why:   budget=12ms/token is time on a device: name it, as in device=oneplus-12\n"
    )
