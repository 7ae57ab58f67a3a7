"""The kit catches what it is there to catch: passes and backends that break their word, one kind each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from flowkit import ScaleWeights, TellLies

from drawplate.backendbase import Backend, ByteRow, Emission, weight_rows
from drawplate.encoding import QTensor
from drawplate.errors import Refusal, RuntimeMissing
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.runtime import ProgramRunner
from drawplate.sources.source import Assets
from drawplate.target import Target
from drawplate.testing import (
    byte_reasons,
    check_backend,
    check_golden,
    check_pass,
    compare_golden,
    read_golden,
    text_reasons,
)
from drawplate.text import parse_program

TEXT = """\
// drawplate text 1
program lm(%ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 16 {
  weight @embed : f32[12, 8] = seed(2)
  weight @up.weight : f32[8, 8] = seed(1)
  %0 : f32[b, s, 8] = aten.embedding(@embed, %ids)  // embed
  %1 : f32[b, s, 8] = aten.linear(%0, @up.weight)  // up
  %2 : f32[b, s, 12] = aten.linear(%1, @embed)  // head
  return %2
}"""


# Passes


@dataclass(frozen=True)
class WriteBehindTheCounter(Pass):
    """Writes to a weight in a way that torch does not count."""

    name: ClassVar[str] = "write-behind-the-counter"

    def run(self, program: Program, env: Env) -> Program:
        weight: Any = program.weights["up.weight"]
        weight.numpy()[0, 0] += 1
        return program.edit().finish()


@dataclass(frozen=True)
class Drift(Pass):
    """Gives something else each time it runs."""

    name: ClassVar[str] = "drift"
    runs: ClassVar[Iterator[int]] = itertools.count()
    what: str = "contents"

    def run(self, program: Program, env: Env) -> Program:
        run = next(self.runs)
        edit = program.edit()
        match self.what:
            case "contents":
                edit.weights["up.weight"] = torch.full((8, 8), float(run))
            case "structure":
                (first, *_) = edit.nodes(torch.ops.aten.linear.default)
                first.meta["site"] = f"up.{run}"
            case "refusals":
                env.refuse(Refusal("up", "", f"run {run}"))
        return edit.finish()


def test_an_honest_pass_passes_and_its_outcome_comes_back():
    outcome = check_pass(ScaleWeights(by=2.0), TEXT)
    assert [c.pass_name for c in outcome.certificates] == ["scale-weights"]
    assert float(outcome.program.weights["embed"].abs().max()) == 0.5


def test_a_program_may_be_given_instead_of_its_text():
    check_pass(ScaleWeights(), parse_program(TEXT), seed=3)


@pytest.mark.parametrize(
    ("pass_", "why"),
    [
        (WriteBehindTheCounter(), "pass 'write-behind-the-counter':\n  - it changed the program that it was given"),
        (Drift(), "two runs differ in up.weight"),
        (Drift(what="structure"), "two runs differ: value 1"),
        (Drift(what="refusals"), "two runs refuse different things"),
        (TellLies(how="raises"), "there is no seventh layer"),
        (TellLies(how="provides"), "claims to provide 'weights.scaled', which does not hold"),
        (TellLies(how="illegal"), "leaves a program that is not legal"),
    ],
)
def test_a_pass_that_breaks_its_word(pass_, why):
    with pytest.raises(AssertionError) as caught:
        check_pass(pass_, TEXT)
    assert why in str(caught.value)


def test_a_program_that_cannot_be_written_down():
    program = parse_program(TEXT)
    next(program.nodes()).target = torch.relu
    (reason,) = text_reasons(program)
    assert reason.startswith("its text does not parse: no operator is called 'python.torch.relu'")


# Backends


@dataclass(frozen=True)
class Bytes(Backend):
    """Writes the program's text and its weights, and runs them; `lie` says how it breaks its word."""

    name: ClassVar[str] = "bytes"
    target: ClassVar[Target] = Target("bytes", {})
    lie: str = ""
    runs: ClassVar[Iterator[int]] = itertools.count()

    def check(self, program: Program) -> list[Refusal]:
        return (
            [Refusal("up", "aten.linear", "not today"), Refusal("head", "aten.linear", "nor this")]
            if self.lie == "check"
            else []
        )

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        (into / "graph.txt").write_text(str(program))
        tensors = {k: w.dequantize() if isinstance(w, QTensor) else w for k, w in program.weights.items()}
        wrong = 1.5 if self.lie == "runs" else 1.0
        blobs = [(w * wrong).numpy().tobytes() for w in tensors.values()]
        (into / "weights.bin").write_bytes(b"".join(blobs))
        if self.lie == "drift":
            (into / "graph.txt").write_text(str(program) + "\n" * next(self.runs))
        if self.lie == "unlisted":
            (into / "more").touch()
        if self.lie == "writes":
            tensors["embed"].numpy()[:] = 0
        size = (into / "graph.txt").stat().st_size
        rows = [replace(r, file="weights.bin") for r in weight_rows(program)]
        rows = rows[1:] if self.lie == "row" else rows
        rows.append(ByteRow("graph", "graph", "", "graph.txt", size + (self.lie == "count")))
        files = (into / "graph.txt", into / "weights.bin")
        return Emission((*files, into / "ghost") if self.lie == "ghost" else files, tuple(rows))

    def open(self, folder: Path) -> ProgramRunner:
        if self.lie == "none here":
            raise RuntimeMissing("no runtime here")
        program = parse_program((folder / "graph.txt").read_text())
        numbers = torch.frombuffer(bytearray((folder / "weights.bin").read_bytes()), dtype=torch.float32)
        parts = numbers.split([w.shape.numel() for w in program.weights.values()])
        weights = {n: p.view(w.shape) for (n, w), p in zip(program.weights.items(), parts, strict=True)}
        return ProgramRunner(replace(program, weights=weights))


def test_an_honest_backend_passes_and_runs(tmp_path):
    emission = check_backend(Bytes(), TEXT, tmp_path)
    assert {row.file for row in emission.bytes} == {"graph.txt", "weights.bin"}
    assert (tmp_path / "artifact" / "weights.bin").is_file()


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("check", "backend 'bytes' refuses:\n  - up (aten.linear): not today\n  - head (aten.linear): nor this"),
        ("drift", "two emissions differ in graph.txt"),
        ("unlisted", "more is there and not listed"),
        ("ghost", "ghost is listed and not there"),
        ("row", "no row is of weight"),
        ("count", "the rows of graph.txt add up to"),
        ("writes", "it changed the program that it was given"),
        ("runs", "token by token, its logits differ from the program's by"),
    ],
)
def test_a_backend_that_breaks_its_word(lie, why, tmp_path):
    with pytest.raises(AssertionError) as caught:
        check_backend(Bytes(lie), TEXT, tmp_path)
    assert why in str(caught.value)


