"""What an explanation says, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from drawplate.backendbase import Fallback
from drawplate.evaluate.statistics import Estimate


@dataclass(frozen=True)
class Upgrade:
    """The next better way to store a weight that the target has. encoding: in words, or "float". extra_bytes: of all
    `members`, the weights that must be stored alike. damage: then expected of them together, in nats per token."""

    encoding: str
    bits: float
    extra_bytes: int
    damage: float
    members: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One stored weight. layer, component: where it stands, as the heat map has it. bits: per weight, scales included.
    bytes: in the file. time_share: of the bytes that one token makes the device read. output_error: of what the weight
    gives, on the same input, relative (L2); the largest over its readers.

    expected: the KL in nats per token that is foretold for this weight alone (analysis/moves.py). only: the measured
    one, with this weight stored and all else as in the original. won_back: by how much the artifact's KL falls if this
    weight alone is left as it was. Both are None where that was not measured.
    """

    name: str
    layer: str
    component: str
    role: str
    encoding: str
    bits: float
    bytes: int
    time_share: float
    output_error: float
    expected: float
    only: Estimate | None = None
    won_back: Estimate | None = None
    upgrade: Upgrade | None = None

    @property
    def measured(self) -> bool:
        """Or is its harm the expected one?"""
        return self.won_back is not None

    @property
    def harm(self) -> float:
        """What it costs, in nats per token: the mean of the two measured figures, else the expected one.

        A weight's part in a loss that errors make together is the Shapley value (Shapley 1953): the mean, over all
        orders, of what it adds. These are its two ends, storing it first and storing it last.
        """
        return self.expected if self.only is None or self.won_back is None else _middle(self.only, self.won_back)

    @property
    def error(self) -> float | None:
        """Of the harm, between windows; None where that is not known."""
        if self.only is None or self.won_back is None or self.only.error is None or self.won_back.error is None:
            return None
        return (self.only.error + self.won_back.error) / 2


@dataclass(frozen=True)
class Activations:
    """Rounding activations while the model runs, everywhere at once. only, won_back: see Part."""

    only: Estimate
    won_back: Estimate


@dataclass(frozen=True)
class Loss:
    """The artifact's program against the original. kl: nats per token. agreement: share of tokens with the same
    likeliest next one. perplexity, original_perplexity: of the text."""

    kl: Estimate
    agreement: Estimate
    perplexity: float
    original_perplexity: float


@dataclass(frozen=True)
class Point:
    """A way to spend so many bytes of file. kl: expected, nats per token."""

    bytes: int
    kl: float


@dataclass(frozen=True)
class Curve:
    """The least expected KL at each size, over the target's menu, and where the artifact is: expected in the same way,
    and measured. Expected is the sum over what must be stored alike, corrected by what was measured of it.
    weights_kl: measured with stored weights alone, activations as they are."""

    points: tuple[Point, ...]
    artifact: Point
    weights_kl: float
    source: str

    def at(self, bytes_: int) -> Point | None:
        """The best that fits into so many bytes, if anything does."""
        fitting = [p for p in self.points if p.bytes <= bytes_]
        return min(fitting, key=lambda p: p.kl, default=None)


@dataclass(frozen=True)
class Explanation:
    """Which weights hurt. parts: ranked, the worst first. rewritten: the KL of the model after its passes that should
    compute the same. layers, components: the axes of the heat map. verdict: what it comes to, in sentences."""

    model: str
    recipe: str
    text: str
    tokens: int
    window: int
    file_bytes: int
    loss: Loss
    rewritten: float
    parts: tuple[Part, ...]
    layers: tuple[str, ...]
    components: tuple[str, ...]
    activations: Activations | None = None
    curve: Curve | None = None
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Part, ...]:
        """The parts whose harm was measured."""
        return tuple(p for p in self.parts if p.measured)

    @property
    def by_layer(self) -> dict[str, float]:
        """The sum of the harms in each layer, nats per token."""
        return {layer: sum(p.harm for p in self.parts if p.layer == layer) for layer in self.layers}

    def share(self, harm: float) -> float:
        """Of the artifact's KL; 0 where there is none."""
        return harm / self.loss.kl.value if self.loss.kl.value > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """For `--json`: every figure, with the harm and share of each part and how they were found."""
        parts = [
            asdict(p) | {"harm": p.harm, "share": self.share(p.harm), "harm_is": _how(p), "rank": i}
            for i, p in enumerate(self.parts, 1)
        ]
        layers = {layer: {"harm": harm, "share": self.share(harm)} for layer, harm in self.by_layer.items()}
        units = {"kl": "nats per token", "bytes": "bytes", "bits": "bits per weight, scales included"}
        return asdict(replace(self, parts=())) | {"parts": parts, "by_layer": layers, "units": units}


def _middle(a: Estimate, b: Estimate) -> float:
    return (a.value + b.value) / 2


def _how(part: Part) -> str:
    return "measured" if part.measured else "expected"
