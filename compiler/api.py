"""compile(), compress() and plan(): the whole story on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import platformdirs
from torch import nn

from drawplate.artifact import MANIFEST, Artifact, finish
from drawplate.backendbase import Backend, Fallback
from drawplate.cache import Cache
from drawplate.calibration import Calibration
from drawplate.canonical import canonicalise
from drawplate.capture import Assets, Captured, capture
from drawplate.device import Device
from drawplate.digest import program_digest
from drawplate.errors import BackendError, DrawplateError, Refusal, grouped
from drawplate.files import new_folder, refuse_existing, refuse_full_disk
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.metrics import metrics_folder
from drawplate.options import spec
from drawplate.passbase import Env, Pass, Progress, cannot_be_done
from drawplate.planning import Plan, file_bytes, refuse_over_budget
from drawplate.plugins.manager import Session
from drawplate.program import Program
from drawplate.progress import quiet
from drawplate.ranks import joined, leads, wait
from drawplate.recipe import Recipe
from drawplate.records import Record
from drawplate.rehearsal import facts_that_hold, in_memory, predicted_peak, rehearse, without_contents
from drawplate.roofline import estimate
from drawplate.runner import run_passes
from drawplate.schedule import Schedule, schedule
from drawplate.sources.outline import capture_outline
from drawplate.spending import budgeted, fitted, refuse_slower
from drawplate.verifying import Verified, WholeText
from drawplate.verifying import verify as verify_artifact

Model = str | Path | nn.Module | Captured
DEFAULT_RECIPE = "meta-8da4w"


@joined()
def compile(
    model: Model,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    backend: str | None = None,
    *,
    out: str | Path,
    budget: int | str | None = None,
    device: str | Path | None = None,
    calibration: Calibration | None = None,
    session: Session | None = None,
    overwrite: bool = False,
    fail_on_fallback: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    metrics: str | Path | None = None,
    cache: Cache | Path | Literal[False] | None = None,
) -> Artifact:
    """Compile a model into a folder of files that a stock runtime loads.

    model: a Hugging Face folder or hub name, a GGUF file, a transformers model, or what capture() made of any module.
    recipe: a preset's name, a .toml file, or the text form. backend: `name` or `name{option=..}`, instead of the
    recipe's. budget: bytes that the files a device needs may take together ("90 MB" too), so without the manifest and
    the records beside it; a pass that allocates spends it, and knows "4.25bpw" and "12ms/token" besides. device: whose
    time is meant: a shipped one's name, or a .toml file. overwrite: replace an artifact that is there.
    fail_on_fallback: refuse an artifact of which any op runs outside the backend's fast path. verify: run it on this
    host and hold it against its program, position by position; the result, or why there is none, is in the manifest.
    say: told at once what a person should know meanwhile, such as the memory that a training takes.
    metrics: a folder for the losses of what is trained, as JSON lines and for TensorBoard; see metrics.py.
    cache: a folder for slow results (None: the user's cache folder, False: none).
    Raises DrawplateError; then nothing is left behind.
    """
    session, out, env = session or Session(), Path(out), Env(calibration=calibration, progress=progress or quiet)
    refuse_existing(out, overwrite=overwrite, mark=MANIFEST)
    env.metrics, env.say = metrics_folder(metrics), say or env.say
    recipe, chosen = _choose(recipe, backend, session)
    recipe, limit = budgeted(recipe, budget, device)
    runs_on = None if device is None else Device.load(device)
    env.seed, env.target = recipe.seed, chosen.target
    _check_env(recipe.passes, env)
    captured = _open(model, session)
    program, assets = captured.program, captured.assets
    recipe = _fit(recipe, chosen, program, assets, limit)
    steps = _schedule(recipe, chosen, program)
    _ask_beforehand(chosen, program, assets, steps, env, limit, out)
    whole = WholeText()
    observers = (*session.observers(recipe), whole)
    outcome = run_passes(program, steps.order, env, _cache(cache), observers, crashes=_crashes())
    _refuse(chosen, chosen.refusals(outcome.program, assets))
    if not leads():
        wait()
        return Artifact.load(out)
    with new_folder(out, overwrite=overwrite, mark=MANIFEST) as folder:
        emission = chosen.emit(outcome.program, folder, assets)
        refuse_over_budget(file_bytes(emission.bytes), limit, emission.bytes)
        _refuse_fallbacks(chosen, emission.fallbacks if fail_on_fallback else ())
        verified = verify_artifact(whole.program, outcome.program, chosen, folder, assets) if verify else Verified()
        manifest = finish(
            folder,
            outcome,
            emission,
            source_digest=program_digest(program),
            recipe=recipe,
            passes=map(spec, steps.order),
            plugins=_plugins(session, steps, chosen),
            calibration=calibration,
            parity=verified.parity,
            notes=(*captured.notes, *outcome.told, *verified.notes, *_timed(outcome.program, runs_on)),
        )
    wait()
    return Artifact(out, manifest, outcome.timings, outcome.notes)


@joined()
def compress(
    model: Model | Program,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    *,
    calibration: Calibration | None = None,
    session: Session | None = None,
    progress: Progress | None = None,
    metrics: str | Path | None = None,
    cache: Cache | Path | Literal[False] | None = None,
) -> Program:
    """The model after the recipe's passes, still reading a whole text at once: what its quality is measured on.

    Passes that compute the same through other inputs (a cache, a last position) are left out. Arguments as compile's.
    """
    session = session or Session()
    recipe = Recipe.load(recipe, session)
    target = recipe.make_backend(session).target if recipe.backend else None
    env = Env(seed=recipe.seed, target=target, calibration=calibration, progress=progress or quiet)
    env.metrics = metrics_folder(metrics)
    _check_env(recipe.passes, env)
    program = model if isinstance(model, Program) else _open(model, session).program
    steps = schedule(recipe.passes, facts_that_hold(program, recipe.passes), recipe.pinned)
    kept = on_whole_texts(steps.order)
    return run_passes(program, kept, env, _cache(cache), session.observers(recipe), crashes=_crashes()).program


def on_whole_texts(passes: Iterable[Pass]) -> list[Pass]:
    """Without the passes that compute the same through other inputs, such as a cache or a last position."""
    return [p for p in passes if SAME_FUNCTION not in p.promises or SIGNATURE in p.promises]


def plan(
    model: Model,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    backend: str | None = None,
    *,
    budget: int | str | None = None,
    device: str | Path | None = None,
    session: Session | None = None,
) -> Plan:
    """What compile() would do, without loading weights: the order with its reasons, the bytes, the peak memory.

    device: where to estimate the time as well: a shipped one's name, or a .toml file. Other arguments as compile's.
    Raises DrawplateError for what compile() would refuse before it loads anything.
    """
    session = session or Session()
    recipe, chosen = _choose(recipe, backend, session)
    recipe, limit = budgeted(recipe, budget, device)
    runs_on = None if device is None else Device.load(device)
    opened = _open(capture_outline(model, session) if isinstance(model, str | Path) else model, session)
    program, assets = without_contents(opened.program), opened.assets
    recipe = _fit(recipe, chosen, program, assets, limit)
    steps = _schedule(recipe, chosen, program)
    env = Env(seed=recipe.seed, target=chosen.target)
    rehearsal = rehearse(program, steps.order, env)
    refuse_slower(steps.order, rehearsal.program)
    refusals, rows = rehearsal.ask(chosen, assets)
    return Plan(
        recipe=recipe,
        schedule=steps,
        steps=rehearsal.steps,
        bytes=rows,
        refusals=tuple(env.refusals),
        backend_refusals=tuple(refusals),
        source_bytes=in_memory([program]),
        peak_memory_bytes=predicted_peak(program, rehearsal.steps),
        budget_bytes=limit,
        notes=(*env.told, *rehearsal.notes),
        time=estimate(rehearsal.program, runs_on) if runs_on and rehearsal.program else None,
    )


def _choose(recipe: str | Path | Recipe, backend: str | None, session: Session) -> tuple[Recipe, Backend]:
    """The recipe, for the backend that was asked for if one was."""
    loaded = Recipe.load(recipe, session)
    loaded = loaded.retarget(backend, session) if backend else loaded
    return loaded, loaded.make_backend(session)


def _check_env(passes: Iterable[Pass], env: Env) -> None:
    """Let each pass say what it lacks, before a model is loaded. Raises PassError."""
    for pass_ in passes:
        try:
            pass_.check_env(env)
        except DrawplateError as error:
            raise cannot_be_done(pass_, error) from error


def _open(model: Model, session: Session) -> Captured:
    """The model in canonical form, and what came with it."""
    captured = model if isinstance(model, Captured) else capture(model, session=session)
    return replace(captured, program=canonicalise(captured.program))


def _schedule(recipe: Recipe, backend: Backend, program: Program) -> Schedule:
    """The recipe's passes and then the backend's own, ordered by what they need."""
    passes = (*recipe.passes, *backend.legalise())
    return schedule(passes, facts_that_hold(program, passes), recipe.pinned)


def _timed(program: Program, device: Device | None) -> list[str]:
    """What the program is expected to take on the device, if one was named."""
    return [] if device is None else [str(estimate(program, device))]


def _fit(recipe: Recipe, backend: Backend, program: Program, assets: Assets, limit: int | None) -> Recipe:
    """The recipe with a budget that all files keep to, not only what the pass that spends it sees."""

    def rehearsed(tried: Recipe) -> tuple[int, list[Record]]:
        env = Env(tried.seed, backend.target)
        rows = rehearse(program, _schedule(tried, backend, program).order, env).ask(backend, assets)[1]
        return file_bytes(rows), env.records

    return fitted(recipe, limit, rehearsed)


def _ask_beforehand(
    backend: Backend, program: Program, assets: Assets, steps: Schedule, env: Env, budget: int | None, out: Path
) -> None:
    """Refuse now what would be refused after hours: by a pass, by the backend, or for want of room."""
    aside = Env(env.seed, env.target, env.calibration)
    rehearsal = rehearse(program, steps.order, aside)
    refuse_slower(steps.order, rehearsal.program)
    refusals, rows = rehearsal.ask(backend, assets)
    _refuse(backend, refusals)
    refuse_over_budget(file_bytes(rows), budget, rows)
    refuse_full_disk(out, file_bytes(rows))


def _plugins(session: Session, steps: Schedule, backend: Backend) -> dict[str, str]:
    """The distributions that brought the passes and the backend, with their versions; built-ins have drawplate's."""
    used = [("pass", p.name) for p in steps.order] + [("backend", backend.name)]
    owners = (session.owners[name] for name in used if name in session.owners)
    return {owner.distribution: owner.version for owner in owners if owner.distribution}


def _refuse(backend: Backend, refusals: list[Refusal]) -> None:
    """Raise with every reason, if there is any."""
    if refusals:
        raise BackendError(
            f"backend {backend.name!r} cannot hold this program",
            where=f"{len(refusals)} places",
            why="\n".join(grouped(refusals)),
            fix="change the recipe, or choose another backend",
        )


def _refuse_fallbacks(backend: Backend, fallbacks: tuple[Fallback, ...]) -> None:
    """Raise with every op that runs outside the fast path, if there is any."""
    if fallbacks:
        raise BackendError(
            f"not every op runs in the fast path of backend {backend.name!r}",
            why="\n".join(f"{f.op} ({f.count} times): {f.why}" for f in fallbacks),
            fix="change the model or the recipe, choose another backend, or leave out --fail-on-fallback "
            "(in Python, fail_on_fallback=True)",
        )


def _crashes() -> Path | None:
    """Where reproducers go: not beside the output, since nothing is left there. None where another process writes."""
    return platformdirs.user_cache_path("drawplate") / "crashes" if leads() else None


def _cache(cache: Cache | Path | Literal[False] | None) -> Cache | None:
    if cache is None:
        return Cache.default()
    return None if cache is False else cache if isinstance(cache, Cache) else Cache(Path(cache))
