"""Every operator that XNNPACK runs, and how it is written. What is not here runs in ExecuTorch's own kernels."""

from __future__ import annotations

from typing import Any

from torch import fx

from drawplate.backends.xnnpack.ops_linear import LINEAR
from drawplate.backends.xnnpack.ops_pointwise import POINTWISE
from drawplate.backends.xnnpack.ops_rotation import ROTATION
from drawplate.backends.xnnpack.ops_shape import SHAPE
from drawplate.backends.xnnpack.rules import Rule, Weights

RULES: dict[Any, Rule] = {**SHAPE, **POINTWISE, **LINEAR, **ROTATION}


def why_not(node: fx.Node, weights: Weights) -> str | None:
    """The reason why XNNPACK cannot run this call, or None if it can."""
    rule = RULES.get(node.target)
    return "XNNPACK has no such operator" if rule is None else rule.why_not(node, weights)


def moves_only(node: fx.Node) -> bool:
    """Does it compute nothing?"""
    return node.target in SHAPE
