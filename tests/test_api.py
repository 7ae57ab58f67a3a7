"""compile() and plan(): the whole way, with small passes and a backend that writes plain bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flowkit import Plain, RoundWeights, kit_session, mlp, tiny_disk

import drawplate
from drawplate.backendbase import Backend, ByteRow, Emission, Fallback
from drawplate.capture import Assets, Captured
from drawplate.errors import BackendError, DrawplateError, OutputError, PassError, RecipeError
from drawplate.passbase import Env, Pass
from drawplate.planning import parse_bytes, size
from drawplate.plugins import hookimpl
from drawplate.program import Program

SMALL = "scale-weights,round-weights -> plain"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes to the cache folder of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def model() -> Captured:
    return Captured(mlp(), Assets())


def compile_(model: Any, out: Path, recipe: str = SMALL, **options: Any) -> drawplate.Artifact:
    return drawplate.compile(model, recipe, out=out, session=options.pop("session", None) or kit_session(), **options)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "xdg")


def test_compile_leaves_an_artifact(model: Captured, tmp_path: Path) -> None:
    artifact = compile_(model, tmp_path / "out")
    assert names(tmp_path / "out") == ["manifest.json", "weights.bin"]
    assert artifact == drawplate.Artifact.load(tmp_path / "out")
    assert artifact.damage() == []
    assert artifact.manifest.passes == ("scale-weights", "round-weights")
    assert [c.pass_name for c in artifact.manifest.certificates] == ["scale-weights"]
    assert [t.pass_name for t in artifact.timings] == ["scale-weights", "round-weights"]


def test_the_same_again_is_the_same_bytes(model: Captured, tmp_path: Path) -> None:
    """With the cache and without it, in whatever process: the seed is the recipe's."""
    recipe = "add-noise,scale-weights,round-weights -> plain with{seed=3}"
    for name, cache in (("a", None), ("b", None), ("c", False)):
        compile_(model, tmp_path / name, recipe, cache=cache)
    files = {f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*")}
    assert len(files) == 2
    for file in files:
        assert len({(tmp_path / name / file).read_bytes() for name in "abc"}) == 1


def test_the_schedule_is_what_runs(model: Captured, tmp_path: Path) -> None:
    artifact = compile_(model, tmp_path / "out", "round-weights,scale-weights -> plain")
    assert artifact.manifest.passes == ("scale-weights", "round-weights")
    with pytest.raises(RecipeError, match="the recipe pins an order that does not work"):
        compile_(model, tmp_path / "other", "round-weights,scale-weights -> plain with{pinned=true}")


def test_a_backend_may_be_chosen_on_its_own(model: Captured, tmp_path: Path) -> None:
    artifact = drawplate.compile(model, "small", "plain{context=64}", out=tmp_path / "out", session=kit_session())
    assert artifact.manifest.backend == "plain{context=64}"
    assert artifact.manifest.recipe == "scale-weights,round-weights{block=1x64} -> plain{context=64}"
    assert artifact.manifest.recipe_name == "small"


def test_an_output_that_exists_is_refused_before_anything_is_done(model: Captured, tmp_path: Path) -> None:
    compile_(model, tmp_path / "out")
    with pytest.raises(OutputError, match="the output exists"):
        compile_(tmp_path / "no model", tmp_path / "out")
    compile_(model, tmp_path / "out", "scale-weights -> plain", overwrite=True)
    assert drawplate.Artifact.load(tmp_path / "out").manifest.passes == ("scale-weights",)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("recipe", "error", "what"),
    [
        ("scale-weights,round-weights{block=1x48} -> plain", PassError, "a group size of 48 does not divide"),
        ("round-weights -> plain", RecipeError, "the recipe lacks a pass"),
        (
            "scale-weights,round-weights -> plain{refuses=true}",
            BackendError,
            "backend 'plain' cannot hold this program",
        ),
        ("scale-weights -> plain{lies=1}", BackendError, "backend 'plain' does not account for what it wrote"),
        ("scale-weights,tell-lies{how=provides} -> plain", PassError, "claims to provide 'weights.scaled'"),
        ("scale-weights", RecipeError, "the recipe names no backend"),
    ],
)
def test_what_fails_leaves_nothing(
    model: Captured, tmp_path: Path, recipe: str, error: type[DrawplateError], what: str
) -> None:
    with pytest.raises(error, match=what):
        compile_(model, tmp_path / "deep" / "out", recipe)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_beforehand_and_while_writing(model: Captured, tmp_path: Path) -> None:
    """The artifact has 64 kB and a manifest; a disk of 64 kB holds the former only."""
    with tiny_disk(tmp_path / "disk") as disk:
        with pytest.raises(OutputError, match="the disk is full"):
            compile_(model, disk / "deep" / "out")
        (disk / "file").write_bytes(bytes(5000))
        with pytest.raises(OutputError, match="the output would not fit on its disk"):
            compile_(model, disk / "deep" / "out")
        assert names(disk) == ["file"]


