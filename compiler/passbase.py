"""What a pass is, what it may promise, and how promises are measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from drawplate.errors import DrawplateError, PassError, Refusal
from drawplate.options import spec
from drawplate.program import Program
from drawplate.records import Record

if TYPE_CHECKING:
    from drawplate.calibration import Calibration
    from drawplate.target import Target


@dataclass(frozen=True)
class Fact:
    """Something true of a whole program. holds: a cheap checker that returns the reasons why not (none: it holds)."""

    name: str
    holds: Callable[[Program], list[str]] = field(compare=False)


@dataclass(frozen=True)
class Certificate:
    """The measured result of an invariant around a pass. error and bound: relative, unless `detail` says otherwise."""

    pass_name: str
    invariant: str
    holds: bool
    error: float
    bound: float
    detail: str = ""


class Invariant(ABC):
    """What a pass keeps true, measured by the runner around it, so that an author cannot forget it."""

    name: ClassVar[str]

    @abstractmethod
    def measure(self, before: Program, after: Program, seed: int) -> Certificate:
        """Compare the programs before and after. pass_name is filled in by the runner."""


class Progress(Protocol):
    """Anything that can show a bar: `for x in env.progress(items, "blocks")`. A label that changes, such as one with a
    loss in it, is a function, asked again after each item."""

    def __call__(self, items: Iterable[Any], label: str | Callable[[], str]) -> Iterable[Any]: ...


@dataclass
class Env:
    """What a pass may use besides the program: all of it decided by the recipe, the target and the caller.

    original: the program before the first pass, for what learns from it. checkpoints: a folder for what would be lost
    when the process is killed. metrics: a folder for what trainings say meanwhile (metrics.py); it decides nothing.
    say: tells the user at once, and is kept nowhere. The rest: see the functions that take them.
    """

    seed: int = 0
    target: Target | None = None
    calibration: Calibration | None = None
    original: Program | None = None
    checkpoints: Path | None = None
    metrics: Path | None = None
    progress: Progress = field(default=lambda items, label: items)
    say: Callable[[str], None] = field(default=lambda text: None)
    refusals: list[Refusal] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def tell(self, what: str) -> None:
        """Say what was done, where the user should know: it is in the manifest's notes."""
        self.told.append(what)

    def keep(self, name: str, tensors: Mapping[str, Tensor] | None = None, data: Any = None) -> None:
        """Leave tensors, or data in JSON's types, with the artifact in a file of this name."""
        self.records.append(Record(name, tensors or {}, data))

    def text(self, what: str, why: str, instead: str = "") -> Calibration:
        """The text to read. what: who wants it; instead: what would do without. Raises PassError if there is none."""
        if self.calibration is None:
            give = "give one: --calibration FILE (in Python, calibration=load_text(..))"
            fix = f"{give}, or {instead}" if instead else give
            raise PassError(f"{what} a text, and there is none", why=why, fix=fix)
        return self.calibration

    def refuse(self, refusal: Refusal) -> None:
        """Record why something was not done at one site; the report shows every one."""
        self.refusals.append(refusal)


class Pass(ABC):
    """One step. Subclass as a frozen dataclass: the fields are the options, typed, with units.

    requires: facts that must hold before. provides: facts that hold afterwards (checked). preserves: facts that stay
    true; what is not listed is taken as broken. keeps: invariants that the runner measures. slow: keep the result
    for a compile that goes on later, however quick it was this time (what took over two seconds is kept anyway).
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    preserves: ClassVar[frozenset[Fact]] = frozenset()
    keeps: ClassVar[tuple[Invariant, ...]] = ()
    slow: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[Path, ...]:
        """Files that decide the result besides the options, by their contents."""
        return ()

    @property
    def reads_original(self) -> bool:
        """Does it learn from env.original? Then a reproducer has that too."""
        return False

    @property
    def promises(self) -> tuple[Invariant, ...]:
        """What it keeps under its options: all of `keeps`, unless a pass says otherwise."""
        return self.keeps

    def check_env(self, env: Env) -> None:  # noqa: B027  (most passes need nothing else)
        """Raise PassError for what is missing besides the program, such as a text. Cheap: a compile asks before it
        loads anything, since the pass itself may run hours later."""

    @abstractmethod
    def run(self, program: Program, env: Env) -> Program:
        """The new program; the given one is left as it was."""


def cannot_be_done(pass_: Pass, error: DrawplateError) -> PassError:
    """What a pass says is wrong with what it was given, with the pass's name in front."""
    what = f"pass {spec(pass_)!r} cannot be done: {error.what}"
    return PassError(what, where=error.where, why=error.why, fix=error.fix)
