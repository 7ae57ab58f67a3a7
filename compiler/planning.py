"""Plan: what a compile would do and cost, as data and as text; and what happens when it costs too much."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from drawplate.backendbase import ByteRow
from drawplate.errors import BackendError, RecipeError, Refusal, grouped

if TYPE_CHECKING:
    from drawplate.recipe import Recipe
    from drawplate.rehearsal import Step
    from drawplate.roofline import Estimate
    from drawplate.schedule import Schedule

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True)
class Plan:
    """What compile() would do. bytes: the byte table as it will be; empty if notes say that it is not known.

    refusals: what passes will leave undone, and why. backend_refusals: why the backend will not take the result.
    source_bytes: of the model's weights in memory. peak_memory_bytes: of the compile, this process included.
    time: on the device that was named.
    """

    recipe: Recipe
    schedule: Schedule
    steps: tuple[Step, ...]
    bytes: tuple[ByteRow, ...]
    refusals: tuple[Refusal, ...]
    backend_refusals: tuple[Refusal, ...]
    source_bytes: int
    peak_memory_bytes: int
    budget_bytes: int | None = None
    notes: tuple[str, ...] = ()
    time: Estimate | None = None

    @property
    def file_bytes(self) -> int:
        """All files together."""
        return file_bytes(self.bytes)

    @property
    def state_bytes(self) -> int:
        """What the device keeps in memory between calls, besides the files."""
        return sum(row.bytes for row in self.bytes if row.role == "state")

    @property
    def over_budget_bytes(self) -> int:
        """By how much the files are too large; 0 if they fit, or if there is no budget."""
        return 0 if self.budget_bytes is None else max(0, self.file_bytes - self.budget_bytes)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: everything, in JSON's types."""
        return {
            "recipe": str(self.recipe),
            "schedule": self.schedule.explain().splitlines(),
            "steps": [asdict(s) for s in self.steps],
            "bytes": [asdict(r) for r in self.bytes],
            "file_bytes": self.file_bytes,
            "total_bytes": self.file_bytes,  # a deliberate synonym: the name that scripts ask for
            "state_bytes": self.state_bytes,
            "source_bytes": self.source_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "budget_bytes": self.budget_bytes,
            "over_budget_bytes": self.over_budget_bytes,
            "refusals": [asdict(r) for r in self.refusals],
            "backend_refusals": [asdict(r) for r in self.backend_refusals],
            "notes": list(self.notes),
            "time": asdict(self.time) if self.time else None,
        }

    def __str__(self) -> str:
        lines = [f"recipe: {self.recipe}", self.schedule.explain()]
        lines += [f"{kind}: {size(count)}" for kind, count in by_kind(self.bytes).items()]
        if self.bytes:
            lines.append(f"files: {size(self.file_bytes)}, of weights that take {size(self.source_bytes)} now")
        if self.budget_bytes is not None:
            over = self.over_budget_bytes
            fits = f"over by {size(over)}" if over else f"{size(self.budget_bytes - self.file_bytes)} to spare"
            lines.append(f"budget: {size(self.budget_bytes)}, {fits}")
        lines += [str(self.time)] if self.time else []
        lines.append(f"peak memory of the compile: about {size(self.peak_memory_bytes)}")
        lines += [f"not done: {line}" for line in grouped(self.refusals)]
        lines += [f"refused by the backend: {line}" for line in grouped(self.backend_refusals)]
        return "\n".join([*lines, *self.notes])


def file_bytes(rows: Iterable[ByteRow]) -> int:
    """Bytes of all rows that are in a file."""
    return sum(row.bytes for row in rows if row.role != "state")


def by_kind(rows: Iterable[ByteRow]) -> Mapping[str, int]:
    """Bytes per role and encoding, the largest first."""
    found: dict[str, int] = {}
    for row in rows:
        kind = f"{row.role}, {row.encoding}" if row.encoding else row.role
        found[kind] = found.get(kind, 0) + row.bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def refuse_over_budget(count: int, budget: int | None, rows: Iterable[ByteRow]) -> None:
    """Raise BackendError if the files take more bytes than the budget has."""
    if budget is None or count <= budget:
        return
    largest = ", ".join(f"{kind}: {size(n)}" for kind, n in list(by_kind(rows).items())[:4])
    raise BackendError(
        f"the files take {size(count)}, the budget is {size(budget)}",
        where=largest,
        why=f"that is {size(count - budget)} too much, everything counted",
        fix="give a recipe with fewer bits or larger groups, or a larger budget",
    )


def parse_bytes(text: int | str) -> int:
    """90_000_000, "90 MB" (10^6) or "90 MiB" (2^20) -> bytes. Raises RecipeError."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b?)\s*", text.lower())
    unit = found[2] if found else "?"
    unit = unit + "b" if unit in ("k", "m", "g", "ki", "mi", "gi") else "" if unit == "b" else unit
    if not found or unit not in _UNITS:
        raise RecipeError(f"not a size: {text!r}", fix="write for example 90MB (10^6 bytes) or 86MiB (2^20 bytes)")
    return int(float(found[1]) * _UNITS[unit])


def size(count: int) -> str:
    """`88.1 MB`, with bytes where they matter."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} bytes"
