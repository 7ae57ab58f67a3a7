"""Running a program part by part, forward and back.

Only what goes from part to part is kept on the way forward. On the way back each part is run again with gradients, so
memory is that of one part (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.parts import Part

Values = dict[fx.Node, Any]
Run = Callable[[Part, Values], Values]
Seen = Callable[[fx.Node, Sequence[Any], Any], None]


def run_part(
    part: Part, given: Mapping[fx.Node, Any], weights: Mapping[str, Tensor], seen: Seen | None = None
) -> Values:
    """What the part gives, differentiable in what it is given and in the weights. seen: is shown each operator with its
    arguments and what it gave."""
    values = {n: given[n] for n in part.needs}
    for node in part.nodes:
        if node.op != "get_attr":
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: weights[str(n.target)] if n.op == "get_attr" else values[n]
            )
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            if seen is not None:
                seen(node, args, values[node])
    return {n: values[n] for n in part.gives}


def forward(todo: Sequence[Part], run: Run, graph: fx.Graph, inputs: Sequence[Tensor]) -> Values:
    """All that the parts are given and give, without gradients."""
    values: Values = dict(zip((n for n in graph.nodes if n.op == "placeholder"), inputs, strict=True))
    with torch.no_grad():
        for part in todo:
            values.update(run(part, values))
    return values


def back_through(todo: Sequence[Part], run: Run, values: Values, above: dict[fx.Node, Tensor]) -> None:
    """From the gradients in what the last part gives (`above`, which changes) to the first part. values: of `forward`.

    What else `run` reads, such as weights, has its gradients added up where torch puts them.
    """
    for part in reversed(todo):
        held = leaves(part, values)
        with torch.enable_grad():
            made = run(part, {**values, **held})
        reached = [n for n in part.gives if n in above and made[n].requires_grad]
        if reached:
            torch.autograd.backward([made[n] for n in reached], [above.pop(n) for n in reached])
        for node, leaf in held.items():
            if leaf.grad is not None:
                above[node] = above[node] + leaf.grad if node in above else leaf.grad


def leaves(part: Part, values: Values) -> Values:
    """What the part reads of others, as the ends of a graph of its own."""
    return {
        n: values[n].detach().requires_grad_()
        for n in part.needs
        if isinstance(values[n], Tensor) and values[n].is_floating_point()
    }
