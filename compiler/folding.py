"""Adapters put into the weights that they stand beside, and what is lost of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drawplate.analysis.adapters import Adapter, adapters
from drawplate.encoding import QTensor, as_read
from drawplate.program import Program


def folded(program: Program) -> Program:
    """Without the products, each added to the weight beside it, which is a number then if it was integers."""
    editor = without_adapters(program).edit()
    for adapter in adapters(program):
        whole = with_adapter(program, adapter)
        if isinstance(program.weights[adapter.base], QTensor):
            editor.weights[adapter.base] = whole.float()
        else:
            editor.wide(adapter.base, whole)
    return editor.finish()


def without_adapters(program: Program) -> Program:
    """The products gone, and nothing in their place."""
    editor = program.edit()
    for place in (place for adapter in adapters(program) for place in adapter.places):
        editor.replace(editor.of(place.total), editor.of(place.linear))
    return editor.finish()


def with_adapter(program: Program, adapter: Adapter) -> Tensor:
    """W + scale * B A [out, in], float64."""
    return _read(program, adapter.base) + added(program, adapter)


def added(program: Program, adapter: Adapter) -> Tensor:
    """scale * B A [out, in], float64."""
    return adapter.scale * (_read(program, adapter.up) @ _read(program, adapter.down))


def residuals(before: Program, after: Program) -> dict[str, float]:
    """How far each weight and its adapter in `before` are from the weight, and what is beside it, in `after`: the norm
    of the difference, relative to that of what the adapter adds (1: all that it did may be lost)."""
    beside = {adapter.base: adapter for adapter in adapters(after)}
    found = {}
    for adapter in adapters(before):
        base = adapter.base
        now = with_adapter(after, beside[base]) if base in beside else _read(after, base)
        size = added(before, adapter).norm().clamp(min=1e-30)
        found[base] = float((now - with_adapter(before, adapter)).norm() / size)
    return found


def _read(program: Program, name: str) -> Tensor:
    weights: Any = program.weights
    return as_read(weights[name]).to(torch.float64)
