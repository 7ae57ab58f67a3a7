"""Factors per channel that make rounding cost less: chosen on a text, and written into a program.

Lin et al. 2023, arXiv:2306.00978 (AWQ), sec. 3.2: columns that read large channels are multiplied by s before they are
rounded, and what they read is divided by it, so their relative error is smaller. Where that may be, analysis.scalings
says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from drawplate.analysis.scalings import Scaling, Share
from drawplate.canonical.match import argument, aten, is_call
from drawplate.encoding import Encoding, RangeMethod, encode
from drawplate.gptq import output_energy
from drawplate.program import Editor
from drawplate.streaming import Reading

SMALLEST = 1e-4  # of a channel's size, as a share of the mean: what is smaller counts as so large


@dataclass(frozen=True)
class Settings:
    """encoding, range: under which the weights will be stored. steps: exponents that are tried besides 0, evenly up to
    1. weights: see raised."""

    encoding: Encoding
    range: RangeMethod = "minmax"
    steps: int = 20
    weights: bool = False


@dataclass(frozen=True)
class Choice:
    """factors: f64 [count]. exponent: theirs. error: of the outputs, as a share of that without factors."""

    factors: Tensor
    exponent: float
    error: float


def raised(size: Tensor, exponent: float, weights: Tensor | None = None) -> Tensor:
    """Factors from the size of each channel: size^exponent, over weights^(1 - exponent) if these are given; the largest
    and the smallest are each other's reciprocals.

    >>> raised(torch.tensor([1.0, 4.0, 16.0]), 0.5).tolist()
    [0.5, 1.0, 2.0]
    """
    found = _relative(size) ** exponent
    if weights is not None:
        found = found / _relative(weights) ** (1 - exponent)
    return found / (found.max() * found.min()).sqrt()


def choose(scaling: Scaling, weights: Sequence[Tensor], read: Sequence[Reading], settings: Settings) -> Choice:
    """The factors of least output error, summed over the readers, each as a share of its output.

    weights: of the readers [out, in], as they are before. read: what each reads. Readers that the encoding does not fit
    are rounded by nothing, and do not count.
    """
    counted = [i for i, w in enumerate(weights) if settings.encoding.fits(w.shape)]
    size = _by_factor([r.size for r in read], scaling)
    large = _by_factor([w.double().abs().mean(0) for w in weights], scaling) if settings.weights else None
    moments = [(r.moments / r.moments.diagonal().mean().clamp(min=1e-300)).float() for r in read]
    whole = [max(output_energy(w.float(), m), 1e-30) for w, m in zip(weights, moments, strict=True)]

    def error(factors: Tensor) -> float:
        total = 0.0
        for i in counted:
            weight, along = weights[i].float(), factors[scaling.columns[i].factor].float()
            stored = encode(weight * along, settings.encoding, method=settings.range).dequantize()
            total += output_energy(weight - stored / along, moments[i]) / whole[i]
        return total

    without = error(best := torch.ones(scaling.count, dtype=torch.float64))
    least, exponent = without, 0.0
    for step in range(0 if settings.weights else 1, settings.steps + 1) if counted else ():
        tried = raised(size, step / settings.steps, large)
        if (found := error(tried)) < least:
            best, least, exponent = tried, found, step / settings.steps
    return Choice(best, exponent, least / without if without else 1.0)


def write_factors(editor: Editor, scaling: Scaling, factors: Tensor) -> None:
    """Divide what writes by the factors and multiply the columns that read, in float64; see Editor.wide."""
    for share in scaling.columns:
        _multiply(editor, share, factors)
    for share in scaling.writers:
        _multiply(editor, share, 1 / factors)
    norm = scaling.norm
    if norm is not None and argument(norm, 2, "weight") is None:
        _give_weight(editor, editor.of(norm), 1 / factors, scaling.name)


def _multiply(editor: Editor, share: Share, factors: Tensor) -> None:
    weight = editor.weights[share.weight]
    assert isinstance(weight, Tensor)
    with_none = torch.cat([factors, torch.ones(1, dtype=factors.dtype, device=factors.device)])
    along = with_none[share.factor.to(factors.device)]
    shape = [-1 if axis == share.axis else 1 for axis in range(weight.dim())]
    editor.wide(share.weight, weight.double() * along.reshape(shape))


def _give_weight(editor: Editor, norm: fx.Node, weight: Tensor, like: str) -> None:
    """A norm without a weight of its own, such as fold-norms leaves, has one again."""
    name = editor.unused(f"{norm.meta.get('site') or norm.name}.weight")
    editor.wide(name, weight, like=like)
    last, word, default = (3, "eps", None) if is_call(norm, aten.rms_norm.default) else (4, "eps", 1e-5)
    between = [argument(norm, 3, "bias")] if last == 4 else []
    with editor.graph.inserting_before(norm):
        read = editor.weight(name)
    norm.args, norm.kwargs = (*norm.args[:2], read, *between, argument(norm, last, word, default)), {}


def _by_factor(columns: Sequence[Tensor], scaling: Scaling) -> Tensor:
    """The mean over all columns that take a factor: f64 [count]."""
    total, count = torch.zeros(scaling.count, dtype=torch.float64), torch.zeros(scaling.count, dtype=torch.float64)
    for values, share in zip(columns, scaling.columns, strict=True):
        total.index_add_(0, share.factor, values.double())
        count.index_add_(0, share.factor, torch.ones(len(values), dtype=torch.float64))
    return total / count


def _relative(size: Tensor) -> Tensor:
    return (size / size.mean().clamp(min=1e-300)).clamp(min=SMALLEST)
