"""Perplexity, and how far a model's predictions are from the original's, on windows of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from drawplate.errors import EvaluationError
from drawplate.evaluate.sources import BATCH_TOKENS, CHUNK, Model, Reading, source_of
from drawplate.evaluate.statistics import Estimate, exponential, mean, quantile
from drawplate.passbase import Progress
from drawplate.progress import quiet


@dataclass(frozen=True)
class Divergence:
    """A model against the original, paired token by token.

    kl: mean KL(original || model) per token in nats; kl_99: its 99th percentile over tokens. agreement: share of tokens
    where both find the same token likeliest. perplexity_ratio: model over original, with the paired error.
    """

    kl: Estimate
    kl_99: float
    agreement: Estimate
    perplexity_ratio: Estimate


@dataclass(frozen=True)
class LanguageReport:
    """perplexity: exp of the mean loss per predicted token. Errors are over windows: a text's tokens go together.

    tokens: predicted ones (the first of each window is not). against: None for the original itself.
    """

    perplexity: Estimate
    loss: Estimate
    tokens: int
    window: int
    against: Divergence | None = None


def language(
    models: Mapping[str, Model], windows: Tensor, original: str | None = None, progress: Progress = quiet
) -> dict[str, LanguageReport]:
    """Measure each model on the same windows (int64 [n, length]), and against models[original] if one is named.

    Memory: one window's predictions per model, as hidden states for a Program and as logits for an artifact.
    """
    _check(models, windows, original)
    sources = {name: source_of(model) for name, model in models.items()}
    for name, source in sources.items():
        if source.context is not None and windows.shape[1] > source.context:
            raise EvaluationError(
                f"windows of {windows.shape[1]} tokens do not fit {name}",
                why=f"its context is {source.context} tokens",
                fix=f"evaluate with windows of {source.context} tokens, for every model alike",
            )
    n, length = windows.shape
    losses = {name: torch.zeros(n, length - 1) for name in models}
    kls = {name: torch.zeros(n, length - 1) for name in models if original is not None}
    same = {name: torch.zeros(n, length - 1) for name in models if original is not None}
    size = max(1, BATCH_TOKENS // length)
    for start in progress(range(0, n, size), "windows"):
        ids = windows[start : start + size]
        readings = {name: source.read(ids) for name, source in sources.items()}
        rows, columns = torch.meshgrid(torch.arange(len(ids)), torch.arange(length - 1), indexing="ij")
        for r, c in zip(rows.reshape(-1).split(CHUNK), columns.reshape(-1).split(CHUNK), strict=True):
            base = None if original is None else _log_probabilities(readings[original], r, c)
            for name, reading in readings.items():
                logp = base if base is not None and name == original else _log_probabilities(reading, r, c)
                losses[name][start + r, c] = -logp.gather(-1, ids[r, c + 1, None])[:, 0]
                if base is not None and name != original:
                    kls[name][start + r, c] = (base.exp() * (base - logp)).sum(-1)
                    same[name][start + r, c] = (base.argmax(-1) == logp.argmax(-1)).float()
    return {
        name: _report(
            losses[name],
            None if original is None or name == original else (losses[original], kls[name], same[name]),
        )
        for name in models
    }


def _check(models: Mapping[str, Model], windows: Tensor, original: str | None) -> None:
    if original is not None and original not in models:
        raise EvaluationError(f"no original {original!r} among the models", why=f"they are {', '.join(models)}")
    if windows.dim() != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise EvaluationError(
            f"token windows of shape {list(windows.shape)}",
            why="windows are [n, length], at least one of at least two tokens",
        )


def _log_probabilities(reading: Reading, rows: Tensor, columns: Tensor) -> Tensor:
    """f32 [n, vocab]."""
    return torch.log_softmax(reading.logits(rows, columns), dim=-1)


def _report(losses: Tensor, against: tuple[Tensor, Tensor, Tensor] | None) -> LanguageReport:
    """losses: [windows, length - 1], nats. against: the original's losses, KL and agreement of the same shape."""
    loss = _over_windows(losses)
    divergence = None
    if against is not None:
        original, kl, same = against
        divergence = Divergence(
            kl=_over_windows(kl),
            kl_99=quantile(kl.flatten().tolist(), 0.99),
            agreement=_over_windows(same),
            perplexity_ratio=exponential(_over_windows(losses - original)),
        )
    return LanguageReport(exponential(loss), loss, losses.numel(), losses.shape[1] + 1, divergence)


def _over_windows(values: Tensor) -> Estimate:
    """values: [windows, positions] -> the mean, with the standard error between windows."""
    return mean(values.double().mean(1).tolist())
