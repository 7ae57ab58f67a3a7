"""Some of a program's numbers trained end to end, by what the whole program says of a text.

One loop for all that is trained so: what is trained is a `Leaf` for each weight, and what it is for is what samples
cost (aims.py). The program runs part by part, forward and back (partwise.py), so that of its activations only what goes
from part to part is kept, and of its stored weights only one part's is there as numbers at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from drawplate.analysis.parts import Part, parts
from drawplate.costs import Sample
from drawplate.encoding import (
    Encoding,
    Grid,
    QTensor,
    as_read,
    dequantize,
    encode,
    fake_quantize,
    minmax_grid,
    nearest_grid,
)
from drawplate.learning.descent import Told, drawn, falling, halves, refuse_divergence
from drawplate.learning.state import Aside
from drawplate.partwise import Values, back_through, forward, run_part
from drawplate.passbase import Env
from drawplate.program import Program, Weight

Inputs = Sequence[Tensor]


class Leaf(Protocol):
    """One weight of which something is trained."""

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """What is trained, by name."""

    def value(self) -> Tensor:
        """The weight as operators read it, differentiable in the numbers."""

    def stored(self) -> Weight:
        """What value() reads, as it is kept."""


class Scales:
    """A stored weight whose codes and zero points stay, and whose scales are trained: as shares of what they were."""

    def __init__(self, weight: QTensor) -> None:
        self._weight = weight
        self._share = torch.ones_like(weight.grid.scale).requires_grad_()
        self.numbers = {"scale": self._share}

    def value(self) -> Tensor:
        """As operators read it."""
        return dequantize(self._weight.integers(), self._grid(), self._weight.encoding)

    def stored(self) -> QTensor:
        """The same codes on the new scales."""
        with torch.no_grad():
            return replace(self._weight, grid=self._grid())

    def _grid(self) -> Grid:
        grid, encoding = self._weight.grid, self._weight.encoding
        return Grid(nearest_grid(grid.scale * self._share, grid.zero_point, encoding).scale, grid.zero_point)


class Whole:
    """A weight in floating point that is trained as it is."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach().clone().requires_grad_()
        self.numbers = {"weight": self._weight}

    def value(self) -> Tensor:
        """Itself."""
        return self._weight

    def stored(self) -> Tensor:
        """Without its gradient."""
        return self._weight.detach().clone()


class Rounded:
    """A weight that is trained as it will be rounded: the gradient goes straight through (Bengio et al. 2013,
    arXiv:1308.3432), and each value's grid covers what the weight has become."""

    def __init__(self, weight: Tensor, encoding: Encoding) -> None:
        self._encoding = encoding
        self._weight = weight.detach().float().clone().requires_grad_()

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """The weight before it is rounded."""
        return {"weight": self._weight}

    def value(self) -> Tensor:
        """The weight as it will read back."""
        whole = self._whole()
        return fake_quantize(whole, minmax_grid(whole.detach(), self._encoding), self._encoding)

    def stored(self) -> QTensor:
        """What value() reads, as codes."""
        with torch.no_grad():
            return encode(self._whole(), self._encoding)

    def _whole(self) -> Tensor:
        return self._weight


class RoundedLowRank(Rounded):
    """The same, of which a change of low rank is trained: Q(W + scale * B A). So it is folded exactly: what is stored
    is what was trained. B starts as zeros."""

    def __init__(self, weight: Tensor, encoding: Encoding, rank: int, scale: float, random: torch.Generator) -> None:
        super().__init__(weight, encoding)
        self._weight.requires_grad_(False)
        rows, columns = weight.shape
        self._down = ((2 * torch.rand(rank, columns, generator=random) - 1) / columns**0.5).requires_grad_()
        self._up, self._scale = torch.zeros(rows, rank, requires_grad=True), scale

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """A and B."""
        return {"lora_A": self._down, "lora_B": self._up}

    def _whole(self) -> Tensor:
        return self._weight + self._scale * (self._up @ self._down)


class Network:
    """A program with leaves in the place of some of its weights."""

    def __init__(self, program: Program, leaves: Mapping[str, Leaf]) -> None:
        self._program, self._leaves, self._parts = program, leaves, parts(program)
        (self._output,) = program.graph.output_node().all_input_nodes[:1]

    @property
    def numbers(self) -> dict[str, Tensor]:
        """All that is trained, by the weight's name and what it is of it."""
        return {f"{name}!{what}": x for name, leaf in self._leaves.items() for what, x in leaf.numbers.items()}

    def stored(self) -> dict[str, Weight]:
        """The weights as they are now."""
        return {name: leaf.stored() for name, leaf in self._leaves.items()}

    def output(self, inputs: Inputs) -> Tensor:
        """What the program gives of a window, without gradients."""
        return self._forward(inputs)[self._output]

    def loss(self, sample: Sample) -> float:
        """What a sample costs."""
        return float(sample.cost([self.output(inputs) for inputs in sample.inputs]))

    def backward(self, sample: Sample, share: float) -> float:
        """What a sample costs; the gradient of it, times `share`, is added to those of the leaves."""
        runs = [self._forward(inputs) for inputs in sample.inputs]
        logits = [values[self._output].requires_grad_() for values in runs]
        with torch.enable_grad():
            found = sample.cost(logits)
        for values, gradient in zip(runs, torch.autograd.grad(found, logits), strict=True):
            back_through(self._parts, self._run, values, {self._output: gradient * share})
        return float(found.detach())

    def _forward(self, inputs: Inputs) -> Values:
        return forward(self._parts, self._run, self._program.graph, inputs)

    def _run(self, part: Part, values: Values) -> Values:
        return run_part(part, values, {name: self._weight(name) for name in part.weights})

    def _weight(self, name: str) -> Tensor:
        return self._leaves[name].value() if name in self._leaves else as_read(self._program.weights[name])


