"""compile, plan, bench, replay: from a model to an artifact that runs, on the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_plan_says_the_order_the_bytes_and_the_memory(drawplate: Run, model: Path) -> None:
    done = drawplate("plan", model, "--context", 64, "--budget", "2MB", "--json")
    found = json.loads(done.stdout)
    assert "context=64" in found["recipe"]
    assert found["schedule"][0].startswith("1. ")
    assert found["over_budget_bytes"] == 0
    assert 0 < found["file_bytes"] < 2_000_000
    shown = drawplate("plan", model, "--context", 64).stdout
    assert "bytes, as they will be" in shown
    assert "the compile takes about" in shown


def test_a_context_that_nothing_takes(drawplate: Run, model: Path) -> None:
    done = drawplate("plan", model, "--recipe", "cast -> xnnpack", "--context", 64)
    assert done.returncode == 1
    assert done.stderr == (
        "no part of the recipe has a context length to set\n"
        "  where: --context 64, recipe cast -> xnnpack\n"
        "  why:   no key-value cache is put into the program, so its length is the runtime's affair\n"
        "  do:    leave --context out\n"
    )


@pytest.mark.parametrize("command", ["compile", "plan"])
def test_a_budget_that_is_no_size_is_refused_before_anything_is_read(drawplate: Run, command: str) -> None:
    calibration = ["--calibration", "no/text.txt"] if command == "compile" else []
    done = drawplate(command, "no/model", "--budget", "90 pounds", *calibration)
    assert done.returncode == 1
    assert done.stderr == (
        "'90 pounds' is neither bytes (90MB), nor bits per weight (4.25bpw), nor time (12ms/token)\n"
    )


def test_an_unknown_recipe_offers_the_nearest(drawplate: Run, model: Path) -> None:
    done = drawplate("compile", model, "--recipe", "meta-8da4v")
    assert done.returncode == 1
    assert "no recipe and no pass is called 'meta-8da4v'" in done.stderr
    assert "do:    did you mean recipe 'meta-8da4w'?" in done.stderr


def test_from_the_model_to_text_out_of_the_artifact(drawplate: Run, model: Path, text: Path) -> None:
    made = drawplate("compile", model, "--context", 64, "-o", "out", "--save-ir", "ir", "--seed", 3, "--json")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["folder"] == "out"
    manifest = found["manifest"]
    assert manifest["seed"] == 3
    sizes = {f["name"]: f["bytes"] for f in manifest["files"]}
    assert sum(sizes.values()) == sum(row["bytes"] for row in manifest["bytes"] if row["file"])
    texts = sorted(p.name for p in Path("ir").iterdir())
    assert texts[0] == "00-captured.txt"
    assert len(texts) == 1 + len(manifest["passes"])

    again = drawplate("compile", model, "--context", 64, "-o", "out")
    assert again.returncode == 1
    assert "do:    choose another, or replace it: --overwrite on the command line" in again.stderr

    shown = drawplate("inspect", "out").stdout
    assert "certificates" in shown
    assert "quantize-weights" in shown

    answer = json.loads(drawplate("run", "out", "--prompt", "the wire", "-n", 3, "--json").stdout)
    assert 1 <= answer["tokens"] <= 3

    measured = json.loads(
        drawplate("eval", "out", "--original", model, "--text", text, "--length", 32, "--windows", 2, "--json").stdout
    )
    assert measured["text"]["out"]["against"]["kl"]["value"] < 0.1

    with Path("out", "model.pte").open("ab") as file:
        file.write(b"x")
    for command in (["run", "out", "-p", "a"], ["eval", "out", "--text", text], ["bench", "out"]):
        damaged = drawplate(*command)
        assert damaged.returncode == 1
        assert damaged.stderr.startswith("the artifact is damaged\n  where: out\n  why:   model.pte has ")


def test_metrics_of_what_is_trained(drawplate: Run, model: Path, text: Path) -> None:
    recipe = "quantize-weights{scale=bf16},train-scales{tokens=64,loss=loss},quantize-activations -> xnnpack"
    options = ["--calibration", text, "--calibration-tokens", 256, "--no-verify"]
    made = drawplate("compile", model, "-r", recipe, *options, "-o", "out", "--metrics", "said")
    assert made.returncode == 0, made.stderr
    found = [json.loads(line) for line in Path("said", "metrics.jsonl").read_text().splitlines()]
    assert {line["pass"] for line in found} == {"train-scales"}
    assert "train-scales takes about " in made.stderr
    for way, resumed in (("--resume", True), ("--no-cache", False)):
        again = drawplate("compile", model, "-r", recipe, *options, "-o", "out", "--overwrite", way, "--json")
        timings = {t["pass_name"]: t["resumed"] for t in json.loads(again.stdout)["timings"]}
        assert timings["train-scales"] == resumed
    assert json.loads(Path("out", "training.json").read_text())["losses"] == [x["loss"] for x in found if "loss" in x]


def test_what_was_not_verified_says_so(drawplate: Run, model: Path) -> None:
    made = drawplate("compile", model, "-r", "merge-linears -> xnnpack", "-o", "out")
    assert made.returncode == 0, made.stderr
    assert "not verified: the program has no cache, so nothing can be generated to compare\n" in made.stdout


@pytest.mark.slow
def test_bench_takes_ratios_to_the_baseline(drawplate: Run, model: Path) -> None:
    for name, recipe in (("four", "meta-8da4w"), ("float", "fp32")):
        assert drawplate("compile", model, "-r", recipe, "--context", 64, "-o", name).returncode == 0
    options = ["--rounds", 1, "--new-tokens", 4, "--prompt-tokens", 8]
    found = json.loads(drawplate("bench", "four", "--baseline", "float", *options, "--json").stdout)
    assert [r["name"] for r in found["rows"]] == ["float", "four"]
    assert found["ratios"]["four"]["decode_rate"]["median"] > 0
    assert "over float" in drawplate("bench", "four", "--baseline", "float", *options).stdout


def test_replay_of_something_else(drawplate: Run, tmp_path: Path) -> None:
    done = drawplate("replay", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("this is not a reproducer\n")
