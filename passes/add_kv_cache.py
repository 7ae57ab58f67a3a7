"""add-kv-cache: from a program over a whole text to one that is fed it piece by piece."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from drawplate.canonical.match import argument, same_length
from drawplate.encoding import SCALE_DTYPES, Encoding, code_dtype
from drawplate.errors import PassError, Refusal, grouped
from drawplate.facts import CACHE_INSERTED, HEAD_LAST_POSITION, NUMBERS
from drawplate.invariants import SAME_FUNCTION
from drawplate.passbase import Env, Pass
from drawplate.program import Dim, Editor, Program, Spec, fold_lengths

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
WINDOW = torch.ops.drawplate.window_mask.default
CACHED = torch.ops.drawplate.cached_attention
ENCODE = torch.ops.drawplate.encode.default
TOKENS, POSITION = "tokens", "input_pos"  # the names that ExecuTorch's runners use


@dataclass(frozen=True)
class AddKvCache(Pass):
    """Each attention keeps keys and values between calls and the program takes only what is new.

    (input_ids [b, s], position_ids [b, s]) becomes (tokens [1, s], input_pos [s]), with state `cache.<i>.key` and
    `cache.<i>.value`, [1, context, key heads, width]. context: the most tokens that fit, prompt and answer together.
    Attention must be canonical, and causal or over a sliding window. Keys and values that quantize-cache encoded are
    kept as integers, with state `cache.<i>.key_scale` and `key_zero_point`, [1, context, key heads, 1], beside them.
    """

    context: int = 512

    name: ClassVar = "add-kv-cache"
    provides: ClassVar = frozenset({CACHE_INSERTED})
    preserves: ClassVar = NUMBERS | {HEAD_LAST_POSITION}
    keeps: ClassVar = (SAME_FUNCTION,)

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"a context of {self.context} tokens holds nothing")

    def run(self, program: Program, env: Env) -> Program:
        length = self._check(program)
        editor = program.edit()
        attentions = editor.nodes(SDPA)
        position = _narrow_inputs(program, editor, Dim(length.name, length.low, self.context))
        for i, node in enumerate(attentions):
            _cache(editor, node, position, f"cache.{i}", self.context)
        return fold_lengths(editor.finish())

    def _check(self, program: Program) -> Dim:
        """The dim of the text's length. Raises PassError with every reason why there can be no cache."""
        kinds = [(s.dtype, len(s.shape)) for s in program.inputs]
        length = next((d for d in program.dims if program.inputs and d.name == program.inputs[0].shape[-1]), None)
        if kinds != [(torch.int64, 2)] * 2 or program.inputs[1].name != "position_ids" or length is None:
            inputs = ", ".join(f"{s.name} {list(s.shape)}" for s in program.inputs)
            raise PassError(
                "there is no text to cache",
                where=program.name,
                why=f"the inputs should be input_ids and position_ids, both [batch, length]; they are {inputs}",
                fix="a cache is for decoders; leave add-kv-cache out",
            )
        if self.context > length.high:
            raise PassError(
                f"a context of {self.context} is longer than the program allows",
                where=program.name,
                why=f"it takes {length.low} to {length.high} tokens",
                fix=f"use context={length.high} or less",
            )
        reasons = [r for n in program.nodes() if (r := refusal(n))]
        if reasons or not any(program.nodes(SDPA)):
            why = "\n".join(grouped(reasons)) or "no attention was recognised"
            raise PassError("a cache cannot be added", where=program.name, why=why, fix="leave add-kv-cache out")
        return length


