"""The runner: what it checks, what it measures, and what it says of a pass that fails or lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowkit import AddNoise, RoundWeights, ScaleWeights, TellLies, kit_session, mlp, plain

from drawplate.calibration import Calibration
from drawplate.encoding import QTensor
from drawplate.errors import DrawplateError, PassError
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.reproducer import read_reproducer
from drawplate.runner import Timing, replay, run_passes
from drawplate.target import Target
from drawplate.text import parse_program, print_program


def test_passes_run_in_order_and_are_certified() -> None:
    env = Env()
    outcome = run_passes(mlp(), [ScaleWeights(), RoundWeights(skip=("up.weight",))], env)
    assert isinstance(outcome.program.weights["down.weight"], QTensor)
    assert [(c.pass_name, c.invariant, c.holds) for c in outcome.certificates] == [
        ("scale-weights", "same-shapes", True)
    ]
    assert [str(r) for r in outcome.refusals] == ["up.weight: the recipe skips it"]
    assert env.refusals == list(outcome.refusals)
    assert [t.pass_name for t in outcome.timings] == ["scale-weights", "round-weights"]
    assert all(t.seconds >= t.checks_seconds > 0 and t.peak_rss_bytes > 1 << 20 for t in outcome.timings)


def test_facts_are_those_provided_and_those_preserved() -> None:
    assert run_passes(mlp(), [ScaleWeights()], Env()).program.facts == {"weights.scaled"}
    assert run_passes(mlp(), [ScaleWeights(), AddNoise()], Env()).program.facts == frozenset()


def test_the_program_that_came_in_is_as_it_was() -> None:
    program = mlp()
    text, up = print_program(program), program.weights["up.weight"]
    run_passes(program, [ScaleWeights(), RoundWeights()], Env())
    assert print_program(program) == text
    assert program.weights["up.weight"] is up


def test_the_seed_decides_and_the_callers_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (plain(run_passes(mlp(), [AddNoise()], Env(seed=s)).program)["up.weight"] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("how", "what", "why"),
    [
        ("provides", "claims to provide 'weights.scaled', which does not hold", "up.weight reaches 5.91"),
        ("preserves", "claims to preserve 'weights.scaled', which no longer holds", "up.weight reaches 5.91"),
        ("keeps", "does not keep same-shapes", "up.weight; the error is 1, the bound 0"),
        ("changes", "changed the program it was given", "programs share tensors, so a pass makes new ones"),
        ("writes", "changed the program it was given", "programs share tensors, so a pass makes new ones"),
        ("illegal", "leaves a program that is not legal", "idle (weight): nothing reads it"),
        ("raises", "failed", "IndexError: there is no seventh layer"),
    ],
)
def test_a_pass_that_lies_is_caught_by_name_and_shown_again(tmp_path: Path, how: str, what: str, why: str) -> None:
    lie = TellLies(how)  # type: ignore[arg-type]
    with pytest.raises(PassError) as caught:
        run_passes(mlp(), [ScaleWeights(), lie], Env(), crashes=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert caught.value.what == f"pass 'tell-lies{{how={how}}}' {what}"
    assert caught.value.why == why
    assert caught.value.fix == f"to see it again alone: drawplate replay {folder}"
    with pytest.raises(PassError) as again:
        replay(folder, kit_session())
    assert again.value.what == caught.value.what


def test_a_crash_names_the_line_of_the_pass() -> None:
    with pytest.raises(PassError) as caught:
        run_passes(mlp(), [TellLies("raises")], Env())
    assert caught.value.where.startswith("flowkit.py:")
    assert caught.value.where.endswith(" in run")
    assert caught.value.fix == ""
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_requirement_is_looked_at_not_believed() -> None:
    """The text claims the fact; the weights do not bear it out."""
    text = (
        print_program(mlp())
        .replace(" where", " facts{weights.scaled} where")
        .replace("f32[128, 64]\n", "f32[128, 64] = seed(1)\n")
    )
    program = parse_program(
        text.replace("f32[64, 128]\n", "f32[64, 128] = [" + ",".join(["[" + ",".join(["3"] * 128) + "]"] * 64) + "]\n")
    )
    with pytest.raises(PassError) as caught:
        run_passes(program, [RoundWeights()], Env())
    assert caught.value.what == "pass 'round-weights' requires 'weights.scaled', which does not hold of its input"
    assert caught.value.why == "down.weight reaches 3.00"


def test_a_refusal_in_words_is_passed_on_and_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(PassError) as caught:
        run_passes(mlp(), [ScaleWeights(), RoundWeights(block=(1, 48))], Env(), crashes=tmp_path)
    assert caught.value.what.startswith(
        "pass 'round-weights{block=1x48}' cannot be done: a group size of 48 does not divide"
    )
    assert caught.value.fix.startswith("use a group of 16, 32, 64")
    assert list(tmp_path.iterdir()) == []


def test_an_illegal_program_is_not_taken() -> None:
    program = mlp()
    program.graph.erase_node(next(iter(reversed(program.graph.nodes))))
    with pytest.raises(PassError, match="the program that came in is not legal"):
        run_passes(program, [ScaleWeights()], Env())


def test_the_reproducer_holds_what_the_pass_could_see(tmp_path: Path) -> None:
    calibration = Calibration.of(torch.arange(12).view(2, 6), "a text")
    env = Env(seed=7, target=Target("plain", {}), calibration=calibration)
    with pytest.raises(PassError):
        run_passes(mlp(), [ScaleWeights(), RoundWeights(), TellLies("raises")], env, crashes=tmp_path)
    (folder,) = tmp_path.iterdir()
    program, pass_, again = read_reproducer(folder, kit_session())
    assert pass_ == TellLies("raises")
    assert (again.seed, again.target, again.calibration) == (7, env.target, calibration)
    assert again.calibration is not None
    assert torch.equal(again.calibration.windows, calibration.windows)
    rounded = run_passes(mlp(), [ScaleWeights(), RoundWeights()], Env()).program
    assert print_program(program) == print_program(rounded)
    for name, weight in rounded.weights.items():
        assert isinstance(weight, QTensor)
        assert torch.equal(program.weights[name].codes, weight.codes)  # type: ignore[union-attr]


def test_large_weights_are_left_out_of_the_reproducer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drawplate.reproducer.LIMIT_BYTES", 1000)
    with pytest.raises(PassError):
        run_passes(mlp(), [TellLies("raises")], Env(), crashes=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "weights.safetensors").exists()
    with pytest.raises(PassError, match="there is no seventh layer"):
        replay(folder, kit_session())


def test_failing_again_replaces_the_reproducer(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PassError):
            run_passes(mlp(), [TellLies("raises")], Env(), crashes=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PassError, match="there is no seventh layer") as caught:
        run_passes(mlp(), [TellLies("raises")], Env(), crashes=tmp_path / "file")
    assert caught.value.fix.startswith("a reproducer could not be written")


def test_what_is_no_reproducer(tmp_path: Path) -> None:
    with pytest.raises(DrawplateError, match="this is not a reproducer"):
        replay(tmp_path, kit_session())


class Watcher:
    """Notes what it is told; fails where it is asked to."""

    def __init__(self, fail: str = "") -> None:
        self.seen: list[tuple[str, str, int]] = []
        self._fail = fail

    def before(self, pass_: Pass, program: Program) -> None:
        self.seen.append(("before", pass_.name, len(program.encodings)))
        if self._fail == "before":
            raise RuntimeError("no screen")

    def after(self, pass_: Pass, program: Program, timing: Timing) -> None:
        self.seen.append(("after", pass_.name, len(program.encodings)))
        assert timing.pass_name == pass_.name


def test_observers_are_told_and_a_broken_one_is_noted() -> None:
    good, bad = Watcher(), Watcher("before")
    outcome = run_passes(mlp(), [ScaleWeights(), RoundWeights()], Env(), observers=[bad, good])
    assert good.seen == [
        ("before", "scale-weights", 0),
        ("after", "scale-weights", 0),
        ("before", "round-weights", 0),
        ("after", "round-weights", 2),
    ]
    assert outcome.notes == (
        "observer Watcher failed before 'scale-weights': RuntimeError: no screen",
        "observer Watcher failed before 'round-weights': RuntimeError: no screen",
    )


def test_progress_walks_over_the_passes() -> None:
    labels: list[tuple[str, int]] = []

    def progress(items: object, label: str) -> object:
        labels.append((label, len(items)))  # type: ignore[arg-type]
        return items

    run_passes(mlp(), [ScaleWeights(), RoundWeights()], Env(progress=progress))  # type: ignore[arg-type]
    assert labels == [("passes", 2)]
