"""Where each weight stands: the block that reads it, and what it is there. Names serve as labels alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from drawplate.analysis.blocks import Block, blocks
from drawplate.program import Program

BEFORE, BEHIND = "in", "out"


@dataclass(frozen=True)
class Places:
    """(layer, component) of each weight by its name, and both axes in order.

    A layer is the number of the block among those that read a matrix, whether or not one of these weights is in it; or
    "in" and "out" for what stands before the first and behind the last.
    """

    of: Mapping[str, tuple[str, str]]
    layers: tuple[str, ...]
    components: tuple[str, ...]


def places(program: Program, names: Collection[str]) -> Places:
    """Of these weights, which the program reads in this order."""
    layered = [b for b in blocks(program) if _reads_matrix(program, b)]
    inside = {name: (i, block) for i, block in enumerate(layered) for name in block.weights}
    found: dict[str, tuple[str, str]] = {}
    layer = BEFORE
    for name in _in_order(program, names):
        if name in inside:
            i, block = inside[name]
            layer, component = str(i), short(name, block)
        else:
            layer, component = BEFORE if layer == BEFORE else BEHIND, short(name)
        found[name] = (layer, component)
    numbers = [str(i) for i in range(len(layered))]
    used = {layer for layer, _ in found.values()}
    layers = tuple(x for x in (BEFORE, *numbers, BEHIND) if x in used)
    return Places(found, layers, tuple(dict.fromkeys(component for _, component in found.values())))


def short(name: str, block: Block | None = None) -> str:
    """A weight's name without its block's and without `.weight`.

    >>> short("model.embed_tokens.weight")
    'model.embed_tokens'
    """
    inside = name.removeprefix(f"{block.name}.") if block else name
    return inside.replace(".weight", "") or name


def _reads_matrix(program: Program, block: Block) -> bool:
    """Or is it a norm that stands alone?"""
    return any(len(program.weights[name].shape) > 1 for name in block.weights if name in program.weights)


def _in_order(program: Program, names: Collection[str]) -> list[str]:
    """Of their first use."""
    read = (str(n.target) for node in program.nodes() for n in node.all_input_nodes if n.op == "get_attr")
    return [name for name in dict.fromkeys(read) if name in names]
