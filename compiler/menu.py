"""What each weight of a program may be on a target, and what that takes: what bits are allocated from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from drawplate.allocation import Item, Option
from drawplate.analysis.hidden import bands
from drawplate.analysis.sites import Site
from drawplate.canonical.match import aten, is_call
from drawplate.encoding import Encoding
from drawplate.program import Program
from drawplate.target import Target

Menus = Mapping[str, Sequence[Encoding | None]]
WIDEST = 128  # the largest group that is offered where a target takes any multiple


def menu(site: Site, target: Target) -> list[Encoding | None]:
    """The target's menu for all that read this weight, as far as it fits its shape. None: floating point."""
    kinds = {"embedding" if is_call(n, aten.embedding.default) else "linear" for n in site.nodes}
    menus = [list(_entries(target.menu[kind])) for kind in sorted(kinds)]
    return fitting(site, [e for e in menus[0] if all(e in other for other in menus[1:])])


def fitting(site: Site, entries: Iterable[Encoding | None]) -> list[Encoding | None]:
    """The entries that can hold a weight of this shape."""
    return [e for e in entries if e is None or e.fits(site.shape)]


def groups(program: Program, found: Sequence[Site]) -> list[tuple[Site, ...]]:
    """Sites that must agree: linears that read one value can be merged only if they are stored alike. Those of
    different bands need not be."""
    band = bands(program)
    together: dict[Any, list[Site]] = {}
    for site in found:
        node = site.nodes[0]
        alone = len(site.nodes) > 1 or site.role != "linear"
        together.setdefault(site.name if alone else (node.args[0], band.get(node)), []).append(site)
    return list(map(tuple, together.values()))


def size(site: Site, encoding: Encoding | None, program: Program, target: Target | None) -> int:
    """Bytes in the file. A table that is embedding and head at once is there twice where their kernels read it so."""
    if encoding is None:
        return program.weights[site.name].nbytes
    twice = site.role == "tied" and target is not None and encoding.bits not in target.tied_bits
    return encoding.nbytes(site.shape) + (encoding.code_bytes(site.shape) if twice else 0)  # one set of scales


def item(
    group: Sequence[Site],
    menus: Menus,
    damage: Callable[[Sequence[Site], Encoding], float],
    program: Program,
    target: Target | None,
    time: Callable[[Site, Encoding | None], int] = lambda site, encoding: 0,
) -> Item:
    """The options of a group: what all of its members can be. damage: of all of them under one encoding. time: of each,
    in ns per token, where that is asked."""
    first, *others = (menus[site.name] for site in group)
    options = []
    for encoding in first:
        if all(encoding in other for other in others):
            taken = sum(size(s, encoding, program, target) for s in group)
            harm = 0.0 if encoding is None else damage(group, encoding)
            options.append(Option(taken, harm, encoding, sum(time(s, encoding) for s in group)))
    if not options:
        taken = sum(size(s, None, program, target) for s in group)
        options = [Option(taken, 0.0, None, sum(time(s, None) for s in group))]
    return Item(group[0].name, tuple(options), tuple(s.name for s in group))


def _entries(choices: Sequence[Any]) -> Iterator[Encoding | None]:
    """The encodings of a menu; where any multiple of a group will do, the powers of two up to WIDEST."""
    for choice in choices:
        weight: Encoding | None = choice.weight
        group = choice.group_multiple
        if weight is None or group is None:
            yield weight
            continue
        while group <= WIDEST:
            yield Encoding(weight.bits, (1, group), weight.symmetric, weight.signed, weight.scale)
            group *= 2
