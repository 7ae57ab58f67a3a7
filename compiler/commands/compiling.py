"""`drawplate compile`, `drawplate plan`, `drawplate replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drawplate.commands.models import read_calibration
from drawplate.commands.options import (
    SOURCE,
    AsJson,
    Budget,
    CalibrationFile,
    CalibrationTask,
    CalibrationTokens,
    Context,
    Device,
    Recipe,
    Seed,
    Source,
    Target,
)
from drawplate.commands.output import Output, percent, plain, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from drawplate.artifact import Artifact
    from drawplate.backendbase import ByteRow
    from drawplate.planning import Plan
    from drawplate.plugins.manager import Session
    from drawplate.recipe import Recipe as Chosen


def compile_(
    model: Source,
    recipe: Recipe = "meta-8da4w",
    backend: Target = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write (default: MODEL-RECIPE here).")
    ] = None,
    context: Context = None,
    budget: Budget = None,
    device: Device = None,
    calibration: CalibrationFile = None,
    calibration_tokens: CalibrationTokens = 32768,
    calibration_task: CalibrationTask = None,
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there.")] = False,
    fail_on_fallback: Annotated[
        bool, typer.Option("--fail-on-fallback", help="Refuse if any op runs outside the backend's fast path.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run the artifact here and hold it against its program.")
    ] = True,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for slow passes' results (default: the user's cache).")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-cache",
            help="Go on where a killed compile was, or neither read nor keep slow passes' results.",
        ),
    ] = True,
    save_ir: Annotated[
        Path | None, typer.Option("--save-ir", help="Folder for the program's text before and after each pass.")
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option("--metrics", help="Folder for the losses of what is trained: JSON lines, and for TensorBoard."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compress a model and write it for a device, with its byte table and certificates.

    Nothing is left behind if it fails or is interrupted; the same command goes on where it was, from its cache.
    """
    from drawplate.api import compile as compile_model
    from drawplate.commands.sessions import open_session
    from drawplate.ranks import leads
    from drawplate.spending import budgeted

    with Output(as_json, mute=not leads()) as out_:
        session = open_session(out_, save_ir)
        chosen = choose(recipe, backend, context, seed, session)
        budgeted(chosen, budget, device)  # it may be refused before the calibration text is read
        with out_.busy("compile"):
            artifact = compile_model(
                model,
                chosen,
                out=out or Path(f"{Path(model).resolve().name.removesuffix('.gguf')}-{chosen.name or 'compiled'}"),
                budget=budget,
                device=device,
                calibration=read_calibration(calibration, model, calibration_tokens, chosen.seed, calibration_task),
                session=session,
                overwrite=overwrite,
                fail_on_fallback=fail_on_fallback,
                verify=verify,
                progress=out_.progress,
                say=out_.note,
                metrics=metrics,
                cache=cache if resume else False,
            )
        data = {"folder": artifact.folder, "manifest": plain(artifact.manifest)}
        data |= {"timings": plain(artifact.timings), "log": plain(artifact.log)}
        out_.give(data, *artifact_tables(artifact), f"written to {artifact.folder}")


