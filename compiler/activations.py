"""Rounding what linears read, in a graph that is being edited."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from drawplate.encoding import Encoding
from drawplate.program import Editor

ENCODE = torch.ops.drawplate.encode.default


def encode_inputs(editor: Editor, linears: Iterable[fx.Node], encoding: Encoding) -> int:
    """In front of these nodes of the program that is edited, what they read is encoded: a value that several read, once
    for all of them. What is encoded already is left as it is. Returns how many values there are."""
    encoded: dict[fx.Node, fx.Node] = {}
    for node in linears:
        read, linear = node.all_input_nodes[0], editor.of(node)
        if read not in encoded:
            encoded[read] = editor.of(read)
            if read.target is not ENCODE:
                with editor.graph.inserting_before(linear):
                    encoded[read] = editor.call(ENCODE, editor.of(read), str(encoding), like=read)
        linear.args = (encoded[read], *linear.args[1:])
    return len(encoded)
