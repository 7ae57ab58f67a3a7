"""Write a pass of your own and have it checked: here one that rounds norm weights to bfloat16.

    python examples/04_write_a_pass.py

To ship it, put it into a distribution of its own: see a_pass_plugin/.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

import drawplate
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.plugins import hookimpl
from drawplate.testing import check_pass

PROGRAM = """\
// drawplate text 1
program small(%x: f32[b, 8]) where 1 <= b <= 64 {
  weight @norm.weight : f32[8] = seed(1)
  weight @up.weight   : f32[16, 8] = seed(2)
  %0 : f32[b, 8]  = aten.rms_norm(%x, [8], @norm.weight, 1e-06)
  %1 : f32[b, 16] = aten.linear(%0, @up.weight)
  return %1
}
"""


@dataclass(frozen=True)
class RoundNorms(drawplate.Pass):
    """Round the weights of norms to bfloat16."""

    name: ClassVar[str] = "round-norms"
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)  # it does not keep the second one: the runner will say so

    def run(self, program: drawplate.Program, env: drawplate.Env) -> drawplate.Program:
        editor = program.edit()
        for node in editor.nodes(torch.ops.aten.rms_norm.default):
            weight = node.args[2]
            if weight is None:
                env.refuse(drawplate.Refusal(node.name, "aten.rms_norm", "it has no weight"))
            else:
                name = str(weight.target)
                editor.weights[name] = editor.weights[name].bfloat16().float()
        return editor.finish()


class Plugin:
    """What an installed plugin's module does."""

    @hookimpl
    def drawplate_passes(self) -> list[type[drawplate.Pass]]:
        return [RoundNorms]


session = drawplate.Session({"mine": Plugin()})
print(session.owners["pass", "round-norms"], "brings", drawplate.Recipe.parse("round-norms", session))

try:
    check_pass(RoundNorms(), PROGRAM)
except AssertionError as error:
    print("as it claims to keep the function:\n ", error)


@dataclass(frozen=True)
class HonestRoundNorms(RoundNorms):
    """The same, claiming only what is true."""

    keeps: ClassVar = (SIGNATURE,)


print("as it should be:", *(c.invariant for c in check_pass(HonestRoundNorms(), PROGRAM).certificates))