@dataclass(frozen=True)
class Settings:
    """epochs: over the samples that are trained on. rate: AdamW's first; it falls along a cosine to a twentieth. batch:
    samples of each step, one after the other. held: samples that are not trained on, and choose what is kept. clip: the
    norm that a step's gradient is cut to."""

    epochs: int
    rate: float
    batch: int
    held: int
    clip: float = 1.0

    def steps_of(self, samples: int) -> int:
        """With so many samples."""
        return self.epochs * math.ceil(len(halves(samples, self.held)[0]) / self.batch)


LOOKS = 8  # how often a run looks at the samples that were held back
SAVE_EVERY = 5  # steps: what a killed run loses at most


def train(
    network: Network, samples: Sequence[Sample], settings: Settings, aside: Aside, env: Env, label: str
) -> dict[str, Weight]:
    """The weights of the network's leaves, as they were where what the samples held back cost was least; before the
    first step counts too. The record `training` has the loss of every step.

    Raises PassError where the loss is no finite number, and names the step.
    """
    shown, held = halves(len(samples), settings.held)
    steps = settings.steps_of(len(samples))
    run = _Run(network.numbers, settings)
    told = Told(label)

    def look() -> None:
        run.keep_if_best(sum(network.loss(samples[i]) for i in held) / len(held))

    if run.take_up(aside) == 0:
        look()
    for step in env.progress(range(run.step, steps), told):
        chosen = [shown[i] for i in drawn(len(shown), settings.batch, env.seed, step)]
        told.loss = sum(network.backward(samples[i], 1 / len(chosen)) for i in chosen) / len(chosen)
        refuse_divergence(told.loss, step, settings.rate)
        run.descend(told.loss, falling(step, steps))
        if (step + 1) % max(1, steps // LOOKS) == 0 or step + 1 == steps:
            look()
        if (step + 1) % SAVE_EVERY == 0:
            run.put_aside(aside)
    env.keep("training", data=run.told())
    run.return_to_best()
    return network.stored()


class _Run:
    """Numbers that are trained, what AdamW knows of them, and the best that they were."""

    def __init__(self, numbers: Mapping[str, Tensor], settings: Settings) -> None:
        self._numbers, self._settings = numbers, settings
        self._optimiser = torch.optim.AdamW(numbers.values(), lr=settings.rate, weight_decay=0)
        self._best = {name: x.detach().clone() for name, x in numbers.items()}
        self._losses: list[float] = []  # of each step
        self._looks: list[tuple[int, float]] = []  # after how many steps, the loss of what was held back

    @property
    def step(self) -> int:
        """How many are done."""
        return len(self._losses)

    def descend(self, loss: float, share: float) -> None:
        """One step of the rate's share, and no gradient is left."""
        self._losses.append(loss)
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.rate * share
        torch.nn.utils.clip_grad_norm_(self._numbers.values(), self._settings.clip)
        self._optimiser.step()
        self._optimiser.zero_grad()

    def keep_if_best(self, loss: float) -> None:
        """Remember the numbers, if none before had so small a loss."""
        refuse_divergence(loss, self.step, self._settings.rate)
        if loss < min((seen for _, seen in self._looks), default=math.inf):
            self._best = {name: x.detach().clone() for name, x in self._numbers.items()}
        self._looks.append((self.step, loss))

    def return_to_best(self) -> None:
        """The numbers as they were then."""
        with torch.no_grad():
            for name, x in self._numbers.items():
                x.copy_(self._best[name])

    def told(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"losses": self._losses, "held": self._looks}

    def put_aside(self, aside: Aside) -> None:
        """So that a killed run goes on here."""
        kept = {f"{name}!{what}": x for name in self._numbers for what, x in self._of(name).items()}
        said = {"losses": torch.tensor(self._losses, dtype=torch.float64), "looks": torch.tensor(self._looks).double()}
        aside.save("training", {**kept, **said}, self.step)

    def take_up(self, aside: Aside) -> int:
        """What was put aside, if anything. Returns how many steps are done."""
        found = aside.load("training")
        if found is None:
            return 0
        tensors, _ = found
        self._losses = tensors["losses"].tolist()
        self._looks = [(int(step), loss) for step, loss in tensors["looks"].tolist()]
        with torch.no_grad():
            for name, x in self._numbers.items():
                x.copy_(tensors[f"{name}!now"])
                self._best[name] = tensors[f"{name}!best"]
                self._optimiser.state[x] = {k: tensors[f"{name}!{k}"] for k in _MOMENTS}
        return self.step

    def _of(self, name: str) -> dict[str, Tensor]:
        x = self._numbers[name]
        return {"now": x.detach(), "best": self._best[name], **{k: self._optimiser.state[x][k] for k in _MOMENTS}}


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
