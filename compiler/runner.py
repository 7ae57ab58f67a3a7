"""Runs passes one after the other and holds each to what it promised.

Around every pass: the facts it requires, the pass itself, that its input is as it was, the rules of the IR, the
facts it claims, the invariants it keeps. A pass that fails or lies is told by name, with a folder that shows it
again.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx

from drawplate.digest import tensor_version, tensors_of
from drawplate.errors import DrawplateError, PassError, Refusal, grouped
from drawplate.invariants import AS_DEPLOYED
from drawplate.measuring import Meter
from drawplate.options import spec
from drawplate.passbase import Certificate, Env, Fact, Invariant, Pass, cannot_be_done
from drawplate.program import Program, rounded, wide_weights
from drawplate.records import Record
from drawplate.reproducer import read_reproducer, write_reproducer
from drawplate.spec import Stage, check
from drawplate.text import print_program

if TYPE_CHECKING:
    from drawplate.cache import Cache
    from drawplate.recipe import Registry


@dataclass(frozen=True)
class Timing:
    """What one pass took. seconds: wall time, and of it checks_seconds for what the runner did around it.
    peak_rss_bytes: of the whole process meanwhile. resumed: it did not run now, its result was kept."""

    pass_name: str
    seconds: float
    checks_seconds: float
    peak_rss_bytes: int
    resumed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of the passes so far. notes: of this run, what the user should know and no other field says. records:
    what passes left for the artifact. told: what passes say of their result."""

    program: Program
    certificates: tuple[Certificate, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    timings: tuple[Timing, ...] = ()
    notes: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    told: tuple[str, ...] = ()

    def then(self, later: Outcome) -> Outcome:
        """Both, one after the other."""
        replaced = {record.name for record in later.records if record.last}
        return Outcome(
            later.program,
            self.certificates + later.certificates,
            self.refusals + later.refusals,
            self.timings + later.timings,
            self.notes + later.notes,
            tuple(r for r in self.records if r.name not in replaced) + later.records,
            self.told + later.told,
        )


class Observer(Protocol):
    """Is told of every pass. It looks and does not touch; what it raises is noted and changes nothing."""

    def before(self, pass_: Pass, program: Program) -> None: ...
    def after(self, pass_: Pass, program: Program, timing: Timing) -> None: ...


def run_passes(
    program: Program,
    passes: Iterable[Pass],
    env: Env,
    cache: Cache | None = None,
    observers: Sequence[Observer] = (),
    crashes: Path | None = None,
) -> Outcome:
    """Run the passes in this order and check each one.

    cache: where slow results are kept; what is there already is not computed again. crashes: a folder for the
    reproducers of passes that fail. The program that came in is the original, if env names no other. Raises PassError.
    It is not changed.
    """
    passes = tuple(passes)
    base = _stage_before(program)
    journal = cache.open(program, passes, env) if cache else None
    outcome, done = journal.resume() if journal else (Outcome(program), 0)
    env.refusals.extend(outcome.refusals)
    for i, pass_ in enumerate(env.progress(passes[done:], "passes"), done):
        checkpoints = journal.checkpoints(i) if journal else env.checkpoints
        own = replace(env, original=env.original or program, refusals=[], records=[], told=[], checkpoints=checkpoints)
        notes = _tell(observers, "before", pass_, outcome.program)
        step = _guarded(pass_, outcome.program, own, base, crashes)
        notes += _tell(observers, "after", pass_, step.program, step.timings[0])
        env.refusals.extend(own.refusals)
        outcome = outcome.then(replace(step, notes=notes))
        outcome = journal.keep(i, outcome) if journal else outcome
    return outcome


def replay(folder: Path, session: Registry) -> Outcome:
    """Run the pass of a reproducer folder again, on what it was given. Raises PassError as it did then."""
    program, pass_, env = read_reproducer(folder, session)
    return run_passes(program, [pass_], env)


class _BrokenPromise(Exception):
    """What a pass said of itself is not so."""

    def __init__(self, what: str, why: Iterable[str]) -> None:
        super().__init__(what)
        self.what, self.why = what, "; ".join(why)


def _guarded(pass_: Pass, before: Program, env: Env, base: Stage, crashes: Path | None) -> Outcome:
    """One pass; whatever goes wrong becomes a PassError that names it."""
    try:
        with Meter() as meter:
            after, certificates, seconds = _step(pass_, before, env, base)
    except DrawplateError as error:
        # The pass says itself, in full, what is wrong with what it was given: no crash, and nothing to reproduce.
        raise cannot_be_done(pass_, error) from error
    except _BrokenPromise as error:
        fix = _reproduce(crashes, before, pass_, env, f"{error.what}: {error.why}")
        raise PassError(f"pass {spec(pass_)!r} {error.what}", why=error.why, fix=fix) from None
    except Exception as error:
        happened = f"{type(error).__name__}: {error}"
        fix = _reproduce(crashes, before, pass_, env, happened)
        where = _line_in(pass_, error)
        raise PassError(f"pass {spec(pass_)!r} failed", where=where, why=happened, fix=fix) from error
    timing = Timing(pass_.name, meter.seconds, meter.seconds - seconds, meter.peak_rss_bytes)
    return Outcome(
        after, certificates, tuple(env.refusals), (timing,), records=tuple(env.records), told=tuple(env.told)
    )


def _step(pass_: Pass, before: Program, env: Env, base: Stage) -> tuple[Program, tuple[Certificate, ...], float]:
    """The pass and everything it is held to: its program, its certificates, its own seconds."""
    _facts_hold(pass_.requires, before, "requires {!r}, which does not hold of its input")
    given = _copy(before)  # should the pass change it, the reproducer still has the original
    untouched = _fingerprint(given)
    # Whatever draws from torch's own generator draws the same numbers in each compile, and the caller's stay his.
    with Meter() as meter, torch.random.fork_rng(devices=[]):
        torch.manual_seed(env.seed)
        after = pass_.run(given, env)
    if not isinstance(after, Program):
        raise _BrokenPromise("returns no Program", [f"it is of type {type(after).__name__}"])
    if _fingerprint(given) != untouched:
        raise _BrokenPromise("changed the program it was given", ["programs share tensors, so a pass makes new ones"])
    narrow = rounded(after)
    illegal = check(narrow, _stage_after(narrow, base))
    if illegal:
        raise _BrokenPromise("leaves a program that is not legal", grouped(illegal))
    facts = _facts_after(pass_, before, narrow)
    del narrow  # rounding again is quick, and holding both while functions are compared takes the most memory there is
    certificates = [*_measure(pass_, pass_.promises, before, after, env.seed)]
    narrow = replace(rounded(after), facts=facts)
    if wide_weights(after):
        certificates += _measure(pass_, [AS_DEPLOYED], before, narrow, env.seed)
    return narrow, tuple(certificates), meter.seconds


def _facts_after(pass_: Pass, before: Program, after: Program) -> frozenset[str]:
    """What it provides and what it preserves of what was, both looked at; the rest is taken as broken."""
    _facts_hold(pass_.provides, after, "claims to provide {!r}, which does not hold")
    kept = frozenset(fact for fact in pass_.preserves if fact.name in before.facts)
    _facts_hold(kept, after, "claims to preserve {!r}, which no longer holds")
    return frozenset(fact.name for fact in pass_.provides | kept)


def _facts_hold(facts: Iterable[Fact], program: Program, what: str) -> None:
    for fact in sorted(facts, key=lambda f: f.name):
        reasons = fact.holds(program)
        if reasons:
            raise _BrokenPromise(what.format(fact.name), reasons)


def _measure(
    pass_: Pass, invariants: Iterable[Invariant], before: Program, after: Program, seed: int
) -> Iterable[Certificate]:
    for invariant in invariants:
        certificate = replace(invariant.measure(before, after, seed), pass_name=pass_.name)
        if not certificate.holds:
            measured = f"the error is {certificate.error:.3g}, the bound {certificate.bound:.3g}"
            why = [certificate.detail, measured] if certificate.detail else [measured]
            raise _BrokenPromise(f"does not keep {certificate.invariant}", why)
        yield certificate


def _stage_before(program: Program) -> Stage:
    """The stage of the incoming program. Raises PassError, with all the reasons, if it is legal at none."""
    if not check(program, "canonical"):
        return "canonical"
    stage = _stage_after(program, "captured")
    illegal = check(program, stage)
    if illegal:
        raise PassError("the program that came in is not legal", where=program.name, why="\n".join(grouped(illegal)))
    return stage


def _stage_after(program: Program, base: Stage) -> Stage:
    """How far a program has come, by what it contains."""
    if program.state:
        return "cached"
    if program.encodings or any(program.nodes(torch.ops.drawplate.encode.default)):
        return "quantised"
    return base


def _copy(program: Program) -> Program:
    """The same program with a graph of its own; tensors are shared."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    return replace(program, graph=graph)


def _fingerprint(program: Program) -> tuple[Any, ...]:
    """Changes when the program is changed in place: its text, which tensors it has, how often each was written to.

    Cheap, so it is always looked at: torch counts the writes, the contents are not read.
    """
    tensors = [t for w in program.weights.values() for t in tensors_of(w)]
    return print_program(program), [(id(t), tensor_version(t)) for t in tensors]


def _reproduce(crashes: Path | None, program: Program, pass_: Pass, env: Env, happened: str) -> str:
    """Write the reproducer; what to do with it, for the message."""
    if crashes is None:
        return ""
    try:
        folder = write_reproducer(crashes, program, pass_, env, happened)
    except Exception as error:  # noqa: BLE001  (a second failure must not hide the first)
        return f"a reproducer could not be written to {crashes}: {error}"
    return f"to see it again alone: drawplate replay {folder}"


def _line_in(pass_: Pass, error: Exception) -> str:
    """The last line of the traceback that is the pass's own, or else the very last: `rotate.py:41 in run`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == inspect.getfile(type(pass_))]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def _tell(observers: Iterable[Observer], event: str, pass_: Pass, *about: Any) -> tuple[str, ...]:
    """Tell every observer; a note for each that raises."""
    notes = []
    for observer in observers:
        try:
            getattr(observer, event)(pass_, *about)
        except Exception as error:  # noqa: BLE001  (a stranger's code)
            name = type(observer).__name__
            notes.append(f"observer {name} failed {event} {pass_.name!r}: {type(error).__name__}: {error}")
    return tuple(notes)
