"""Which rotations apply to which architecture, and how well the function stays: one row for each, tiny and random.

    python benchmarks/architectures.py [NAME ..] [--out FILE]

Each model is captured, its norms are folded, and everything is turned that can be: first by the defaults of fold-norms
and rotate, then, where that makes a difference, with every explicit map allowed, and with a tied table split. Errors
are those that the runner measures around the passes: the largest in float64, and as deployed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from drawplate.analysis.rotations import Plan, plan
from drawplate.canonical import canonicalise, unrecognised
from drawplate.capture import capture
from drawplate.errors import DrawplateError, Refusal
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.rotate import Rotate
from drawplate.program import Program
from drawplate.runner import run_passes

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
NORMS = (aten.rms_norm.default, aten.layer_norm.default)
ATTENTIONS = (aten.scaled_dot_product_attention.default, torch.ops.drawplate.cached_attention.default)
ALL = 1 << 30
VARIANTS: tuple[tuple[str, Literal["keep", "split"], int], ...] = (
    ("", "keep", 1),
    ("maps=all", "keep", ALL),
    ("maps=all, tied=split", "split", ALL),
)
SHORT = {"aten.rms_norm": "norm", "aten.layer_norm": "norm", "r1": "R1", "r2": "R2", "r3": "R3", "r4": "R4"}


@dataclass
class Row:
    """What came of one architecture. refusals: (what, why), without the layers' numbers."""

    name: str
    variant: str
    captured: str
    norms: str = ""
    r1: str = ""
    r2: str = ""
    r3: str = ""
    r4: str = ""
    float64: float | None = None
    deployed: float | None = None
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def found(self) -> tuple[str, ...]:
        """What a variant may change."""
        return self.norms, self.r1, self.r2, self.r3, self.r4


def rows_of(name: str) -> list[Row]:
    """The default's row, and those of the variants that turn more than the one before."""
    from architectures import build

    try:
        program = canonicalise(capture(build(name), name=name).program)
    except DrawplateError as error:
        return [Row(name, "", f"no: {error.what}", refusals=[("capture", error.why.split("\n")[0])])]
    rows: list[Row] = []
    for variant, tied, maps in VARIANTS:
        row = _planned(name, variant, program, tied, maps)
        if not rows or row.found() != rows[-1].found():
            rows.append(row)
            _measured(row, program, tied, maps)
    return rows


def _planned(name: str, variant: str, program: Program, tied: Literal["keep", "split"], maps: int) -> Row:
    missed = unrecognised(program)
    env = Env()
    folded = FoldNorms(tied).run(program, env)
    found = plan(folded, r3=True, r4=True, maps=maps)
    attentions = sum(1 for _ in program.nodes(*ATTENTIONS))
    kept, norms = _weighted(folded), _weighted(program)
    refused = [*missed, *env.refusals, *found.refusals]
    return Row(
        name,
        variant,
        "yes" if not missed else f"yes, {len(missed)} left over",
        f"{norms - kept}/{norms}",
        _residual(found),
        _share(sum(r.kind == "r2" for r in found.rotations), attentions),
        _share(len({r for o in found.online if o.kind == "r3" for r in o.readers}), attentions),
        _share(sum(o.kind == "r4" for o in found.online), sum(r.op == "r4" for r in found.refusals), more=True),
        refusals=[(SHORT.get(r.op, r.op), _starred(r)) for r in refused],
    )


def _weighted(program: Program) -> int:
    """Norms that have a weight."""
    return sum(any(a.op == "get_attr" for a in n.all_input_nodes[1:]) for n in program.nodes(*NORMS))


def _residual(found: Plan) -> str:
    turned = sum(r.kind == "r1" for r in found.rotations)
    if not turned:
        return "no"
    maps = f", {len(found.maps)} map{'s' * (len(found.maps) > 1)}" if found.maps else ""
    return f"yes{maps}" if turned == 1 else f"{turned} streams{maps}"


def _share(turned: int, others: int, *, more: bool = False) -> str:
    """Turned of how many; others: of how many, or (more) how many besides. None at all is a dash."""
    number = turned + others if more else others
    return f"{turned}/{number}" if number else "-"


def _starred(refusal: Refusal) -> str:
    where = f" [{refusal.source}]" if refusal.source else ""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", f"{refusal.site}: {refusal.why}{where}")


def _measured(row: Row, program: Program, tied: Literal["keep", "split"], maps: int) -> None:
    outcome = run_passes(program, [FoldNorms(tied), Rotate(r3=True, r4=True, maps=maps)], Env())
    errors = {c: [k.error for k in outcome.certificates if k.invariant == c] for c in ("SAME_FUNCTION", "AS_DEPLOYED")}
    row.float64, row.deployed = (max(e, default=0.0) for e in errors.values())


def table(rows: Sequence[Row]) -> Table:
    """One line per row; a second line of one architecture says what it was allowed."""
    columns = ("architecture", "captured", "norms folded", "R1", "R2", "R3", "R4", "float64", "deployed", "refused")
    shown = Table(*columns, title="rotations by architecture")
    letters = _letters(rows)
    for row in rows:
        first = row.name if not row.variant else f"  {row.variant}"
        errors = ["" if e is None else f"{e:.0e}" for e in (row.float64, row.deployed)]
        told = " ".join(dict.fromkeys(str(letters[r]) for r in row.refusals))
        norms, r1, *others = row.found()
        why = sorted({letters[r] for r in row.refusals if r[0] == "R1"})
        r1 += f" ({', '.join(map(str, why))})" if why else ""
        shown.add_row(first, row.captured if not row.variant else "", norms, r1, *others, *errors, told)
    return shown


def _letters(rows: Iterable[Row]) -> dict[tuple[str, str], int]:
    """A number for every refusal; what differs in the model's own line only is one."""
    numbers: dict[tuple[str, str], int] = {}
    by_reason: dict[tuple[str, str], int] = {}
    for row in rows:
        for what, why in row.refusals:
            numbers[what, why] = by_reason.setdefault((what, _reason(why)), len(by_reason) + 1)
    return numbers


def _reason(why: str) -> str:
    """A refusal without the site and without the model's line."""
    return re.split(r" at \S+\.py:| \[|: `", why.partition(": ")[2])[0]


def legend(rows: Sequence[Row]) -> list[str]:
    """Every reason once, with the architectures that have it and the first place where it holds."""
    letters = _letters(rows)
    lines: dict[int, tuple[str, str, dict[str, None]]] = {}
    for row in rows:
        for refusal in row.refusals:
            what, why = refusal
            lines.setdefault(letters[refusal], (what, why, {}))[2][row.name] = None
    return [f"{n}. {what}, {', '.join(names)}: {why}" for n, (what, why, names) in sorted(lines.items())]


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Architectures; all that are known if none is named.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON with all rows.")] = None,
) -> None:
    """Print the table and, below it, why something was not turned."""
    sys.path.insert(0, str(ROOT / "tests"))
    from architectures import DECODERS, OTHERS

    rows: list[Row] = []
    for name in names or [*DECODERS, *OTHERS]:
        rows += rows_of(name)
    console = Console(width=160)
    console.print(table(rows))
    console.print(*legend(rows), sep="\n", markup=False, highlight=False)
    if out is not None:
        document: Any = [asdict(row) for row in rows]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    typer.run(main)
