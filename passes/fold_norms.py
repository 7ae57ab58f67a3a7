"""fold-norms: the weights of norms into the linears that read them, and layer norms as RMS norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, fx

from drawplate.analysis.bases import Basis, bases
from drawplate.analysis.sites import sites
from drawplate.canonical.match import argument, aten, is_call
from drawplate.errors import Refusal
from drawplate.facts import INTERFACE, WEIGHTS_FLOAT
from drawplate.invariants import SAME_FUNCTION, SIGNATURE
from drawplate.passbase import Env, Pass
from drawplate.program import Editor, Program
from drawplate.turning import factor_removed

LINEAR = aten.linear.default


@dataclass(frozen=True)
class FoldNorms(Pass):
    """A norm's weight goes into the linears that read the norm, W diag(g), where nothing else does (Ashkboos et al.
    2024, arXiv:2401.15024, sec. 3.2). Their biases stay.

    A layer norm becomes an RMS norm where everything that writes its input can be centred, so that the mean which it
    subtracts is zero, and nobody else reads that input; its bias goes into the biases of its readers. An RMS norm is
    never centred: subtracting a mean in front of it changes the function.

    tied: "keep" leaves a table that is embedding and head at once in one piece, and with it the weight of the norm in
    front of the head; "split" gives the head a table of its own, in which the norm can be folded.
    """

    tied: Literal["keep", "split"] = "keep"

    name: ClassVar = "fold-norms"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    preserves: ClassVar = INTERFACE | {WEIGHTS_FLOAT}
    keeps: ClassVar = (SIGNATURE, SAME_FUNCTION)

    def run(self, program: Program, env: Env) -> Program:
        program = split_tables(program) if self.tied == "split" else program
        return _fold(_centre(program, env), env)


def split_tables(program: Program) -> Program:
    """Linears that read a table which token ids look up read a copy of it, named after themselves."""
    editor = program.edit()
    for site in sites(program):
        for node in site.nodes if site.role == "tied" else ():
            if is_call(node, LINEAR):
                name = editor.unused(f"{node.meta.get('site') or 'head'}.weight")
                copy = editor.of(node)
                with editor.graph.inserting_before(copy):
                    read = editor.weight(name, program.weights[site.name])
                copy.replace_input_with(copy.all_input_nodes[1], read)
    return editor.finish()


def _centre(program: Program, env: Env) -> Program:
    """Layer norms over a stream whose writers can all be centred become RMS norms."""
    editor = program.edit()
    chosen: list[fx.Node] = []
    for basis in bases(program):
        nodes = dict.fromkeys(b.node for b in basis.barriers if is_call(b.node, aten.layer_norm.default))
        norms = [n for n in nodes if n.args[0] in basis.values]
        if not norms:
            continue
        why = _not_centred(basis, norms)
        if why:
            env.refuse(Refusal(basis.name, "aten.layer_norm", f"stays a layer norm: {why[0]}", fix=why[1]))
            continue
        for port in basis.writers:
            weight = _wide(editor, port.weight)
            editor.wide(port.weight, weight - weight.mean(port.axis, keepdim=True))
        chosen += norms
    for norm in chosen:  # when all is centred: a norm's bias goes through weights that may write another norm's input
        _as_rms_norm(editor, editor.of(norm))
    return editor.finish()


def _fold(program: Program, env: Env) -> Program:
    """Each norm's weight into its readers."""
    editor = program.edit()
    for basis in bases(program):
        for weight in dict.fromkeys(d.weight for d in basis.entering):
            nodes = [d.node for d in basis.entering if d.weight == weight]  # several: layers that share their weights
            why = _not_folded(basis, weight, nodes)
            if why:
                if any(is_call(node, aten.rms_norm.default) for node in nodes):
                    env.refuse(Refusal(weight, "aten.rms_norm", f"not folded: {why}"))
                continue
            scale = _wide(editor, weight)
            for port in basis.readers:
                editor.wide(port.weight, _wide(editor, port.weight) * scale)
            for node in map(editor.of, nodes):
                value = factor_removed(node)
                if value is not node:
                    editor.replace(node, value)
    return editor.finish()


