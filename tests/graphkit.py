"""Programs for the tests of rotations, written as their weights' shapes and their lines."""

import re

from drawplate.program import Program
from drawplate.text import parse_program

HEAD = """// drawplate text 1
program p(%i: i64[b, s]) where 1 <= b <= 4, 4 <= s <= 16 {
"""
FED = HEAD.replace("%i: i64[b, s]", "%i: i64[b, s], %x0: f32[b, s, 8]")
"""The same with a value from outside, of 8 channels."""


def program(lines: str, head: str = HEAD, **shapes: tuple[int, ...]) -> Program:
    """Weights are [8, 8] unless `shapes` says otherwise; each has a seed of its own."""
    lines = lines.strip("\n")
    names = dict.fromkeys(re.findall(r"@([\w.]+)", lines))
    weights = [f"  weight @{n} : f32{list(shapes.get(n, (8, 8)))} = seed({i})" for i, n in enumerate(names, 1)]
    return parse_program(head + "\n".join([*weights, lines, "}"]))


def attention(values: str = "", mixed: str = "", result: str = "") -> str:
    """The lines of one attention with two heads of 4 channels; other lines for %v's heads, the product, its reader."""
    heads = "  %{0} = aten.linear(%t, @{0})\n  %{0}h = aten.reshape(%{0}, [%b, %s, 2, 4])\n"
    heads += "  %{0}t = aten.transpose.int(%{0}h, 1, 2)\n"
    parts = [
        "  %b = aten.sym_size.int(%i, 0)\n  %s = aten.sym_size.int(%i, 1)\n  %t = aten.embedding(@e, %i)\n",
        heads.format("q"),
        heads.format("k"),
        values or heads.format("v"),
        mixed or "  %a = aten.scaled_dot_product_attention(%qt, %kt, %vt, None, 0.0, True)  // attn\n",
        result
        or "  %at = aten.transpose.int(%a, 1, 2)\n  %ar = aten.reshape(%at, [%b, %s, 8])\n"
        "  %y = aten.linear(%ar, @o)  // out\n  return %y",
    ]
    return "".join(parts)
