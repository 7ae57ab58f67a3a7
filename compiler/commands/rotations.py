"""What `drawplate inspect --rotations` shows: which channels may be turned once norms are folded, and which may not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from drawplate.commands.output import count, plain, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drawplate.analysis.bases import Basis, Port
    from drawplate.analysis.rotations import Online, Rotation
    from drawplate.passbase import Pass
    from drawplate.program import Program

ANY = 1 << 30
"""More products than any model has: here all are shown, and rotate's `maps` says how many may be paid for."""


def rotations(program: Program, passes: Mapping[str, type[Pass]]) -> dict[str, Any]:
    """Everything that is shown, as JSON has it. The program's weights are not looked at.

    passes: of the session; what holds is what holds after its fold-norms.
    """
    from drawplate.analysis.bases import bases, rotatable
    from drawplate.analysis.rotations import plan
    from drawplate.passbase import Env
    from drawplate.rehearsal import without_contents

    env = Env()
    folded = passes["fold-norms"]().run(without_contents(program), env)
    found = plan(folded, r3=True, r4=True, maps=ANY)
    return {
        "name": program.name,
        "r1": [_basis(b) for b in rotatable(bases(folded))],
        "r2": [_values(r) for r in found.rotations if r.kind == "r2"],
        "r3": [_online(o) for o in found.online if o.kind == "r3"],
        "r4": [_online(o) for o in found.online if o.kind == "r4"],
        "not_folded": [plain(r) for r in env.refusals],
        "not_turned": [plain(r) for r in found.refusals],
    }


def _basis(basis: Basis) -> dict[str, Any]:
    products = dict.fromkeys((*basis.entering, *basis.leaving))
    return {
        "name": basis.name,
        "width": basis.width,
        "writers": _ports(basis.writers),
        "readers": _ports(basis.readers),
        "maps": [{"weight": d.weight, "macs_per_token": basis.width**2} for d in products],
    }


def _ports(ports: Iterable[Port]) -> list[dict[str, Any]]:
    return [{"weight": p.weight, "axis": p.axis} for p in ports]


def _values(rotation: Rotation) -> dict[str, Any]:
    writers = [t.weight for t in rotation.turns if t.axis == 0]
    readers = [t.weight for t in rotation.turns if t.axis == 1]
    return {
        "name": writers[0],
        "heads": rotation.count,
        "width": rotation.width,
        "writers": writers,
        "readers": readers,
    }


def _online(online: Online) -> dict[str, Any]:
    node = online.value
    return {
        "name": str(node.meta.get("site") or node.name),
        "source": str(node.meta.get("source") or ""),
        "width": online.width,
        "block": online.block,
        "readers": [t.weight for t in online.turns] or [str(r.meta.get("site") or r.name) for r in online.readers],
    }


def rotation_tables(data: dict[str, Any], starred: Callable[[str], str]) -> list[RenderableType]:
    """People get what differs in a layer's number only as one row. starred: a name without that number."""
    rows: dict[tuple[str, ...], int] = {}
    for row in [*map(_r1_row, data["r1"]), *map(_r2_row, data["r2"]), *_online_rows(data)]:
        key = tuple("\n".join(dict.fromkeys(starred(part) for part in cell.split("\n"))) for cell in row)
        rows[key] = rows.get(key, 0) + 1
    shown = [(kind, number, *rest) for (kind, *rest), number in rows.items()]
    columns = ("rotation", "sites", "width", "written by", "read by", "explicit maps")
    return [
        f"{data['name']}, after fold-norms: what may be turned",
        table("", columns, shown),
        *_told("norms that were not folded", data["not_folded"], starred),
        *_told("not turned", data["not_turned"], starred),
    ]


def _r1_row(basis: dict[str, Any]) -> tuple[str, ...]:
    maps = basis["maps"]
    cost = count(sum(m["macs_per_token"] for m in maps))
    most = f"{len(maps)} (at most {cost} multiply-adds/token)"  # two fast transforms where matrices are Hadamard's
    told = "\n".join([most, *(m["weight"] for m in maps)]) if maps else "none"
    writers, readers = ("\n".join(p["weight"] for p in basis[k]) for k in ("writers", "readers"))
    return "R1", str(basis["width"]), writers, readers, told


def _r2_row(values: dict[str, Any]) -> tuple[str, ...]:
    width = f"{values['heads']} x {values['width']}"
    return "R2", width, "\n".join(values["writers"]), "\n".join(values["readers"]), "none"


def _online_rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind in ("r3", "r4"):
        for online in data[kind]:
            whole = online["block"] == online["width"]
            width = str(online["width"]) + ("" if whole else f" in blocks of {online['block']}")
            rows.append((f"{kind.upper()} online", width, online["name"], "\n".join(online["readers"]), "none"))
    return rows


def _told(title: str, refusals: list[dict[str, Any]], starred: Callable[[str], str]) -> list[str]:
    groups: dict[str, int] = {}
    for r in refusals:
        source = f" [{r['source']}]" if r["source"] else ""
        fix = f"; {r['fix']}" if r["fix"] else ""
        line = starred(f"{r['site']} ({r['op']}): {r['why']}{source}{fix}")
        groups[line] = groups.get(line, 0) + 1
    lines = [f"{number} x {line}" if number > 1 else line for line, number in groups.items()]
    return ["\n  ".join([f"{title}:", *lines])] if lines else [f"{title}: none"]
