"""Why a weight cannot be stored in a GPTQ checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from drawplate.analysis.sites import sites
from drawplate.backends.gptq.packing import WORD
from drawplate.backends.gptq.target import BITS, GROUPS
from drawplate.encoding import Encoding, QTensor
from drawplate.errors import Refusal
from drawplate.program import Program


def refusals(program: Program) -> list[Refusal]:
    """Every reason, from encodings and shapes alone."""
    found = []
    linears = {s.name: s.role for s in sites(program) if s.role in ("linear", "head")}
    for name, weight in program.weights.items():
        if isinstance(weight, QTensor):
            if name not in linears:
                why = "a table that tokens look up stays floating point in this format, and so does what is no linear"
                fix = "leave out quantize-embedding; where the head shares the table, untie-head first"
                found.append(Refusal(name, "weight", why, fix=fix))
            else:
                found += [Refusal(name, "weight", *why) for why in _misfits(weight.encoding, weight.shape)]
    return found


def _misfits(encoding: Encoding, shape: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """(why, source, fix) of each thing that the format cannot say."""
    if encoding.bits not in BITS:
        yield f"GPTQ has no {encoding.bits} bits", "", f"use {', '.join(map(str, BITS))}"
        return
    if len(encoding.block) != 2 or encoding.block[0] != 1 or encoding.block[1] not in GROUPS:
        groups = ", ".join(map(str, GROUPS[:-1]))
        yield f"GPTQ has no blocks of {'x'.join(map(str, encoding.block))}", "", f"use 1x and {groups} or -1"
        return
    for what, length in (("in", shape[1]), ("out", shape[0])):
        if length * encoding.bits % WORD:
            per = "32 codes fill three words" if encoding.bits == 3 else f"{WORD // encoding.bits} codes fill a word"
            yield (
                f"its axis {what} of {length} does not fill words of 32 bits: {per}",
                "",
                "leave it in floating point",
            )