def test_without_a_runtime_there_is_no_parity(tmp_path):
    check_backend(Bytes("none here"), TEXT, tmp_path)


def test_every_wrong_byte_is_told(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    rows = (
        ByteRow("w", "weight", "f32", "a", 6),
        ByteRow("p", "padding", "", "a", -2),
        ByteRow("s", "state", "", "a", 1),
    )
    program: Any = SimpleNamespace(weights={"w": 0, "v": 0})
    assert byte_reasons(Emission((tmp_path / "a",), rows), tmp_path, program) == [
        "the row 'p' has -2 bytes",
        "the row 's' of role state is in file 'a'",
        "no row is of weight v",
    ]


# Golden files


def case(tmp_path: Path, *sections: str) -> Path:
    path = tmp_path / "case.txt"
    path.write_text("\n-----\n".join(sections) + "\n")
    return path


def test_a_golden_file_is_compared_to_the_letter(tmp_path):
    path = case(tmp_path, "given", "one\ntwo")
    compare_golden(path, "one\ntwo\n")
    with pytest.raises(AssertionError, match=r"(?s)is not what came.*-two\n\+three"):
        compare_golden(path, "one\nthree")
    assert read_golden(path) == ["given", "one\ntwo"]


def test_updating_rewrites_and_still_fails(tmp_path):
    path = case(tmp_path, "given", "one")
    with pytest.raises(AssertionError, match="was rewritten: look at the change"):
        compare_golden(path, "two", update=True)
    assert path.read_text() == "given\n-----\ntwo\n"
    compare_golden(path, "two", update=True)


REGISTRY: Any = SimpleNamespace(passes={p.name: p for p in (ScaleWeights, TellLies, Drift)}, backends={}, recipes={})


def test_a_golden_case_runs_its_recipe(tmp_path):
    scaled = str(check_pass(ScaleWeights(by=2.0), TEXT).program)
    check_golden(case(tmp_path, TEXT, "scale-weights,scale-weights{by=2.0}", scaled), REGISTRY)


def test_a_golden_case_may_end_in_an_error(tmp_path):
    path = case(tmp_path, TEXT, "tell-lies{how=raises}", "?")
    with pytest.raises(AssertionError, match="was rewritten"):
        check_golden(path, REGISTRY, update=True)
    assert "IndexError: there is no seventh layer" in read_golden(path)[-1]


def test_a_golden_case_does_not_hide_what_the_kit_finds(tmp_path):
    with pytest.raises(AssertionError, match="two runs differ"):
        check_golden(case(tmp_path, TEXT, "drift", "?"), REGISTRY, update=True)
