"""Holding a fresh artifact against the Program that it was made from, in its runtime on this host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drawplate.backendbase import Backend
from drawplate.errors import BackendError, RuntimeMissing
from drawplate.facts import HEAD_LAST_POSITION
from drawplate.invariants import SAME_FUNCTION, SAME_INTEGERS
from drawplate.isolate import Subject
from drawplate.parity import Parity, parity
from drawplate.program import Program

if TYPE_CHECKING:
    from drawplate.passbase import Pass
    from drawplate.runner import Timing
    from drawplate.sources.source import Assets

PROMPTS = (
    "The Danube is the second-longest river in Europe, and it flows through",
    "To change the wheel of a bicycle, you first",
    "def fibonacci(n):\n    ",
    "Water boils at a lower temperature on a mountain because",
    "Dear neighbours, on Saturday we would like to invite you",
)
NEW_TOKENS = 16
EXACT = 1e-4  # relative; what a scheme without rounding may differ by: another order of sums
# Where activations are rounded, a difference in the last bit may move one of them by a whole step, and from there on
# all positions after it. How far that carries is measured: the program in float32 against itself in float64.
ALLOWED = 2.0  # times the worst position of that, for the median
WORSE = 5.0  # times its mean KL, and its share of other top tokens
SLACK = 0.05  # share of other top tokens that near-ties explain in a few hundred positions


@dataclass(frozen=True)
class Verified:
    """parity: what was measured, for the manifest; empty if nothing was. why_not: the reason, unless nobody asked."""

    parity: Mapping[str, Any] = field(default_factory=dict)
    why_not: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest: an artifact that was not verified must not look like one that was."""
        return (f"not verified: {self.why_not}",) if self.why_not else ()


class WholeText:
    """An observer that keeps the last program which still reads a text at once and answers at every position, since
    that is many times quicker to compare with. Only if all passes that follow compute the same; else it keeps none."""

    def __init__(self) -> None:
        self.program: Program | None = None

    def before(self, pass_: Pass, program: Program) -> None:
        """The runner is about to run this pass on this program."""
        if _reads_whole(program):
            self.program = program
        elif SAME_FUNCTION not in pass_.promises and SAME_INTEGERS not in pass_.promises:
            self.program = None

    def after(self, pass_: Pass, program: Program, timing: Timing) -> None:
        """The runner has run it."""
        if _reads_whole(program):
            self.program = program


def _reads_whole(program: Program) -> bool:
    """Does it take a text at once and answer at every position?"""
    return not program.state and HEAD_LAST_POSITION.name not in program.facts


def verify(whole: Program | None, final: Program, backend: Backend, folder: Path, assets: Assets) -> Verified:
    """What was measured of the artifact in `folder`, or why nothing could be.

    final: what it was written from. whole: what computes the same and reads a text at once, if that is there.
    Raises BackendError if the artifact strays from its program by more than the scheme's own noise.
    """
    context = min((d.high for d in final.dims), default=0)
    new = min(NEW_TOKENS, context // 2)
    if not final.state:
        return Verified(why_not="the program has no cache, so nothing can be generated to compare")
    if not final.dims:
        return Verified(why_not="the program's length is fixed, so it takes no prompt and then its answer")
    if not new:
        return Verified(why_not="a context of one token has no room for a prompt and an answer")
    program = whole or final
    asked = [ids[: context - new] for ids in prompts(program, assets)]
    try:
        found = parity(program, Subject.of(folder, type(backend)), asked, new_tokens=new)
    except RuntimeMissing as error:
        return Verified(why_not=f"{error.what}: {error.why}" if error.why else error.what)
    _judge(found, folder)
    return Verified(summary(found))


def prompts(program: Program, assets: Assets) -> list[list[int]]:
    """PROMPTS as token ids; seeded ids where the model came without a tokenizer."""
    if assets.folder is not None and (assets.folder / "tokenizer.json").is_file():
        from drawplate.tokens import Tokenizer

        tokenizer = Tokenizer.load(assets.folder)
        return [[*tokenizer.prefix, *tokenizer.encode(text)] for text in PROMPTS]
    (logits,) = (n.meta["val"] for n in program.graph.output_node().all_input_nodes)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(int(logits.shape[-1]), (len(PROMPTS), 8), generator=draw).tolist()


def summary(found: Parity) -> dict[str, Any]:
    """Three digits of each figure: more depend on the machine's rounding."""
    shown: dict[str, Any] = {"prompts": found.prompts, "new_tokens": found.new_tokens, "equal": found.equal}
    for name in ("stepwise", "prefill", "floor"):
        part = getattr(found, name)
        keys = ("positions", "relative_median", "relative_max", "kl_mean", "agreement")
        shown |= {name: {key: float(f"{getattr(part, key):.3g}") for key in keys}} if part else {}
    return shown | {"differences": [str(d) for d in found.differences]}


def _judge(found: Parity, folder: Path) -> None:
    """Raise BackendError, with every figure that is out of bounds, if this is not the program. NaN is out of bounds."""
    floor = found.floor
    logits = max(EXACT, ALLOWED * floor.relative_max if floor else 0.0)
    divergence = max(EXACT, WORSE * floor.kl_mean if floor else 0.0)
    other = SLACK + WORSE * (1 - floor.agreement if floor else 0.0)
    wrong = []
    for how, part in (("token by token", found.stepwise), ("a prompt at once", found.prefill)):
        if not part.relative_median <= logits:
            wrong.append(f"{how}, logits differ by {part.relative_median:.3g} (median); rounding explains {logits:.3g}")
        if not part.kl_mean <= divergence:
            wrong.append(f"{how}, the KL is {part.kl_mean:.3g} nats; rounding explains {divergence:.3g}")
    if not 1 - found.stepwise.agreement <= other:
        wrong.append(f"{1 - found.stepwise.agreement:.0%} of top tokens are others; rounding explains {other:.0%}")
    if wrong:
        raise BackendError(
            "the artifact does not compute what its program does",
            where=f"{found.stepwise.positions} positions of {found.prompts} texts, {folder.name}",
            why="; ".join(wrong),
            fix="this is a bug in the backend: report it with the recipe; --no-verify writes the artifact anyway",
        )
