"""untie-head: a table that is embedding and head at once becomes one weight for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drawplate.analysis.sites import sites
from drawplate.errors import Refusal
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Program


@dataclass(frozen=True)
class UntieHead(Pass):
    """Give the linear that multiplies with the embedding's table a weight of its own, equal to it for now. Head and
    table can then be rotated and stored each in its own way, for the bytes of a second table; so are the files made
    that Meta published. Without this pass the table stays one.
    """

    name: ClassVar = "untie-head"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def run(self, program: Program, env: Env) -> Program:
        tied = [s for s in sites(program) if s.role == "tied"]
        if not tied:
            env.refuse(Refusal(program.name, "", "no table is embedding and head at once"))
        editor = program.edit()
        for site in tied:
            linears = [n for n in site.nodes if n.target is torch.ops.aten.linear.default]
            name = editor.unused(f"{linears[0].meta.get('site') or 'head'}.weight")
            for node in linears:
                with editor.graph.inserting_before(editor.of(node)):
                    editor.of(node).update_arg(1, editor.weight(name, program.weights[site.name]))
        return editor.finish()
