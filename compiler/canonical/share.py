"""Equal calls on equal values are computed once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from drawplate.canonical.functional import any_writes
from drawplate.program import Editor


def share(editor: Editor) -> None:
    """Merge nodes that compute the same: models often write `x - mean` twice, or rebuild a table in every layer."""
    if any_writes(editor):
        return
    seen: dict[Hashable, fx.Node] = {}
    for node in list(editor.graph.nodes):
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            editor.replace(node, first)


def _key(node: fx.Node) -> Hashable | None:
    if node.op == "get_attr":
        return ("get_attr", node.target)
    if node.op != "call_function" or not is_pure(node.target):
        return None
    return (node.target, frozen(node.args), frozen(tuple(sorted(node.kwargs.items()))))


def frozen(value: Any) -> Hashable:
    """The same structure, hashable; 1, 1.0 and True stay apart."""
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return (type(value).__name__, value)


def is_pure(target: Any) -> bool:
    """Does a call only depend on its arguments and change nothing? Plain functions here are arithmetic on lengths."""
    if not isinstance(target, torch._ops.OpOverload):  # noqa: SLF001  (torch has no public name for it)
        return True
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags  # noqa: SLF001
