"""The harm of each stored weight, measured: stored alone, and left alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import cross_entropy

from drawplate.branching import Trunk
from drawplate.costs import divergence
from drawplate.evaluate.statistics import Estimate, exponential, mean
from drawplate.explain.report import Activations, Loss
from drawplate.explain.twins import Twins
from drawplate.passbase import Progress
from drawplate.probing import run_pieces
from drawplate.program import Program, Weight

ENCODE = torch.ops.drawplate.encode.default
Inputs = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Damage:
    """What was measured. rewritten: KL of the floating program. weights: with every weight stored and activations as
    they are. errors, only, won_back: by the weight's name; see report.Part."""

    loss: Loss
    rewritten: float
    weights: float
    errors: Mapping[str, float]
    only: Mapping[str, Estimate]
    won_back: Mapping[str, Estimate]
    activations: Activations | None


class Reference:
    """The original's predictions: log-probabilities f32 [.., s, vocabulary] of each window."""

    def __init__(self, original: Program, inputs: Inputs) -> None:
        self._logs = [outputs[0].float().log_softmax(-1) for outputs in run_pieces(original, inputs)]
        self._ids = [pieces[0] for pieces in inputs]

    def kl(self, outputs: Iterable[Tensor]) -> list[float]:
        """KL(original || outputs) of each window, the mean over its tokens, in nats."""
        return [float(divergence(logs, logits).mean()) for logs, logits in zip(self._logs, outputs, strict=True)]

    def loss(self, outputs: Sequence[Tensor]) -> Loss:
        """All that is told of a whole model."""
        same = [float((a.argmax(-1) == b.argmax(-1)).double().mean()) for a, b in zip(self._logs, outputs, strict=True)]
        theirs, ours = ([self._loss(i, x) for i, x in enumerate(logits)] for logits in (self._logs, outputs))
        return Loss(mean(self.kl(outputs)), mean(same), _perplexity(ours), _perplexity(theirs))

    def _loss(self, i: int, logits: Tensor) -> float:
        """Of the text's own next tokens."""
        predicted, ids = logits[..., :-1, :], self._ids[i].reshape(logits.shape[:-1])
        return float(cross_entropy(predicted.reshape(-1, logits.shape[-1]).float(), ids[..., 1:].flatten().long()))


def damage(twins: Twins, measured: Collection[str], inputs: Inputs, progress: Progress) -> Damage:
    """Measure every stored weight's error where it is read, and the harm of those in `measured`.

    Memory: the windows' logits twice, and one weight at a time. The same windows are used throughout, so differences
    are paired: their errors are those between windows.
    """
    reference = Reference(twins.original, inputs)
    floats = twins.restored
    codes = {name: twins.stored.weights[name] for name in twins.weights}
    outputs = Trunk(twins.stored, inputs).outputs({})
    loss, whole = reference.loss(outputs), reference.kl(outputs)
    rewritten = reference.kl(Trunk(twins.floating, inputs).outputs({}))
    alone = reference.kl(Trunk(twins.floating, inputs).outputs(codes))
    errors, only = _stored_alone(twins.floating, codes, measured, inputs, reference, progress)
    without = _left_alone(twins.stored, floats, measured, inputs, reference, progress)
    activations = None
    if any(twins.stored.nodes(ENCODE)):
        rounded = reference.kl(Trunk(twins.stored, inputs).outputs(floats))
        activations = Activations(mean(rounded), _difference(whole, alone))
    won_back = {name: _difference(whole, kl) for name, kl in without.items()}
    return Damage(loss, mean(rewritten).value, mean(alone).value, errors, only, won_back, activations)


def _stored_alone(
    floating: Program,
    codes: Mapping[str, Weight],
    measured: Collection[str],
    inputs: Inputs,
    reference: Reference,
    progress: Progress,
) -> tuple[dict[str, float], dict[str, Estimate]]:
    """The error of what each weight gives, and the KL if no other weight is stored."""
    trunk = Trunk(floating, inputs)
    errors: dict[str, float] = {}
    only: dict[str, Estimate] = {}
    for node, name in progress(_readers(floating, codes), "each weight stored alone"):
        stored = {name: codes[name]}
        trunk.run_to(node)
        if name in measured and name not in errors:
            only[name] = mean(reference.kl(trunk.outputs(stored)))
        errors[name] = max(errors.get(name, 0.0), _relative(trunk.value({}), trunk.value(stored)))
    return errors, only


def _left_alone(
    stored: Program,
    floats: Mapping[str, Weight],
    measured: Collection[str],
    inputs: Inputs,
    reference: Reference,
    progress: Progress,
) -> dict[str, list[float]]:
    """The KL of each window if one weight is as it was and all others are stored."""
    trunk = Trunk(stored, inputs)
    first: dict[str, fx.Node] = {}
    for node, name in _readers(stored, measured):
        first.setdefault(name, node)
    found = {}
    for name, node in progress(list(first.items()), "each weight left as it was"):
        trunk.run_to(node)
        found[name] = reference.kl(trunk.outputs({name: floats[name]}))
    return found


def _readers(program: Program, weights: Collection[str]) -> list[tuple[fx.Node, str]]:
    """Every operator that reads one of these weights, with the weight's name, in order."""
    found = []
    for node in program.nodes():
        read = {str(n.target) for n in node.all_input_nodes if n.op == "get_attr"}
        found += [(node, name) for name in sorted(read & set(weights))]
    return found


def _difference(these: Sequence[float], others: Sequence[float]) -> Estimate:
    return mean([a - b for a, b in zip(these, others, strict=True)])


def _relative(exact: Sequence[Any], moved: Sequence[Any]) -> float:
    """|moved - exact| / |exact| over all windows (L2)."""
    error = sum(float((b.double() - a.double()).square().sum()) for a, b in zip(exact, moved, strict=True))
    size = sum(float(a.double().square().sum()) for a in exact)
    return float((error / size) ** 0.5) if size else 0.0


def _perplexity(losses: Sequence[float]) -> float:
    return exponential(mean(losses)).value