def test_the_backend_gives_all_its_reasons(model: Captured, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        compile_(model, tmp_path / "out", "scale-weights,round-weights -> plain{refuses=true}")
    reasons = [line.strip() for line in caught.value.why.splitlines()]
    assert reasons == ["up.weight (weight): is integers", "down.weight (weight): is integers"]


def test_the_backend_is_asked_before_the_passes_run(model: Captured, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot hold"):
        compile_(
            model,
            tmp_path / "out",
            f"add-noise{{folder={tmp_path}}},scale-weights,round-weights -> plain{{refuses=true}}",
        )
    # The mark of one run, in the rehearsal.
    assert (tmp_path / "runs").read_text() == "x"


def test_a_crash_has_a_reproducer(model: Captured, tmp_path: Path) -> None:
    with pytest.raises(PassError) as caught:
        compile_(model, tmp_path / "out", "tell-lies{how=writes} -> plain")
    folder = Path(caught.value.fix.removeprefix("to see it again alone: drawplate replay "))
    assert folder.is_relative_to(tmp_path / "xdg")
    with pytest.raises(PassError, match="changed the program it was given"):
        drawplate.replay(folder, kit_session())


def test_a_budget_that_is_met_and_one_that_is_not(model: Captured, tmp_path: Path) -> None:
    compile_(model, tmp_path / "out", budget=65536)
    with pytest.raises(BackendError) as caught:
        compile_(model, tmp_path / "other", budget="60 kB")
    assert str(caught.value) == (
        "the files take 65.54 kB, the budget is 60.00 kB\n"
        "  where: weight, f32: 65.54 kB\n"
        "  why:   that is 5.54 kB too much, everything counted\n"
        "  do:    give a recipe with fewer bits or larger groups, or a larger budget"
    )


def test_a_budget_that_is_no_size_is_refused_before_the_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'lots' is neither bytes"):
        compile_(tmp_path / "no model", tmp_path / "out", budget="lots")
    with pytest.raises(RecipeError, match="'lots' is neither bytes"):
        drawplate.plan(tmp_path / "no model", SMALL, session=kit_session(), budget="lots")


@pytest.mark.parametrize(
    "recipe",
    [
        "fold-norms,rotate{kind=whip}",
        "quantize-weights{method=gptq}",
        "quantize-weights{method=signround}",
        "scale-channels",
        "allocate-bits{budget=4bpw}",
    ],
)
def test_a_missing_text_is_told_before_the_model_is_opened(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(PassError, match="a text, and there is none"):
        drawplate.compile("no such model", f"{recipe} -> xnnpack", out=tmp_path / "out")
    with pytest.raises(PassError, match="a text, and there is none"):
        drawplate.compress("no such model", recipe)
    assert not (tmp_path / "out").exists()


def test_sizes() -> None:
    assert [parse_bytes(t) for t in (12, "12", "1.5kB", "90 MB", "2 GiB", "3k", "7 b")] == [
        12,
        12,
        1500,
        90_000_000,
        2 << 30,
        3000,
        7,
    ]
    assert [size(n) for n in (12, 1500, 88_100_000, 3_000_000_000)] == ["12 bytes", "1.50 kB", "88.10 MB", "3.00 GB"]
    with pytest.raises(RecipeError, match="not a size: 'lots'"):
        parse_bytes("lots")


@dataclass(frozen=True)
class Interrupted(Plain):
    """Is interrupted half-way through its file."""

    name: ClassVar[str] = "interrupted"

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        (into / "weights.bin").write_bytes(b"half")
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Patchy(Plain):
    """Has an op that it does not run fast. hides: does not say beforehand how many bytes there will be."""

    name: ClassVar[str] = "patchy"
    hides: bool = False

    def predict(self, program: Program, assets: Assets) -> tuple[ByteRow, ...]:
        return () if self.hides else super().predict(program, assets)

    def emit(self, program: Program, into: Path, assets: Assets) -> Emission:
        fallback = Fallback("aten.silu", 1, 0.0, 0.01, "no kernel for it")
        return replace(super().emit(program, into, assets), fallbacks=(fallback,))


@dataclass(frozen=True)
class Finishing(Plain):
    """Brings a last pass of its own."""

    name: ClassVar[str] = "finishing"

    def legalise(self) -> tuple[Pass, ...]:
        return (RoundWeights(bits=8),)


class More:
    @hookimpl
    def drawplate_backends(self) -> list[type[Backend]]:
        return [Interrupted, Patchy, Finishing]

    @hookimpl
    def drawplate_observers(self, recipe: drawplate.Recipe) -> Iterator[object]:
        class Watcher:
            def before(self, pass_: Pass, program: Program) -> None:
                print(f"before {pass_.name} of {recipe}")  # noqa: T201

            def after(self, pass_: Pass, program: Program, timing: object) -> None:
                raise ValueError("after")

        yield Watcher()


def test_an_interrupt_while_writing_leaves_nothing(model: Captured, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compile_(model, tmp_path / "deep" / "out", "scale-weights -> interrupted", session=kit_session(more=More()))
    assert names(tmp_path) == []


def test_fallbacks_are_reported_and_may_be_forbidden(model: Captured, tmp_path: Path) -> None:
    session = kit_session(more=More())
    artifact = compile_(model, tmp_path / "out", "scale-weights -> patchy", session=session)
    assert artifact.manifest.fallbacks[0].share_macs == 0.01
    with pytest.raises(BackendError) as caught:
        compile_(model, tmp_path / "b", "scale-weights -> patchy", session=session, fail_on_fallback=True)
    assert str(caught.value) == (
        "not every op runs in the fast path of backend 'patchy'\n"
        "  why:   aten.silu (1 times): no kernel for it\n"
        "  do:    change the model or the recipe, choose another backend, or leave out --fail-on-fallback "
        "(in Python, fail_on_fallback=True)"
    )
    assert names(tmp_path) == ["out"]


def test_what_is_refused_anyway_is_not_verified_first(
    model: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: object) -> object:
        raise AssertionError("the artifact was run")

    monkeypatch.setattr("drawplate.api.verify_artifact", verify)
    session = kit_session(more=More())
    options: dict[str, Any] = {"session": session, "verify": True}
    with pytest.raises(BackendError, match="not every op runs in the fast path"):
        compile_(model, tmp_path / "a", "scale-weights -> patchy", fail_on_fallback=True, **options)
    with pytest.raises(BackendError, match=r"the budget is 60\.00 kB"):
        compile_(model, tmp_path / "b", "scale-weights -> patchy{hides=true}", budget="60 kB", **options)


def test_the_backends_own_passes_come_last(model: Captured, tmp_path: Path) -> None:
    artifact = compile_(model, tmp_path / "out", "scale-weights -> finishing", session=kit_session(more=More()))
    assert artifact.manifest.passes == ("scale-weights", "round-weights{bits=8}")


def test_plugins_watch(model: Captured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = compile_(model, tmp_path / "out", "scale-weights -> plain", session=kit_session(more=More()))
    assert capsys.readouterr().out == "before scale-weights of scale-weights -> plain\n"
    assert artifact.log == ("observer Watcher failed after 'scale-weights': ValueError: after",)


def test_the_manifest_says_why_nothing_was_verified(model: Captured, tmp_path: Path) -> None:
    asked = compile_(model, tmp_path / "asked", verify=True)
    why = "not verified: the program has no cache, so nothing can be generated to compare"
    assert drawplate.Artifact.load(asked.folder).manifest.notes == ("plain bytes", why)
    assert asked.manifest.parity == {}
    assert compile_(model, tmp_path / "not asked").manifest.notes == ("plain bytes",)


# plan


def test_a_plan_is_what_then_happens(model: Captured, tmp_path: Path) -> None:
    plan = drawplate.plan(model, SMALL, session=kit_session(), budget=60000)
    artifact = compile_(model, tmp_path / "out")
    assert {r.name: r.bytes for r in plan.bytes} == {r.name: r.bytes for r in artifact.manifest.bytes}
    assert plan.file_bytes == artifact.manifest.file_bytes
    assert [s.pass_ for s in plan.steps] == list(artifact.manifest.passes)
    assert plan.over_budget_bytes == 5536
    assert plan.steps[-1].weight_bytes == 2 * (128 * 64 + 2 * 4 * 128 * 2)
    assert plan.peak_memory_bytes > plan.source_bytes == 2 * 4 * 128 * 64
    assert str(plan).splitlines()[:6] == [
        "recipe: scale-weights,round-weights -> plain",
        "1. scale-weights",
        "2. round-weights",
        "     scale-weights provides 'weights.scaled'",
        "weight, f32: 65.54 kB",
        "files: 65.54 kB, of weights that take 65.54 kB now",
    ]
    assert plan.as_json()["file_bytes"] == 65536


def test_a_plan_shows_refusals(model: Captured) -> None:
    recipe = "scale-weights,round-weights{skip=[up.weight]} -> plain{refuses=true}"
    plan = drawplate.plan(model, recipe, session=kit_session())
    assert [str(r) for r in plan.refusals] == ["up.weight: the recipe skips it"]
    assert [str(r) for r in plan.backend_refusals] == ["down.weight (weight): is integers"]


def test_a_plan_says_where_it_does_not_know(model: Captured) -> None:
    @dataclass(frozen=True)
    class Peek(Pass):
        """Decides by the contents."""

        name: ClassVar[str] = "peek"

        def run(self, program: Program, env: Env) -> Program:
            w = program.weights["up.weight"]
            assert isinstance(w, torch.Tensor)
            return program if w.abs().max() > 1 else program.edit().finish()

    class Brings:
        @hookimpl
        def drawplate_passes(self) -> list[type[Pass]]:
            return [Peek]

    plan = drawplate.plan(model, "scale-weights,peek,round-weights -> plain", session=kit_session(peek=Brings()))
    assert plan.notes[0].startswith("what follows 'peek' is not known beforehand: it looks at the weights")
    assert plan.bytes == ()
    assert [s.pass_ for s in plan.steps] == [p.name for p in plan.schedule.order][: len(plan.steps)]
    assert len(plan.steps) < 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with 30 MB of weights as transformers writes it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    return place


def test_a_plan_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((folder / "config.json").read_bytes())
    plan = drawplate.plan(bare, SMALL, session=kit_session())
    artifact = compile_(folder, tmp_path / "out")
    assert {r.name: r.bytes for r in plan.bytes} == {r.name: r.bytes for r in artifact.manifest.bytes}


def test_a_plan_of_a_large_model_takes_little_memory(folder: Path, tmp_path: Path) -> None:
    """The same model 16 times as wide: 30 GB of weights, planned in a process that may not hold them."""
    text = (folder / "config.json").read_text().replace('"hidden_size": 512', '"hidden_size": 8192')
    text = text.replace('"intermediate_size": 1024', '"intermediate_size": 28672').replace(
        '"vocab_size": 4096', '"vocab_size": 128256'
    )
    big = tmp_path / "big"
    big.mkdir()
    (big / "config.json").write_text(text)
    code = f"""
import resource, drawplate
from flowkit import kit_session
plan = drawplate.plan({str(big)!r}, {SMALL!r}, session=kit_session())
print(plan.source_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    source, peak = map(int, done.stdout.split())
    assert source > 8 << 30
    assert peak < 2 << 30


# the package


def test_public_names_are_there_and_lazy() -> None:
    code = """
import sys, drawplate
assert not {"torch", "networkx", "transformers"} & set(sys.modules)
for name in drawplate.__all__:
    assert getattr(drawplate, name) is not None, name
assert set(drawplate.__all__) <= set(dir(drawplate))
try:
    drawplate.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "module 'drawplate' has no attribute 'nothing'\n"


def test_type_checkers_see_the_same_names() -> None:
    text = Path(drawplate.__file__).read_text()
    imported = {line.split()[-1] for line in text.splitlines() if line.startswith("    from drawplate.")}
    assert imported == set(drawplate.__all__)
