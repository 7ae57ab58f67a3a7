"""add-lora: a low-rank product beside each linear, which adds nothing until it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from drawplate.activations import ENCODE
from drawplate.analysis.adapters import adapters
from drawplate.analysis.sites import Site, sites
from drawplate.canonical.match import aten, is_call, value
from drawplate.digest import tensors_of
from drawplate.encoding import SCALE_DTYPES, ScaleDtype
from drawplate.errors import PassError, Refusal
from drawplate.facts import INTERFACE, NUMBERS
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.leaves import fresh_adapter
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.peft import Adapters, files_of, read_adapters
from drawplate.program import Editor, Program


@dataclass(frozen=True)
class AddLora(Pass):
    """Beside each linear but the head, y = W x becomes y = W x + scale * B (A x), with A [rank, in] random and B
    [out, rank] zero (LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3). The function is the same until B is trained. They
    read x as it is in front of any rounding, and stay floating point: put add-lora behind quantize-weights and
    quantize-activations, and in front of merge-linears.

    rank: columns of B. scale: alpha / rank of the paper. A is uniform within 1 / sqrt(in), by the recipe's seed.
    adapters: a folder in PEFT's format, whose trained A and B are taken; then rank, scale and dtype are its own.
    dtype: what A and B are kept in, if that is narrower than what they are multiplied in; None is the model's own. They
    are read as numbers of the model's dtype, so no activation is rounded, and their training is in float32 anyhow.
    """

    rank: int = 16
    scale: float = 2.0
    adapters: str = ""
    dtype: ScaleDtype | None = None

    name: ClassVar = "add-lora"
    preserves: ClassVar = NUMBERS | INTERFACE
    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE, SAME_FUNCTION)

    def __post_init__(self) -> None:
        refuse_numbers(self, positive=("rank", "scale"))

    @property
    def reads(self) -> tuple[Path, ...]:
        return files_of(Path(self.adapters)) if self.adapters else ()

    @property
    def promises(self) -> tuple[Invariant, ...]:
        """What was trained elsewhere changes the function."""
        return (SIGNATURE,) if self.adapters else self.keeps

    def check_env(self, env: Env) -> None:
        if self.adapters:
            read_adapters(Path(self.adapters))

    def run(self, program: Program, env: Env) -> Program:
        if adapters(program):
            fix = "fold them first, with fold-lora, or name add-lora once"
            raise PassError("there are low-rank products beside linears already", fix=fix)
        wanted = [s for s in sites(program) if s.role == "linear"]
        given = read_adapters(Path(self.adapters)) if self.adapters else None
        if given is not None:
            wanted = _matched(given, wanted, self.adapters)
        if not wanted:
            env.refuse(Refusal(program.name, "", "there is no linear to put a low-rank product beside"))
        editor, random = program.edit(), torch.Generator().manual_seed(env.seed)
        for site in wanted:
            if given is not None:
                down, up = given.down[_module(site)], given.up[_module(site)]
            elif min(site.shape) <= self.rank:
                why = f"its weight is {list(site.shape)}: a product of rank {self.rank} beside it would not be low-rank"
                env.refuse(Refusal(site.name, "aten.linear", why, fix="use a lower rank"))
                continue
            else:
                rows, columns = site.shape
                down, up = fresh_adapter(rows, columns, self.rank, random)
            names = self._named(editor, site, {"lora_A": down, "lora_B": up})
            for node in site.nodes:
                self._beside(editor, node, names, given.scale if given is not None else self.scale)
        return editor.finish()

    def _named(self, editor: Editor, site: Site, made: Mapping[str, Tensor]) -> list[str]:
        """The names of A and B, which are in the program then. Linears that share a weight share them too."""
        read, device = value(site.nodes[0]).dtype, next(iter(tensors_of(editor.weights[site.name]))).device
        names = [editor.unused(f"{_module(site)}.{part}.weight") for part in made]
        for name, weight in zip(names, made.values(), strict=True):
            kept = SCALE_DTYPES[self.dtype] if self.dtype else weight.dtype if self.adapters else read
            dtype = kept if kept.itemsize < read.itemsize else read
            editor.weights[name] = weight.to(dtype=dtype, device=device)
        return names

    def _beside(self, editor: Editor, node: fx.Node, names: Sequence[str], scale: float) -> None:
        (down, up), linear = names, editor.of(node)
        x: Any = linear.args[0]
        x = x.args[0] if is_call(x, ENCODE) else x
        with editor.graph.inserting_after(linear):
            total = editor.call(aten.add.Tensor, linear, linear, like=linear)
        linear.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        with editor.graph.inserting_before(total):
            inner = self._product(editor, x, down, node)
            outer = self._product(editor, inner, up, node)
            total.args = (linear, editor.call(aten.mul.Tensor, outer, scale, like=linear))

    def _product(self, editor: Editor, x: Any, name: str, like: fx.Node) -> fx.Node:
        """x times the weight of this name, read in the dtype that `like` gives."""
        weight = editor.weight(name)
        calls = [weight]
        if editor.weights[name].dtype != value(like).dtype:  # type: ignore[union-attr]
            calls.append(editor.call(aten.to.dtype, weight, value(like).dtype, like=like))
        calls.append(editor.call(aten.linear.default, x, calls[-1], like=like))
        for call in calls[1:]:
            call.meta["site"] = name.removesuffix(".weight")
        return calls[-1]


def _module(site: Site) -> str:
    return site.name.removesuffix(".weight")


def _matched(given: Adapters, found: Sequence[Site], where: str) -> list[Site]:
    """The linears that the adapters stand beside. Raises PassError, with all of them, for those that fit none."""
    by_module = {_module(site): site for site in found}
    wrong = []
    for module, down in given.down.items():
        shape = [given.up[module].shape[0], down.shape[1]]
        if module not in by_module:
            wrong.append(f"there is no linear {module} here, or it is the head")
        elif len(down) > min(shape):
            wrong.append(f"{module} is {shape}, and a product of rank {len(down)} beside it is not low-rank")
        elif shape != list(by_module[module].shape):
            wrong.append(f"{module} is {list(by_module[module].shape)} here, and {shape} in the adapter")
    if wrong:
        fix = "give an adapter that was trained on this model, and put add-lora in front of what merges linears"
        raise PassError("the adapter is not for this model", where=where, why="\n".join(wrong), fix=fix)
    return [site for module, site in by_module.items() if module in given.down]
