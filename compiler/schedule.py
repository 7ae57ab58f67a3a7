"""The order of passes, with the reasons for it.

Every pass says which facts it requires, provides and preserves. Positions are nodes of a graph, and each need
makes edges: behind the pass that provides the fact, before every pass that breaks it again. The order is the
topological one that stays nearest to what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import networkx as nx

from drawplate.errors import RecipeError
from drawplate.options import spec

if TYPE_CHECKING:
    from drawplate.passbase import Fact, Pass

    _Graph = nx.DiGraph[int]


@dataclass(frozen=True)
class Reason:
    """Why one pass stands before another; both are positions in the written order.

    "provides": the earlier provides the fact to the later. "breaks": the earlier requires it and the later
    breaks it. "renews": the earlier breaks it and the later provides it again, for a third.
    """

    before: int
    after: int
    kind: Literal["provides", "breaks", "renews"]
    fact: str


@dataclass(frozen=True)
class Schedule:
    """written: the passes as given. positions: their places in it, in the order to run. reasons: all."""

    written: tuple[Pass, ...]
    positions: tuple[int, ...]
    reasons: tuple[Reason, ...]

    @property
    def order(self) -> tuple[Pass, ...]:
        """The passes in the order to run."""
        return tuple(self.written[i] for i in self.positions)

    def explain(self) -> str:
        """One line per pass and under it why not earlier; what follows from other lines is left out."""
        graph: _Graph = nx.DiGraph((r.before, r.after) for r in self.reasons)
        needed = set(nx.transitive_reduction(graph).edges)
        lines = []
        for place, i in enumerate(self.positions):
            moved = f"   (written as number {i + 1})" if i != place else ""
            lines.append(f"{place + 1}. {spec(self.written[i])}{moved}")
            told = [r for r in self.reasons if r.after == i and (r.kind == "provides" or (r.before, i) in needed)]
            lines += [f"     {_tell(self.written, r)}" for r in told]
        return "\n".join(lines)


def schedule(passes: Iterable[Pass], facts: Iterable[str] = (), pinned: bool = False) -> Schedule:
    """The order in which every pass finds what it requires.

    facts: names of what already holds of the program. pinned: the written order must do; needing another is
    an error. Raises RecipeError: for every fact that nobody provides, or for a loop, with all the reasons.
    """
    written, facts = tuple(passes), frozenset(facts)
    _refuse_missing(written, facts)
    needs = [_ways(written, facts, i, fact) for i, p in enumerate(written) for fact in sorted(_names(p.requires))]
    graph: _Graph = nx.DiGraph()
    graph.add_nodes_from(range(len(written)))
    if not next(_Search(graph).solutions(needs), False):
        raise _loop_error(written, needs)
    positions = tuple(nx.lexicographical_topological_sort(graph, key=int))
    reasons = (r for _, _, data in sorted(graph.edges(data=True), key=lambda e: e[:2]) for r in data["reasons"])
    made = Schedule(written, positions, tuple(dict.fromkeys(reasons)))
    if pinned and positions != tuple(range(len(written))):
        raise _pinned_error(made)
    return made


# A need is met in one of several ways: by the program as it comes, or by one of the providers; and each pass
# that breaks the fact stands either before that provider or behind the pass in need. So a way is a list of
# choices, and a choice a list of edges of which the graph must have one, the preferred first.
_Way = list[list[Reason]]


def _ways(written: Sequence[Pass], facts: frozenset[str], i: int, fact: str) -> list[_Way]:
    """Every way to meet the need of position i for the fact, the one nearest to the written order first."""
    providers = [j for j, p in enumerate(written) if j != i and fact in _names(p.provides)]
    # The last provider written before i is the one that was meant; then the program itself; then the others.
    earlier, later = [j for j in reversed(providers) if j < i], [j for j in providers if j > i]
    sources: list[int | None] = [*earlier, *([None] if fact in facts else []), *later]
    return [_way(written, i, fact, source) for source in sources]


def _way(written: Sequence[Pass], i: int, fact: str, source: int | None) -> _Way:
    """The edges by which i finds the fact as `source` (None: the incoming program) made it."""
    way: _Way = [] if source is None else [[Reason(source, i, "provides", fact)]]
    for k, p in enumerate(written):
        if k in (i, source) or fact in _names(p.provides) | _names(p.preserves):
            continue
        later = Reason(i, k, "breaks", fact)
        if source is None:
            way.append([later])
        else:
            sooner = Reason(k, source, "renews", fact)
            way.append([sooner, later] if k < source or k < i < source else [later, sooner])
    return way


class _Search:
    """Depth first over ways and choices, preferred ones first: nearly always the first path is the answer."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        self._steps = 20_000  # about a second: no recipe is so tangled that more would help

    def solutions(self, needs: Sequence[Sequence[_Way]]) -> Iterator[bool]:
        """Yields with a solution's edges in the graph; they are taken out again if the caller goes on."""
        if not needs:
            yield True
            return
        for way in needs[0]:
            for _ in self._choices(way):
                yield from self.solutions(needs[1:])

    def _choices(self, way: _Way) -> Iterator[bool]:
        if not way:
            yield True
            return
        # What already follows from other edges needs no decision: the alternatives would close a loop.
        follows = [r for r in way[0] if nx.has_path(self._graph, r.before, r.after)]
        for reason in follows[:1] or way[0]:
            self._steps -= 1
            if self._steps > 0 and not nx.has_path(self._graph, reason.after, reason.before):
                self._add(reason)
                yield from self._choices(way[1:])
                self._remove(reason)

    def _add(self, reason: Reason) -> None:
        edge = reason.before, reason.after
        if not self._graph.has_edge(*edge):
            self._graph.add_edge(*edge, reasons=[])
        self._graph.edges[edge]["reasons"].append(reason)

    def _remove(self, reason: Reason) -> None:
        edge = reason.before, reason.after
        self._graph.edges[edge]["reasons"].remove(reason)
        if not self._graph.edges[edge]["reasons"]:
            self._graph.remove_edge(*edge)


