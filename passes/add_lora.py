"""add-lora: a low-rank product beside each linear, which adds nothing until it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import Site, sites
from drawplate.canonical.match import aten, is_call, value
from drawplate.digest import tensors_of
from drawplate.errors import Refusal
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Editor, Program

ENCODE = torch.ops.drawplate.encode.default


@dataclass(frozen=True)
class AddLora(Pass):
    """Beside each linear but the head, y = W x becomes y = W x + scale * B (A x), with A [rank, in] random and B
    [out, rank] zero (LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3). The function is the same until B is trained. They
    read x as it is in front of any rounding, and stay floating point: put add-lora behind quantize-weights and
    quantize-activations, and in front of merge-linears.

    rank: columns of B. scale: alpha / rank of the paper. A is uniform within 1 / sqrt(in), by the recipe's seed.
    """

    rank: int = 16
    scale: float = 2.0

    name: ClassVar = "add-lora"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} is not above 0")
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale} is not above 0")

    def run(self, program: Program, env: Env) -> Program:
        wanted = [s for s in sites(program) if s.role == "linear"]
        if not wanted:
            env.refuse(Refusal(program.name, "", "there is no linear to put a low-rank product beside"))
        editor, random = program.edit(), torch.Generator().manual_seed(env.seed)
        for site in wanted:
            if min(site.shape) <= self.rank:
                why = f"its weight is {list(site.shape)}: a product of rank {self.rank} beside it would not be low-rank"
                env.refuse(Refusal(site.name, "aten.linear", why, fix="use a lower rank"))
                continue
            down, up = self._weights(editor, site, random)
            for node in site.nodes:
                self._beside(editor, node, down, up)
        return editor.finish()

    def _weights(self, editor: Editor, site: Site, random: torch.Generator) -> tuple[str, str]:
        """The names of A and B, which are made here. Linears that share a weight share them too."""
        dtype, device = value(site.nodes[0]).dtype, next(iter(tensors_of(editor.weights[site.name]))).device
        rows, columns = site.shape
        uniform = (2 * torch.rand(self.rank, columns, generator=random) - 1) / columns**0.5
        made: dict[str, Tensor] = {"lora_A": uniform, "lora_B": torch.zeros(rows, self.rank)}
        base = site.name.removesuffix(".weight")
        names = [editor.unused(f"{base}.{part}.weight") for part in made]
        editor.weights.update({n: w.to(dtype=dtype, device=device) for n, w in zip(names, made.values(), strict=True)})
        return names[0], names[1]

    def _beside(self, editor: Editor, node: fx.Node, down: str, up: str) -> None:
        linear = editor.of(node)
        x: Any = linear.args[0]
        x = x.args[0] if is_call(x, ENCODE) else x
        with editor.graph.inserting_after(linear):
            total = editor.call(aten.add.Tensor, linear, linear, like=linear)
        linear.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        with editor.graph.inserting_before(total):
            inner = editor.call(aten.linear.default, x, editor.weight(down), like=linear)
            outer = editor.call(aten.linear.default, inner, editor.weight(up), like=linear)
            for call, name in ((inner, down), (outer, up)):
                call.meta["site"] = name.removesuffix(".weight")
            total.args = (linear, editor.call(aten.mul.Tensor, outer, self.scale, like=linear))
