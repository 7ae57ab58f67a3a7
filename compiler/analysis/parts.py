"""A program as parts that run one after the other: what comes before the chain of blocks, each block, the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from drawplate.analysis.blocks import blocks
from drawplate.program import Program


@dataclass(frozen=True)
class Part:
    """A run of nodes. needs: the values that it reads of others. gives: those that others read of it. name: the
    block's; empty for what is before and after them."""

    nodes: tuple[fx.Node, ...]
    needs: tuple[fx.Node, ...]
    gives: tuple[fx.Node, ...]
    name: str = ""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that it reads."""
        read = (i for n in self.nodes for i in n.all_input_nodes if i.op == "get_attr")
        return tuple(dict.fromkeys(str(n.target) for n in read))


def parts(program: Program) -> list[Part]:
    """What comes before the chain of blocks, each block, and what comes after; one part where there is no chain."""
    chain = blocks(program)
    inside = {n: i for i, block in enumerate(chain) for n in block.nodes}
    place: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        sources = [place[n] for n in node.all_input_nodes if n in place]
        behind = bool(chain) and len(chain) in sources
        place[node] = inside[node] + 1 if node in inside else (len(chain) + 1 if behind else 0)
        place[node] = max([place[node], *sources])
    runs: list[list[fx.Node]] = [[] for _ in range(len(chain) + 2)]
    for node, where in place.items():
        runs[where].append(node)
    names = ["", *(block.name for block in chain), ""]
    # A weight is read where it is wanted, whoever else reads it too.
    return [_part(run, name) for run, name in zip(runs, names, strict=True) if any(n.op != "get_attr" for n in run)]


def _part(nodes: Sequence[fx.Node], name: str) -> Part:
    mine = set(nodes)
    needs = dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in mine and i.op != "get_attr")
    gives = [n for n in nodes if n.op != "get_attr" and any(u not in mine for u in n.users)]
    return Part(tuple(nodes), tuple(needs), tuple(gives), name)