def refusal(node: fx.Node) -> Refusal | None:
    """Why this node cannot work on a piece of the text at a time."""
    site, source = str(node.meta.get("site") or node.name), str(node.meta.get("source") or "")
    if node.target in (aten.softmax.int, aten._softmax.default):  # noqa: SLF001  (the operator's name)
        value = node.meta["val"]
        if value.dim() == 4 and not isinstance(value.shape[-1], int):
            return Refusal(site, "aten.softmax", "attention that was not recognised", source)
    if node.target is not SDPA:
        return None
    read: Any = node.args[:2]  # one and the same, perhaps
    q, k = (value.meta["val"] for value in read)
    mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
    if not same_length(q.shape[2], k.shape[2]):
        return Refusal(site, "attention", "it reads another text: queries and keys differ in length", source)
    if mask is None and not causal:
        return Refusal(site, "attention", "it is not causal: each position also reads later ones", source)
    if mask is not None and mask.target is not WINDOW:
        return Refusal(
            site, "attention", f"its mask is neither causal nor a window but computed by {mask.name}", source
        )
    if float(argument(node, 4, "dropout_p", 0.0)):
        return Refusal(site, "attention", "it drops probabilities at random", source)
    keys, values = (encoding_of(x) for x in node.args[1:3])
    if keys != values:
        return Refusal(site, "attention", f"its keys {_told(keys)} and its values {_told(values)}", source)
    return None


def encoding_of(value: Any) -> Encoding | None:
    """How a value is encoded in front of attention; None if it is not."""
    return Encoding.parse(value.args[1]) if value.target is ENCODE else None


def _told(encoding: Encoding | None) -> str:
    return f"are encoded as '{encoding}'" if encoding else "are not"


def _narrow_inputs(program: Program, editor: Editor, length: Dim) -> fx.Node:
    """input_ids [b, s] -> tokens [1, s], position_ids [b, s] -> input_pos [s]; the node of the latter."""
    tokens, position = (n for n in editor.graph.nodes if n.op == "placeholder")
    first = position.next
    with editor.graph.inserting_before(first):
        row = editor.call(aten.unsqueeze.default, position, 0, like=position)
    position.replace_all_uses_with(row, delete_user_cb=lambda user: user is not row)
    for node, name in ((tokens, TOKENS), (position, POSITION)):
        node.target, node.name = name, name
    ids, positions = program.inputs
    editor.inputs[:] = [
        replace(ids, name=TOKENS, shape=(1, length.name)),
        replace(positions, name=POSITION, shape=(length.name,)),
    ]
    editor.dims[:] = [length if d.name == length.name else d for d in editor.dims if d.name != ids.shape[0]]
    return position


def _cache(editor: Editor, node: fx.Node, position: fx.Node, name: str, context: int) -> None:
    """One attention over its own cache."""
    operands: Any = node.args[:3]
    (q, k, v), encoding = operands, encoding_of(operands[1])
    mask: Any = argument(node, 3, "attn_mask")
    scale = node.kwargs.get("scale")
    scale = 1 / math.sqrt(q.meta["val"].shape[-1]) if scale is None else scale
    window = 0 if mask is None else mask.args[1]
    with editor.graph.inserting_before(node):
        caches, grids = [], []
        for part, value in (("key", k.meta["val"]), ("value", v.meta["val"])):
            shape = (1, context, int(value.shape[1]), int(value.shape[3]))
            dtype = code_dtype(encoding) if encoding else value.dtype
            caches.append(_state(editor, Spec(f"{name}.{part}", dtype, shape)))
            if encoding:
                per_block = encoding.scale_shape(shape)
                grids.append(_state(editor, Spec(f"{name}.{part}_scale", SCALE_DTYPES[encoding.scale], per_block)))
                grids.append(_state(editor, Spec(f"{name}.{part}_zero_point", dtype, per_block)))
        if encoding:
            args = (q, k.args[0], v.args[0], *caches, position, scale, window, *grids, str(encoding))
            new = editor.call(CACHED.encoded, *args, like=node)
        else:
            new = editor.call(CACHED.default, q, k, v, *caches, position, scale, window, like=node)
        editor.replace(node, new)


def _state(editor: Editor, spec: Spec) -> fx.Node:
    editor.state.append(spec)
    return editor.weight(spec.name)
