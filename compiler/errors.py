"""Errors that a user reads: what happened, where, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class DrawplateError(Exception):
    """A mistake in the input or a limit of the tool, told in full. The command line prints it without a traceback.

    what: one sentence. where: a file, node, pass or source line. why: the rule that was broken; several reasons are a
    line each. fix: what to do.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        lines = [what]
        lines += [f"  where: {where}"] if where else []
        lines += ["  why:   " + why.replace("\n", "\n         ")] if why else []
        lines += [f"  do:    {fix}"] if fix else []
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.why, self.fix))


def _rebuild(kind: type[DrawplateError], what: str, where: str, why: str, fix: str) -> DrawplateError:
    error = kind.__new__(kind)
    DrawplateError.__init__(error, what, where=where, why=why, fix=fix)
    return error


class CaptureError(DrawplateError):
    """The model could not be loaded or torch.export refused it."""


class TextError(DrawplateError):
    """The textual IR could not be parsed: line, column and a caret are in `where`."""


class RecipeError(DrawplateError):
    """A recipe, a pass option or a schedule that cannot be."""


class PassError(DrawplateError):
    """A pass failed or broke its contract; names the pass and its reproducer."""


class BackendError(DrawplateError):
    """A backend cannot hold or emit this program."""


class PluginError(DrawplateError):
    """A plugin is broken: names the distribution and its version."""


class RuntimeMissing(DrawplateError):
    """No runtime on this host can execute the artifact."""


class EvaluationError(DrawplateError):
    """A text, a task or a model that cannot be evaluated or measured."""


class OutputError(DrawplateError):
    """The output could not be written; nothing was left behind."""


FEW = 2  # refusals of one kind that are told one by one


@dataclass(frozen=True)
class Refusal:
    """Why something was not done at one site. A refusal is a result, never a silent fall-back.

    site: value or module it concerns, op: what stands there, source: the model's own line, fix: what would help.
    """

    site: str
    op: str
    why: str
    source: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.site} ({self.op})" if self.op else self.site
        return (
            f"{place}: {self.why}"
            + (f" [{self.source}]" if self.source else "")
            + (f"; {self.fix}" if self.fix else "")
        )


def grouped(refusals: Iterable[Refusal]) -> list[str]:
    """The refusals in words, a line each; what holds for many operations alike is told once, with the first of them:
    `60 linears (first: a, b): a group size of 48 does not divide axis 1 of length 576; use a group of 16`."""
    groups: dict[tuple[str, str, str], list[Refusal]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.op, refusal.why, refusal.fix), []).append(refusal)
    return [line for alike in groups.values() for line in ([_of_many(alike)] if len(alike) > FEW else map(str, alike))]


def _of_many(alike: list[Refusal]) -> str:
    first, *_ = alike
    noun = first.op.split(".")[1] if "." in first.op else first.op or "place"
    nouns = noun + ("es" if noun.endswith(("s", "x")) else "s")
    sources = list(dict.fromkeys(r.source for r in alike if r.source))
    source = ", ".join(sources[:FEW]) + ", .." * (len(sources) > FEW)
    sites = ", ".join(r.site for r in alike[:FEW])
    return str(Refusal(f"{len(alike)} {nouns} (first: {sites})", "", first.why, source, first.fix))
