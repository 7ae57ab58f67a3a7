"""`drawplate eval` and `drawplate bench`: how good, how fast, how large."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drawplate.commands.options import AsJson, CalibrationFile, CalibrationTask, CalibrationTokens, Threads
from drawplate.commands.output import Output, percent, plain, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from drawplate.bench import BenchReport
    from drawplate.evaluation import ChoiceReport, Estimate, Item, LanguageReport
    from drawplate.isolate import Subject
    from drawplate.plugins.manager import Session
    from drawplate.program import Program
    from drawplate.runtime import Runnable

Text = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Text to measure perplexity on.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME=FILE", help="Choice task, one JSON object a line; may be given often."),
]


def evaluate(
    sources: Annotated[list[str], typer.Argument(metavar="MODEL|ARTIFACT...", help="What to measure.")],
    text: Text = None,
    original: Annotated[str | None, typer.Option("--original", help="Model or artifact to compare with.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe", "-r", metavar="NAME|TEXT|FILE.toml", help="Also MODEL after these passes; repeatable."
        ),
    ] = None,
    task: Tasks = None,
    length: Annotated[
        int | None, typer.Option("--length", min=2, help="Tokens in a window of text (default: 1024, or the context).")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows of text.")] = 16,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="First items of each task (default: all).")
    ] = None,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Solved examples in front of each item.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Draws the examples.")] = 0,
    calibration: CalibrationFile = None,
    calibration_tokens: CalibrationTokens = 32768,
    calibration_task: CalibrationTask = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, KL and top-1 agreement with the original, and choice tasks; every number with its error.

    An artifact is measured in its own runtime on this host, token by token where that has no batches. With --recipe,
    the first MODEL is also measured after that recipe's passes, and they are compared with it.
    """
    from drawplate.calibration import load_text
    from drawplate.commands.models import compressed, open_model, read_calibration
    from drawplate.commands.sessions import open_session
    from drawplate.errors import EvaluationError
    from drawplate.evaluation import choices, language
    from drawplate.recipe import Recipe

    with Output(as_json) as out:
        if text is None and not task:
            raise EvaluationError("nothing to measure", fix="add --text FILE, or --task piqa=FILE, or both")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        tasks = _tasks(task or [])
        session = open_session(out)
        original = original or (sources[0] if recipe else None)
        names, recipes = _names([original, *sources] if original else sources, recipe or [])
        opened = {name: open_model(s, session, out) for s, name in names.items()}
        base = opened[names[sources[0]]]
        # by the recipe's own seed, as compile reads the text; once for those that have the same
        read = cache(partial(read_calibration, calibration, sources[0], calibration_tokens, task=calibration_task))
        for chosen, name in recipes.items():
            opened[name] = compressed(base, chosen, session, out, read(seed=Recipe.load(chosen, session).seed))
        models = {name: o.model for name, o in opened.items()}
        first = next(iter(opened.values()))
        baseline = names[original] if original else None
        spoken: dict[str, LanguageReport] = {}
        if text is not None:
            ids = load_text(text, first.tokenizer, length or _window(models.values()), windows).windows
            spoken = language(models, ids, baseline, out.progress)
        ask = partial(choices, count=limit, shots=shots, seed=seed, progress=out.progress)
        asked = {
            asks: {name: ask(o.model, items, o.tokenizer, task=asks) for name, o in opened.items()}
            for asks, items in tasks.items()
        }
        data = {"text": plain(spoken), "tasks": {t: _task_json(r, baseline) for t, r in asked.items()}}
        out.give(data, *_eval_tables(spoken, asked, baseline))


