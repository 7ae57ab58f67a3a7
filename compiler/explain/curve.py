"""What else these bytes could buy: each weight's options, the best spending of every budget, the next better option."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from drawplate.allocation import Item, Option, allocate, from_json, frontier
from drawplate.analysis.sites import Site
from drawplate.encoding import Encoding
from drawplate.errors import OutputError
from drawplate.explain.harm import Harm
from drawplate.explain.report import Curve, Point, Upgrade
from drawplate.explain.twins import Twins
from drawplate.menu import Menus, groups, item, menu, size

if TYPE_CHECKING:
    from drawplate.artifact import Artifact

RECORD = "allocation.json"
BETTER = 4  # an upgrade is the least that divides the expected damage by this


def recorded(artifact: Artifact) -> tuple[list[Item], dict[str, Option]] | None:
    """What allocate-bits chose from and what it chose, if it weighed KL. Raises OutputError for a damaged record."""
    path = artifact.folder / RECORD
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
        return from_json(data) if data["cost"] == "kl" else None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise OutputError("the record of what was allocated cannot be read", where=str(path), why=why) from error


def menus_of(twins: Twins, found: Sequence[Site]) -> dict[str, list[Encoding | None]]:
    """What the target offers for every weight; empty if there is no target."""
    return {site.name: menu(site, twins.target) for site in found} if twins.target else {}


def offered(twins: Twins, found: Sequence[Site], menus: Menus, harm: Harm) -> tuple[list[Item], dict[str, Option]]:
    """Every weight's options with bytes and expected damage over these menus, by the functions that allocate-bits goes
    by, and the ones that the artifact has."""
    program = twins.floating
    items = [item(group, menus, harm, program, twins.target) for group in groups(program, found)] if menus else []
    return items, _stored(items, twins, found, harm)


def corrected(
    items: Sequence[Item], chosen: Mapping[str, Option], expected: Mapping[str, float], measured: Mapping[str, float]
) -> tuple[list[Item], dict[str, Option]]:
    """The same options, their damage scaled so that the chosen one does what was measured of the weights in it.

    expected, measured: by weight, stored alone; the latter may know some of them only. Large errors do not do what the
    second order foretells, mostly less.
    """
    scaled, now = [], {}
    for one in items:
        own, alone = chosen[one.name].damage, sum(expected[n] for n in one.members)
        known = alone > 0 and set(one.members) & set(measured)
        factor = sum(measured.get(n, expected[n]) for n in one.members) / alone if known else 1.0
        scaled.append(replace(one, options=tuple(replace(o, damage=o.damage * factor) for o in one.options)))
        now[one.name] = replace(chosen[one.name], damage=own * factor)
    return scaled, now


def curve(
    items: Sequence[Item], chosen: Mapping[str, Option], file_bytes: int, weights_kl: float, source: str
) -> Curve:
    """The best spending of the artifact's own bytes, and of others as far as a worth of a byte finds it. file_bytes: of
    its model files, in which the chosen options are; what is not allocated takes the rest."""
    own = sum(o.bytes for o in chosen.values())
    around, best = file_bytes - own, frontier(items)
    if best[0][0] <= own:
        exact = allocate(items, own)
        best = sorted([*best, (exact.bytes, exact.damage)])
    points = [Point(around + size_, max(0.0, damage)) for size_, damage in best]
    falling = [p for i, p in enumerate(points) if i == 0 or p.kl < min(q.kl for q in points[:i])]
    return Curve(tuple(falling), Point(file_bytes, sum(o.damage for o in chosen.values())), weights_kl, source)


def upgrades(items: Sequence[Item], chosen: Mapping[str, Option]) -> dict[str, Upgrade]:
    """By the name of each weight: the smallest option that divides the expected damage by BETTER; none if that is not
    to be had, or the weight does no damage."""
    found: dict[str, Upgrade] = {}
    for one in items:
        now = chosen[one.name]
        better = [o for o in one.options if o.bytes > now.bytes and o.damage <= now.damage / BETTER]
        if better and now.damage > 0:
            best = min(better, key=lambda o: o.bytes)
            text = str(best.what or "float")
            bits = 32.0 if text == "float" else float(Encoding.parse(text).bits)
            upgrade = Upgrade(text, bits, best.bytes - now.bytes, best.damage, one.members)
            found |= dict.fromkeys(one.members, upgrade)
    return found


def _stored(items: Sequence[Item], twins: Twins, found: Sequence[Site], harm: Harm) -> dict[str, Option]:
    """The option that each item has in the artifact; of members that are stored differently, their sum."""
    by_name = {site.name: site for site in found}
    encodings = twins.stored.encodings
    chosen = {}
    for one in items:
        members = [by_name[name] for name in one.members]
        stored = [encodings.get(name) for name in one.members]
        same = [o for o in one.options if all(o.what == e for e in stored)]
        taken = sum(size(s, e, twins.floating, twins.target) for s, e in zip(members, stored, strict=True))
        lost = sum(harm([s], e) for s, e in zip(members, stored, strict=True) if e is not None)
        chosen[one.name] = same[0] if same else Option(taken, lost, stored[0])
    return chosen
