"""Some of a program's numbers trained end to end, by what the whole program says of a text.

One loop for all that is trained so: what is trained is a `Leaf` for each weight, and what it is for is what samples
cost (aims.py). The program runs part by part, forward and back (partwise.py), so that of its activations only what goes
from part to part is kept, and of its stored weights only one part's is there as numbers at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drawplate.analysis.parts import Part, parts
from drawplate.costs import Sample
from drawplate.encoding import as_read
from drawplate.learning.descent import Precision, Told, computing, drawn, falling, halves, refuse_divergence
from drawplate.learning.state import Aside
from drawplate.leaves import Leaf
from drawplate.metrics import Metrics
from drawplate.partwise import Values, back_through, forward, run_part
from drawplate.passbase import Env
from drawplate.program import Program, Weight
from drawplate.ranks import add_up_gradients, share, total

Inputs = Sequence[Tensor]


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
    norm that a step's gradient is cut to. precision: of gradients; what was held back is looked at in float32."""

    epochs: int
    rate: float
    batch: int
    held: int
    clip: float = 1.0
    precision: Precision = "f32"

    def steps_of(self, samples: int) -> int:
        """With so many samples."""
        return self.epochs * math.ceil(len(halves(samples, self.held)[0]) / self.batch)


LOOKS = 8  # how often a run looks at the samples that were held back
SAVE_EVERY = 5  # steps: what a killed run loses at most, where saving takes less than SLOW seconds
SLOW, SHARE = 1.0, 0.1  # and where it takes longer, no more than this share of the time is spent on it


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
    told = Told(label, Metrics(env.metrics, label, aside.purpose))

    def look() -> None:
        loss = total(sum(network.loss(samples[i]) for i in share(held))) / len(held)
        run.keep_if_best(loss)
        told.look(run.step, loss)

    if run.take_up(aside) == 0:
        look()
    for step in env.progress(range(run.step, steps), told):
        chosen = [shown[i] for i in drawn(len(shown), settings.batch, env.seed, step)]
        with computing(settings.precision):
            loss = total(sum(network.backward(samples[i], 1 / len(chosen)) for i in share(chosen))) / len(chosen)
        add_up_gradients(network.numbers.values())
        refuse_divergence(loss, step, settings.rate)
        told.step(step, loss, settings.rate * falling(step, steps))
        run.descend(loss, falling(step, steps))
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
        self._saved = self._saving = 0.0  # when, and how long it took
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
        """So that a killed run goes on here, if that is not slow beside the steps."""
        start = time.monotonic()
        if self._saving > SLOW and start - self._saved < self._saving / SHARE:
            return
        kept = {f"{name}!{what}": x for name in self._numbers for what, x in self._of(name).items()}
        said = {
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "looks": torch.tensor(self._looks, dtype=torch.float64),
        }
        aside.save("training", {**kept, **said}, self.step)
        self._saved = time.monotonic()
        self._saving = self._saved - start

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
                moments = {k: tensors[f"{name}!{k}"] for k in _MOMENTS if f"{name}!{k}" in tensors}
                if moments:
                    self._optimiser.state[x] = moments
        return self.step

    def _of(self, name: str) -> dict[str, Tensor]:
        x = self._numbers[name]
        moments = self._optimiser.state.get(x, {})  # none where no gradient got to
        return {"now": x.detach(), "best": self._best[name], **{k: moments[k] for k in _MOMENTS if k in moments}}


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