def bench(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that `compile` wrote.")],
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Artifact that ratios are taken to.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; medians are over these.")] = 5,
    prompt: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Length of the prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=2, help="Tokens to decode.")] = 32,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure decode and prefill rates, time to first token, file size and peak memory, interleaved, medians.

    Every measurement is a process of its own; brackets hold the quartiles over the rounds.
    """
    from drawplate.bench import bench as measure
    from drawplate.commands.sessions import open_session

    with Output(as_json) as out:
        folders = list(dict.fromkeys([*([baseline] if baseline else []), *artifacts]))
        names, _ = _names([str(f) for f in folders])
        session = open_session(out)
        subjects = [_subject(folder, names[str(folder)], session) for folder in folders]
        report = measure(
            subjects,
            threads=threads or os.cpu_count() or 1,
            rounds=rounds,
            prompt=prompt,
            new_tokens=new_tokens,
            progress=out.progress,
        )
        base = names[str(baseline)] if baseline else None
        out.give(report.as_json() | {"ratios": _ratios(report, base)}, *_bench_tables(report, base))


def _window(models: Iterable[Program | Runnable]) -> int:
    """1024 tokens, or as many as fit into the shortest context."""
    from drawplate.program import Program

    contexts = (None if isinstance(m, Program) else m.context for m in models)
    return min([1024, *(c for c in contexts if c is not None)])


def _subject(folder: Path, name: str, session: Session) -> Subject:
    from drawplate.artifact import load_whole
    from drawplate.isolate import Subject

    artifact = load_whole(folder)
    return Subject.of(artifact.folder, type(artifact.backend(session)), name, artifact.model_files)


def _tasks(given: list[str]) -> dict[str, tuple[Item, ...]]:
    """`piqa=validation.jsonl` -> its items under that name; a bare file is named by its stem."""
    from drawplate.errors import EvaluationError
    from drawplate.evaluation import load_items

    files: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=") if "=" in text else (Path(text).stem, "", text)
        if name in files:
            fix = "write --task NAME=FILE with a name for each"
            raise EvaluationError(f"two tasks are called {name!r}", why="results are told apart by name", fix=fix)
        files[name] = Path(path)
    return {name: load_items(path) for name, path in files.items()}


def _names(sources: Iterable[str], recipes: Iterable[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """A name for each source and for each recipe, short and its own.

    A source is called by the last part of its path, a recipe by its file's name or its text. Where two would be called
    alike, sources have the whole path instead, and a recipe says that it is one.

    >>> sources, recipes = _names(["models/tiny", "out/fp32", "out/mine"], ["fp32", "my/own.toml"])
    >>> list(sources.values()), list(recipes.values())
    (['tiny', 'out/fp32', 'mine'], ['recipe fp32', 'own.toml'])
    """
    short = {s: Path(s).name or s for s in sources}
    also = {r: Path(r).name if r.endswith(".toml") else r for r in recipes}
    often = Counter([*short.values(), *also.values()])
    return (
        {s: name if often[name] == 1 else s for s, name in short.items()},
        {r: name if often[name] == 1 else f"recipe {r}" for r, name in also.items()},
    )


def _task_json(reports: dict[str, ChoiceReport], baseline: str | None) -> dict[str, Any]:
    return {
        name: {k: v for k, v in plain(r).items() if not k.startswith("right")}
        | ({"against": plain(r.against(reports[baseline]))} if baseline not in (None, name) else {})
        for name, r in reports.items()
    }


def _eval_tables(
    spoken: dict[str, LanguageReport], asked: dict[str, dict[str, ChoiceReport]], baseline: str | None
) -> list[RenderableType]:
    tables = []
    if spoken:
        tokens = next(iter(spoken.values())).tokens
        columns = ["model", "perplexity", "ratio", "KL (nats/token)", "KL, 99th percentile", "same top token"]
        rows = []
        for name, r in spoken.items():
            a = r.against
            rows.append(
                [
                    name,
                    r.perplexity,
                    *((a.perplexity_ratio, a.kl, f"{a.kl_99:.3g}", _share(a.agreement)) if a else ("",) * 4),
                ]
            )
        title = f"{tokens} tokens of text" + (f", against {baseline}" if baseline else "")
        tables.append(table(title, columns if baseline else columns[:2], [r if baseline else r[:2] for r in rows]))
    for task, reports in asked.items():
        any_ = next(iter(reports.values()))
        rows = []
        for name, report in reports.items():
            gap = "" if baseline in (None, name) else f"{_points(report.against(reports[baseline]))}"
            rows.append([name, _share(report.accuracy), _share(report.accuracy_normalised), gap])
        columns = ["model", "accuracy", "length-normalised", "normalised, minus original"]
        title = f"{task}: {any_.accuracy.n} items, {any_.shots} examples in front"
        title += f"; always picking the longest: {percent(any_.longest)}"
        tables.append(table(title, columns if baseline else columns[:3], [r if baseline else r[:3] for r in rows]))
    return tables


def _share(e: Estimate) -> str:
    """`68.3 ± 2.7 %`."""
    return f"{100 * e.value:.1f}" + (f" ± {100 * e.error:.1f}" if e.error is not None else "") + " %"


def _points(paired: Any) -> str:
    """A paired difference of shares, in percentage points."""
    e = paired.difference
    return f"{100 * e.value:+.1f}" + (f" ± {100 * e.error:.1f}" if e.error is not None else "") + " points"


_RATIOS = ("decode_rate", "prefill_rate", "first_seconds", "peak_bytes")


def _ratios(report: BenchReport, base: str | None) -> dict[str, Any]:
    """Each artifact over the baseline, round by round."""
    if base is None:
        return {}
    return {
        r.name: {what: plain(report.ratio(r.name, base, what)) for what in _RATIOS}
        for r in report.rows
        if r.name != base
    }


def _bench_tables(report: BenchReport, base: str | None) -> list[RenderableType]:
    from drawplate.planning import size

    def scaled(spread: Any, by: float, digits: int = 1) -> str:
        return f"{spread.median * by:.{digits}f} [{spread.low * by:.{digits}f}, {spread.high * by:.{digits}f}]"

    columns = (
        "artifact",
        "size",
        "decode (tokens/s)",
        "prefill (tokens/s)",
        "first token (ms)",
        "CPU (ms/token)",
        "peak RSS (MB)",
    )
    rows = [
        (
            r.name,
            size(r.file_bytes),
            scaled(r.decode_rate, 1),
            scaled(r.prefill_rate, 1),
            scaled(r.first_seconds, 1e3),
            scaled(r.cpu_per_token, 1e3),
            scaled(r.peak_bytes, 1e-6, 0),
        )
        for r in report.rows
    ]
    title = (
        f"{report.rounds} rounds, {report.threads} threads, {report.prompt} + {report.new_tokens} tokens; "
        f"{report.machine}; memory reads {report.read_rate.median / 1e9:.1f} GB/s; load {report.load_average:.1f}"
    )
    tables = [table(title, columns, rows)]
    if base is not None:
        ratios = [
            (r.name, *(scaled(report.ratio(r.name, base, what), 1, 2) for what in _RATIOS))
            for r in report.rows
            if r.name != base
        ]
        tables.append(table(f"over {base}", ("artifact", "decode", "prefill", "first token", "peak RSS"), ratios))
    return tables