def _as_rms_norm(editor: Editor, node: fx.Node) -> None:
    """layer_norm(x, shape, w, b, eps) -> rms_norm(x, shape, w, eps), and b where it is read."""
    weight, bias, eps = argument(node, 2, "weight"), argument(node, 3, "bias"), argument(node, 4, "eps", 1e-5)
    with editor.graph.inserting_before(node):
        new = editor.call(aten.rms_norm.default, *node.args[:2], weight, eps, like=node)
    readers = list(node.users)
    editor.replace(node, new)
    if bias is None:
        return
    if all(_absorbs(editor, reader, new) for reader in readers):
        for reader in readers:
            _add_to_bias(editor, reader, _wide(editor, str(bias.target)))
    else:
        with editor.graph.inserting_after(new):
            shifted = editor.call(aten.add.Tensor, new, bias, like=node)
        new.replace_all_uses_with(shifted, delete_user_cb=lambda user: user is not shifted)


def _absorbs(editor: Editor, reader: fx.Node, value: fx.Node) -> bool:
    """Can this reader take a shift of its input into its bias? Not if others read that bias too."""
    if not is_call(reader, LINEAR) or reader.args[0] is not value:
        return False
    matrix: Any = reader.args[1]
    if matrix.op != "get_attr" or len(editor.weights[matrix.target].shape) != 2:
        return False
    bias: Any = argument(reader, 2, "bias")
    if bias is None:
        return True
    reads = [n for n in editor.graph.nodes if n.op == "get_attr" and n.target == bias.target]
    return len({user for read in reads for user in read.users}) == 1


def _add_to_bias(editor: Editor, linear: fx.Node, shift: Tensor) -> None:
    """linear(x + shift) as linear(x) with another bias."""
    name = str(linear.args[1].target)  # type: ignore[union-attr]
    moved = _wide(editor, name) @ shift
    bias: Any = argument(linear, 2, "bias")
    if bias is not None:
        editor.wide(str(bias.target), _wide(editor, str(bias.target)) + moved)
        return
    new = editor.unused(f"{name.removesuffix('.weight')}.bias")
    editor.wide(new, moved, like=name)
    with editor.graph.inserting_before(linear):
        linear.args, linear.kwargs = (*linear.args[:2], editor.weight(new)), {}


def _not_folded(basis: Basis, weight: str, nodes: list[fx.Node]) -> str:
    """Why a per-channel product into this basis, at these nodes, cannot go into what reads it."""
    others = [p.weight for p in basis.writers] or [d.weight for d in basis.entering if d.weight != weight]
    if others:
        tables = {port.weight for port in basis.writers} & {port.weight for port in basis.readers}
        if tables and not any(is_call(user, aten.add.Tensor) for node in nodes for user in node.users):
            return f"{min(tables)} reads it and is also looked up: a table that is tied stays one table"
        return f"its output is added to a stream that {others[0]} writes too"
    if basis.barriers:
        return str(basis.barriers[0])
    if basis.leaving:
        return f"it goes on through {basis.leaving[0].weight}"
    if any(is_call(v, aten.rms_norm.default) and v not in nodes for v in basis.values):
        return "an RMS norm reads it, which a rotation goes through and a factor per channel does not"
    return "" if basis.readers else "no linear reads it"


def _not_centred(basis: Basis, norms: list[fx.Node]) -> tuple[str, str] | None:
    """Why the writers of a layer norm's input cannot be centred, and what to do; None if they can."""
    tables = {port.weight for port in basis.writers} & {port.weight for port in basis.readers}
    if tables:
        return f"{min(tables)} writes its input and is the head's too, which centring would change", "use tied=split"
    others = [b for b in basis.barriers if b.node not in norms or b.node in basis.values]
    if others:
        return str(others[0]), ""
    if any(n.args[1] != [basis.width] for n in norms):
        return "it runs over several axes", ""
    if any(is_call(v, aten.rms_norm.default) for v in basis.values):
        return "an RMS norm reads its input too, and would read it centred", ""
    if basis.leaving or basis.entering:
        return f"the weight {(*basis.leaving, *basis.entering)[0].weight} stands in its stream", ""
    if basis.readers:
        return f"{basis.readers[0].weight} reads its input too, and would read it centred", ""
    return None if basis.writers else ("its input is not written by weights", "")


def _wide(editor: Editor, name: str) -> Tensor:
    weight: Any = editor.weights[name]
    return weight.double()