def _names(facts: Iterable[Fact]) -> frozenset[str]:
    return frozenset(fact.name for fact in facts)


def _call(written: Sequence[Pass], i: int) -> str:
    """The pass's name, with its number where the name alone would not do."""
    twice = sum(p.name == written[i].name for p in written) > 1
    return f"{written[i].name} (number {i + 1})" if twice else written[i].name


def _tell(written: Sequence[Pass], reason: Reason) -> str:
    before, after = _call(written, reason.before), _call(written, reason.after)
    match reason.kind:
        case "provides":
            return f"{before} provides {reason.fact!r}"
        case "breaks":
            return f"{before} must run before {reason.fact!r} is broken by {after}"
        case "renews":
            return f"{before} breaks {reason.fact!r}, and {after} provides it again"


def _refuse_missing(written: Sequence[Pass], facts: frozenset[str]) -> None:
    """Raise for all facts at once that hold at no time."""
    reasons = []
    for i, p in enumerate(written):
        provided = facts.union(*(_names(q.provides) for j, q in enumerate(written) if j != i))
        missing = sorted(_names(p.requires) - provided)
        reasons += [f"{_call(written, i)} requires {fact!r}, which nothing provides" for fact in missing]
    if reasons:
        raise RecipeError(
            "the recipe lacks a pass",
            where=",".join(map(spec, written)),
            why="; ".join(reasons),
            fix="add a pass that provides it; 'drawplate plugins' lists them",
        )


def _loop_error(written: Sequence[Pass], needs: Sequence[Sequence[_Way]]) -> RecipeError:
    """The loop that arises when every need is met in its preferred way, each step with its reason."""
    graph: _Graph = nx.DiGraph()
    for ways in needs:
        for choice in ways[0]:
            graph.add_edge(choice[0].before, choice[0].after, reason=choice[0])
    loop = nx.find_cycle(graph)
    first = loop.index(min(loop))  # begin with the pass that was written first
    loop = loop[first:] + loop[:first]
    return RecipeError(
        "the passes cannot be ordered: their needs go in a circle",
        where=" -> ".join(_call(written, a) for a, _ in [*loop, loop[0]]),
        why="; ".join(_tell(written, graph.edges[edge]["reason"]) for edge in loop),
        fix="leave one of them out, or put in a pass that provides the broken fact again",
    )


def _pinned_error(made: Schedule) -> RecipeError:
    """Names every reason that the written order goes against."""
    broken = [_tell(made.written, r) for r in made.reasons if r.before > r.after]
    return RecipeError(
        "the recipe pins an order that does not work",
        where=",".join(map(spec, made.written)),
        why="; ".join(broken),
        fix=f"write {','.join(map(spec, made.order))}, or do not pin",
    )