def plan(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=SOURCE)] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="NAME|FILE", help="Instead of MODEL: a shipped configuration, or a config.json."
        ),
    ] = None,
    recipe: Recipe = "meta-8da4w",
    backend: Target = None,
    context: Context = None,
    budget: Budget = None,
    device: Device = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Say what compile would do, without loading weights: passes with reasons, bytes, memory, what is refused.

    With --config there need be no weights at all: the bytes follow from the architecture and the recipe.
    """
    from drawplate.api import plan as plan_model
    from drawplate.commands.sessions import open_session
    from drawplate.sources.outline import capture_config

    with Output(as_json) as out:
        session = open_session(out)
        if (model is None) == (config is None):
            raise typer.BadParameter("give a MODEL or a --config, one of the two")
        with out.busy("plan"):
            chosen = choose(recipe, backend, context, seed, session)
            source = capture_config(config) if config else str(model)
            found = plan_model(source, chosen, budget=budget, device=device, session=session)
        out.give(found.as_json(), *_plan_tables(found))


def replay(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A reproducer, as an error named it.")],
    as_json: AsJson = False,
) -> None:
    """Run a pass that failed again, on what it was given. Exit code 1 if it still fails."""
    from drawplate.commands.sessions import open_session
    from drawplate.runner import replay as run_again

    with Output(as_json) as out:
        with out.busy("replay"):
            outcome = run_again(folder, open_session(out))
        data = {"certificates": plain(outcome.certificates), "refusals": plain(outcome.refusals)}
        out.give(data, _certificates(outcome.certificates), "it does not fail any more")


def choose(recipe: str, backend: str | None, context: int | None, seed: int | None, session: Session) -> Chosen:
    """The recipe with what the command line says on top. Raises RecipeError."""
    from dataclasses import replace

    from drawplate.recipe import Recipe

    chosen = Recipe.load(recipe, session)
    chosen = chosen.retarget(backend, session) if backend else chosen
    chosen = chosen if seed is None else replace(chosen, seed=seed)
    return chosen if context is None else _with_context(chosen, context, session)


def _with_context(recipe: Chosen, context: int, session: Session) -> Chosen:
    """The recipe with this length in every pass, and in the backend, that has an option `context`."""
    from dataclasses import replace

    from drawplate.errors import RecipeError
    from drawplate.options import options_of

    def takes(thing: object) -> bool:
        return "context" in options_of(type(thing))

    passes = tuple(replace(p, context=context) if takes(p) else p for p in recipe.passes)  # type: ignore[type-var]
    changed = replace(recipe, passes=passes)
    backend = recipe.make_backend(session)
    if takes(backend):
        changed = changed.on(replace(backend, context=context))  # type: ignore[type-var]
    elif not any(map(takes, passes)):
        raise RecipeError(
            "no part of the recipe has a context length to set",
            where=f"--context {context}, recipe {recipe}",
            why="no key-value cache is put into the program, so its length is the runtime's affair",
            fix="leave --context out",
        )
    return changed


def artifact_tables(artifact: Artifact) -> list[RenderableType]:
    """What a person wants to know of an artifact: bytes, certificates, fallbacks, refusals, notes."""
    from drawplate.errors import grouped
    from drawplate.planning import size

    m = artifact.manifest
    shown: list[RenderableType] = [
        f"{m.model}: {m.recipe}",
        _bytes(f"bytes: {size(m.file_bytes)} in {len(m.files)} files", m.bytes, m.file_bytes),
    ]
    if m.certificates:
        shown.append(_certificates(m.certificates))
    if artifact.timings:
        passes = [
            (t.pass_name, f"{t.seconds:.1f} s", size(t.peak_rss_bytes), "from the cache" * t.resumed)
            for t in artifact.timings
        ]
        shown.append(table("passes", ("pass", "time", "peak RSS", ""), passes))
    if m.fallbacks:
        fallbacks = [(f.op, f.count, percent(f.share_bytes), percent(f.share_macs), f.why) for f in m.fallbacks]
        columns = ("op", "times", "weight bytes", "multiply-adds", "why")
        shown.append(table("outside the fast path", columns, fallbacks))
    if m.parity:
        shown.append(_parity(m.parity))
    shown += [f"not done: {line}" for line in grouped(m.refusals)]
    return [*shown, *m.notes, *artifact.log]


def _bytes(title: str, rows: Iterable[ByteRow], total: int) -> RenderableType:
    """The byte table by kind; what takes nothing is left out."""
    from drawplate.planning import by_kind, size

    kinds = [
        (kind, size(n), "in memory" if kind.startswith("state") else percent(n / max(total, 1)))
        for kind, n in by_kind(rows).items()
        if n
    ]
    return table(title, ("what", "size", "share of the files"), kinds)


def _plan_tables(plan: Plan) -> list[RenderableType]:
    from drawplate.errors import grouped
    from drawplate.planning import size

    lines = []
    if plan.budget_bytes is not None:
        over, spare = plan.over_budget_bytes, plan.budget_bytes - plan.file_bytes
        lines.append(
            f"budget: {size(plan.budget_bytes)}, {f'over by {size(over)}' if over else f'{size(spare)} to spare'}"
        )
    lines.append(
        f"weights of the model: {size(plan.source_bytes)}; the compile takes about {size(plan.peak_memory_bytes)}"
    )
    lines += [str(plan.time)] if plan.time else []
    lines += [f"not done: {line}" for line in grouped(plan.refusals)]
    lines += [f"refused by the backend: {line}" for line in grouped(plan.backend_refusals)]
    shown: list[RenderableType] = [f"recipe: {plan.recipe}", plan.schedule.explain()]
    if plan.bytes:
        shown.append(_bytes(f"bytes, as they will be: {size(plan.file_bytes)} in files", plan.bytes, plan.file_bytes))
    return [*shown, *lines, *plan.notes]


def _parity(parity: Mapping[str, Any]) -> RenderableType:
    """The artifact's logits against its program's, with what rounding alone does."""
    labels = {"stepwise": "token by token", "prefill": "a prompt at once", "floor": "program, f32 against f64"}
    figures = ("positions", "relative_median", "relative_max")
    rows = [
        (label, *(f"{parity[key][figure]:.3g}" for figure in figures), percent(parity[key]["agreement"]))
        for key, label in labels.items()
        if key in parity
    ]
    same = f"{parity['equal']} of {parity['prompts']} prompts continue alike for {parity['new_tokens']} tokens"
    different = "".join(f"; {d}" for d in parity["differences"])
    columns = ("fed", "positions", "logits differ by (median)", "at most", "same top token")
    return table(f"artifact against program: {same}{different}", columns, rows)


def _certificates(certificates: Any) -> RenderableType:
    rows = [
        (c.pass_name, c.invariant, "holds" if c.holds else "FAILS", f"{c.error:.3g}", f"{c.bound:.3g}", c.detail)
        for c in certificates
    ]
    return table("certificates", ("pass", "invariant", "", "error", "bound", "what was measured"), rows)
