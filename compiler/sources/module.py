"""Any nn.Module, with example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from drawplate.errors import CaptureError
from drawplate.program import Dim
from drawplate.provenance import first_line, line_of_error
from drawplate.sources.source import Source


def from_module(
    model: nn.Module,
    examples: Sequence[Tensor] | Mapping[str, Tensor] | None,
    dynamic: Mapping[str, Mapping[int, Dim]],
    *,
    name: str | None = None,
) -> Source:
    """The module as it is. Raises CaptureError if forward does not take the examples."""
    kind = type(model).__name__
    parameters = inspect.signature(model.forward)
    if examples is None:
        raise CaptureError(
            f"{kind} needs example inputs",
            why="a module does not say what it takes",
            fix=f"pass example_inputs: one tensor for each of {_names(parameters)}",
        )
    try:
        bound = parameters.bind(**examples) if isinstance(examples, Mapping) else parameters.bind(*examples)
    except TypeError as error:
        raise CaptureError(
            f"{kind}.forward does not take these example inputs: {error}",
            where=f"{kind}.forward{parameters}",
            fix=f"pass one tensor for each of {_names(parameters)}",
        ) from error
    inputs = dict(bound.arguments)
    wrong = [key for key, value in inputs.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CaptureError(
            f"example input {wrong[0]!r} of {kind} is a {type(inputs[wrong[0]]).__name__}, not a tensor",
            fix="fix other arguments inside a small wrapper module",
        )
    _check_dynamic(kind, inputs, dynamic)
    try:
        with torch.no_grad():
            model(*inputs.values())
    except Exception as error:
        raise CaptureError(
            f"{kind} does not run on these example inputs: {first_line(error)}",
            where=line_of_error(error),
            fix="give inputs of the shapes and dtypes that the model expects: "
            + ", ".join(f"{k} was {v.dtype} {list(v.shape)}" for k, v in inputs.items()),
        ) from error
    return Source(name or kind.lower(), model.eval(), inputs, dynamic)


def _check_dynamic(kind: str, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, Dim]]) -> None:
    for key, axes in dynamic.items():
        if key not in inputs:
            raise CaptureError(f"dynamic names {key!r}, but {kind} takes {', '.join(inputs)}")
        for axis in axes:
            if not 0 <= axis < inputs[key].dim():
                raise CaptureError(f"dynamic axis {axis} of {key!r}: the example has axes 0 to {inputs[key].dim() - 1}")
            dim, size = axes[axis], inputs[key].shape[axis]
            if not max(dim.low, 2) <= size <= dim.high:
                raise CaptureError(
                    f"the example for {key!r} has length {size} on its dynamic axis {axis}",
                    why=f"'{dim.name}' is {dim.low} to {dim.high}, and torch takes lengths of 0 and 1 as fixed",
                    fix=f"give an example of length {max(dim.low, 2)} to {dim.high} there",
                )


def _names(signature: inspect.Signature) -> str:
    return ", ".join(signature.parameters)
