"""What a node of a graph costs, for shares in a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from drawplate.backends.xnnpack.ops import ATTENTION
from drawplate.canonical.match import aten
from drawplate.program import Weight
from drawplate.roofline import products


def multiply_adds(node: fx.Node) -> int:
    """Of one call, with lengths that vary taken as 1 and caches as full."""
    target = node.target
    tensors = [n.meta["val"] for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    if target in ATTENTION:
        _, _, heads, width = size(tensors[0])
        return 2 * heads * width * int(tensors[3].shape[1])
    if target is aten.scaled_dot_product_attention.default:
        return math.prod(size(tensors[0])) * (size(tensors[1])[-2] + 1)
    return products(node, size)


def bytes_read(nodes: Iterable[fx.Node], weights: Mapping[str, Weight]) -> int:
    """Of the weights that these nodes read, each once."""
    names: dict[str, None] = {str(x.target): None for n in nodes for x in n.all_input_nodes if x.op == "get_attr"}
    return sum(weights[name].nbytes for name in names if name in weights)


def size(tensor: Any) -> list[int]:
    """Lengths, 1 for those that vary."""
    return [n if isinstance(n, int) else 1 for n in tensor.shape]
