"""How a weight of the canonical program is made from those of the checkpoint, and back: `1 + w` <-> w."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.canonical.match import CASTS, aten

TRANSPOSES = (aten.t.default, aten.numpy_T.default)
_VIEWS = (
    aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default,
)  # fmt: skip
_INVERSES: dict[Any, Callable[..., Tensor]] = {
    aten.add.Tensor: torch.sub,
    aten.add.Scalar: torch.sub,
    aten.sub.Tensor: torch.add,
    aten.sub.Scalar: torch.add,
    aten.mul.Tensor: torch.div,
    aten.mul.Scalar: torch.div,
    aten.div.Tensor: torch.mul,
    aten.div.Scalar: torch.mul,
}
_COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)


@dataclass(frozen=True)
class Origin:
    """A weight of a checkpoint by its name, or the value of an operator over such. shape: of the value."""

    shape: tuple[int, ...]
    name: str = ""
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operands(self) -> tuple[Origin, ...]:
        """What the operator reads."""
        return tuple(a for a in leaves((self.args, dict(self.kwargs))) if isinstance(a, Origin))

    @property
    def names(self) -> frozenset[str]:
        """All weights that it is made from."""
        return frozenset({self.name} if self.name else ()).union(*(o.names for o in self.operands))


def origin_of(node: fx.Node) -> Origin:
    """What a node that reads weights alone is made from."""
    shape = tuple(node.meta["val"].shape)
    if node.op == "get_attr":
        return Origin(shape, str(node.target))
    args, kwargs = mapped((node.args, node.kwargs), lambda a: origin_of(a) if isinstance(a, fx.Node) else a)
    return Origin(shape, "", node.target, args, kwargs)


def made_from(origin: Origin, weights: Callable[[str], Tensor]) -> Tensor:
    """The canonical weight, from the checkpoint's."""
    if origin.name:
        return weights(origin.name)
    args, kwargs = mapped(
        (origin.args, dict(origin.kwargs)), lambda a: made_from(a, weights) if isinstance(a, Origin) else a
    )
    with torch.no_grad():
        return origin.target(*args, **kwargs)


def stored_in(origin: Origin, stored: Collection[str]) -> str:
    """The one weight of the checkpoint that it comes from by steps that can be gone back; empty if there is none."""
    if origin.name:
        return origin.name if origin.name in stored else ""
    variable = [o for o in origin.operands if o.names & set(stored)]
    return stored_in(variable[0], stored) if len(variable) == 1 and _can_go_back(origin, variable[0]) else ""


def taken_back(origin: Origin, value: Tensor, stored: Collection[str], constants: Callable[[str], Tensor]) -> Tensor:
    """The checkpoint's weight `stored_in(origin, stored)`, from the canonical one. Computed in value's dtype."""
    if origin.name:
        return value
    (inner,) = (o for o in origin.operands if o.names & set(stored))
    if origin.target in TRANSPOSES:
        value = value.t()
    elif origin.target is aten.transpose.int:
        value = value.transpose(*origin.args[1:3])
    elif origin.target is aten.permute.default:
        order = torch.tensor(origin.args[1]).remainder(value.dim())
        value = value.permute(order.argsort().tolist())
    elif origin.target is aten.neg.default:
        value = -value
    elif origin.target in _INVERSES:
        other = next(a for a in origin.args[:2] if a is not inner)
        by = made_from(other, constants).to(value.dtype) if isinstance(other, Origin) else other
        value = _INVERSES[origin.target](value, by)
    elif origin.target in _VIEWS:
        value = value.reshape(inner.shape)
    return taken_back(inner, value, stored, constants)


def is_transpose(origin: Origin) -> bool:
    """Is it a matrix of the checkpoint with its two axes swapped, and nothing else?"""
    if origin.name or len(origin.shape) != 2 or not isinstance(origin.args[0], Origin) or not origin.args[0].name:
        return False
    swaps = origin.target is aten.transpose.int and {a % 2 for a in origin.args[1:3]} == {0, 1}
    turns = origin.target is aten.permute.default and [a % 2 for a in origin.args[1]] == [1, 0]
    return origin.target in TRANSPOSES or swaps or turns


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and mappings, with every leaf changed."""
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    """What stands in lists, tuples and mappings, one by one."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def _can_go_back(origin: Origin, inner: Origin) -> bool:
    if origin.target in _INVERSES:
        first = bool(origin.args) and origin.args[0] is inner
        second = origin.target in _COMMUTATIVE and len(origin.args) > 1 and origin.args[1] is inner
        return (first or second) and not origin.kwargs and inner.shape == origin.shape
    moves = (*TRANSPOSES, *CASTS, *_VIEWS, aten.transpose.int, aten.permute.default, aten.neg.default)
    return origin.target in moves
