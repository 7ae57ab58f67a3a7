"""A calibration text through a program: as its inputs, and operator by operator while its weights are being stored.

All windows go through an operator before the next one runs. So one weight is in memory at a time, and what a linear
reads was made by the stored weights before it, within its own block too.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.analysis.sites import Site
from drawplate.encoding import QTensor
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.probing import Enough, is_mask, is_position, run_pieces
from drawplate.program import Program, Spec
from drawplate.ranks import add_up, share, total, world
from drawplate.sums import Sums

Encoder = Callable[[Site, Tensor, Tensor], QTensor]


def inputs_of(program: Program, windows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The program's inputs for each window (for several, where its batch is a fixed number): token ids, positions, and
    a mask by which all of them are read.

    Raises PassError if the program reads anything else.
    """
    ids, *others = program.inputs
    known = all(is_position(s) or is_mask(s) for s in others)
    if ids.dtype not in (torch.int64, torch.int32) or program.state or not known:
        names = ", ".join(s.name for s in program.inputs)
        raise PassError(
            f"no text can be run through {program.name}",
            why="it keeps a state between calls" if program.state else f"its inputs are {names}",
            fix="run what reads a text before add-kv-cache"
            if program.state
            else "leave out what reads a text: kind=hadamard turns and method=round rounds without one",
        )
    size = ids.shape[0] if isinstance(ids.shape[0], int) and len(ids.shape) > 1 else 1
    for part in windows[: len(windows) // size * size].split(size):
        yield tuple(_input(spec, part) for spec in program.inputs)


def fitting(program: Program, windows: Tensor, tokens: int) -> Tensor:
    """As many of the windows as make up `tokens`, at least one, cut to the length that the program takes."""
    cut = windows[:, : min(longest(program), windows.shape[1])]
    return cut[: max(1, tokens // cut.shape[1])]


def longest(program: Program) -> int:
    """How many tokens it reads at most."""
    length = program.inputs[0].shape[-1]
    return int(next((d.high for d in program.dims if d.name == length), length))


def _input(spec: Spec, ids: Tensor) -> Tensor:
    values = ids
    if is_position(spec):
        values = torch.arange(ids.shape[1]).expand_as(ids)
    elif is_mask(spec):
        values = torch.ones_like(ids)
    return values.to(spec.dtype).reshape(ids.shape if len(spec.shape) > 1 else ids.shape[1:])


def store_streamed(
    program: Program, sites: Iterable[Site], inputs: Sequence[Sequence[Tensor]], encoder: Encoder, env: Env, label: str,
    *, budget: int,
) -> dict[str, QTensor]:  # fmt: skip
    """Every site's weight as `encoder(site, weight, moments)` stores it, by name, in the order of the graph. Several
    processes share the windows (ranks.py).

    moments: f64 [in, in], the sum of x x^T over all that the linear reads of these inputs. budget: bytes of activations
    that stay in memory; what is beyond it goes to a file that has no name and goes with the process. What linears that
    are added up get wrong, those after them make up for: see sums.py.
    """
    wanted = {site.nodes[-1]: site for site in sites}
    bar = iter(env.progress(list(wanted.values()), label))
    stored: dict[str, QTensor] = {}
    moments, room = _Moments(), Room(budget)
    sums = Sums(wanted, room.hold)

    def before(node: fx.Node, values: Mapping[fx.Node, list[Any]]) -> dict[fx.Node, Tensor]:
        site = wanted.get(node)
        if site is None:
            return {}
        next(bar, None)
        value, read = node.all_input_nodes[:2]
        weight = values[read][0]
        own, found = sums.own(node, values, moments.of(value, values[value]))
        stored[site.name] = encoder(site, sums.wanted(node, weight, own, found), found)
        sums.add(node, weight - stored[site.name].dequantize(), values[value])
        if len(stored) == len(wanted):
            next(bar, None)
            raise Enough
        return {read: stored[site.name].dequantize()}

    with suppress(Enough):  # what comes after the last weight need not run
        run_pieces(program, _shared(inputs), before=before, hold=room.hold)
    return stored


@dataclass(frozen=True)
class Reading:
    """What a linear reads of the text. moments: f64 [in, in], the sum of x x^T; size: f64 [in], the mean of |x|."""

    moments: Tensor
    size: Tensor


def read_streamed(
    program: Program, groups: Sequence[Sequence[fx.Node]], inputs: Sequence[Sequence[Tensor]],
    seen: Callable[[int, list[Reading]], None], env: Env, label: str, *, budget: int,
) -> None:  # fmt: skip
    """`seen(group's index, what each of its linears reads)`, for one group after the other as the text gets there."""
    group_of = {node: i for i, group in enumerate(groups) for node in group}
    bar = iter(env.progress(range(len(groups)), label))
    read: dict[fx.Node, Reading] = {}
    left = len(groups)
    moments = _Moments()

    def before(node: fx.Node, values: Mapping[fx.Node, list[Any]]) -> dict[fx.Node, Tensor]:
        nonlocal left
        if node not in group_of:
            return {}
        value, group = node.all_input_nodes[0], groups[group_of[node]]
        read[node] = Reading(moments.of(value, values[value]), _mean_size(values[value]))
        if all(n in read for n in group):
            next(bar, None)
            seen(group_of[node], [read.pop(n) for n in group])
            left -= 1
        if not left:
            next(bar, None)
            raise Enough
        return {}

    with suppress(Enough):
        run_pieces(program, _shared(inputs), before=before, hold=Room(budget).hold)


def _shared(inputs: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
    """The windows that this process reads. Raises PassError if there is none for one of them."""
    if len(inputs) < world():
        fix = "give more text, or start fewer processes"
        raise PassError(f"{world()} processes have {len(inputs)} windows of text to share", fix=fix)
    return share(inputs)


def _mean_size(pieces: Sequence[Tensor]) -> Tensor:
    """f64 [n]: the mean of |x| over the pieces [.., n]."""
    added = sum((piece.abs().flatten(0, -2).double().sum(0) for piece in pieces), torch.zeros(()))
    add_up(added)
    return added / total(sum(piece[..., 0].numel() for piece in pieces))


class _Moments:
    """Of the value asked for last: the linears that share one stand side by side."""

    def __init__(self) -> None:
        self.node: fx.Node | None = None
        self.found = torch.empty(0)

    def of(self, node: fx.Node, pieces: Iterable[Tensor]) -> Tensor:
        """f64 [n, n]: the sum of x^T x over the pieces [.., n]."""
        if node is not self.node:
            self.node, self.found = node, second_moments(pieces)
            add_up(self.found)
        return self.found


def second_moments(pieces: Iterable[Tensor]) -> Tensor:
    """f64 [n, n]: the sum of x^T x over pieces [.., n], each piece's product in float32."""
    total = torch.zeros(())
    for piece in pieces:
        rows = piece.reshape(-1, piece.shape[-1]).float()
        total = total + (rows.T @ rows).double()
    return total


class Room:
    """Where values are kept: in memory up to a budget, then in files."""

    def __init__(self, budget: int) -> None:
        self.left = budget

    def hold(self, value: Any) -> Any:
        """The value, or a copy of it in a file that is mapped into memory."""
        if not isinstance(value, Tensor) or value._is_view():  # noqa: SLF001  (it has no other name; a view takes no room)
            return value
        size = value.nbytes
        if size <= self.left:
            self.left -= size
            weakref.finalize(value, self._give_back, size)
            return value
        return on_disk(value)

    def _give_back(self, size: int) -> None:
        self.left += size


def on_disk(value: Tensor) -> Tensor:
    """The same tensor in a file, mapped into memory. The file's name is gone at once: nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="drawplate-") as folder:
        name = str(Path(folder, "values"))
        mapped = torch.from_file(name, shared=True, size=value.numel(), dtype=value.dtype)
        return mapped.reshape(value.shape).copy_(value)
