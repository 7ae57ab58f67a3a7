"""Storing a program's weights as integers: what the passes that choose which weights share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from drawplate.analysis.sites import Site
from drawplate.encoding import Encoding, QTensor, RangeMethod, encode
from drawplate.errors import DrawplateError, PassError, Refusal, grouped
from drawplate.passbase import Env
from drawplate.program import Program

OPERATORS = {"embedding": "aten.embedding", "tied": "aten.linear and aten.embedding"}


def store(
    program: Program, wanted: Iterable[Site], encoding: Encoding, method: RangeMethod, env: Env, label: str
) -> Program:
    """The program with the weights of these sites stored under the encoding; each is replaced once, for all readers.

    A site that is stored under it already is left alone. One that it does not fit is refused; if it fits none of them,
    that is a PassError with all the reasons, and so is a weight that is stored in another way.
    """
    editor = program.edit()
    stored, refusals = 0, []
    for site in env.progress(list(wanted), label):
        weight = program.weights[site.name]
        if isinstance(weight, QTensor):
            _same_or_error(site, weight.encoding, encoding)
            stored += 1
            continue
        why = _unfit(site, weight, encoding)
        if why:
            refusals.append(why)
            continue
        editor.weights[site.name] = encode(weight, encoding, method=method, name=site.name)
        stored += 1
    if refusals and not stored:
        fixes = {r.fix for r in refusals}
        listed = grouped(refusals if len(fixes) > 1 else [replace(r, fix="") for r in refusals])
        fix = "" if len(fixes) > 1 else refusals[0].fix
        raise PassError(f"no weight can be stored as '{encoding}'", why="\n".join(listed), fix=fix)
    for refusal in refusals:
        env.refuse(refusal)
    return editor.finish()


def refuse_nothing_there(program: Program, what: str, env: Env) -> Program:
    """Nothing to do, and a refusal that says so."""
    env.refuse(Refusal(program.name, "", f"there is no {what} to store as integers"))
    return program


def _same_or_error(site: Site, there: Encoding, asked: Encoding) -> None:
    if there == asked:
        return
    if site.role == "tied":
        raise PassError(
            f"{site.name} is stored as '{there}' and cannot also be stored as '{asked}'",
            where=_where(site),
            why="it is one table that both the embedding and the head read, and it is in the file once",
            fix="give quantize-embedding and quantize-weights{where=head} the same encoding, or leave one out",
        )
    raise PassError(
        f"{site.name} is stored as '{there}' already",
        where=_where(site),
        why=f"storing it as '{asked}' would round it a second time",
        fix="quantise each weight once: where=body, where=head and where=all overlap",
    )


def _unfit(site: Site, weight: Tensor, encoding: Encoding) -> Refusal | None:
    """Why this weight cannot be stored under the encoding."""
    op = OPERATORS.get(site.role, "aten.linear")
    if weight.dtype not in (torch.float32, torch.float64):
        kind = str(weight.dtype).removeprefix("torch.")
        fix = "leave out cast: stored weights and their scales have dtypes of their own"
        return Refusal(site.name, op, f"it is {kind}, and a stored weight reads back as float32", fix=fix)
    try:
        encoding.blocks(weight.shape)
    except DrawplateError as error:
        return Refusal(site.name, op, error.what, _source(site), error.fix)
    return None


def _source(site: Site) -> str:
    return str(site.nodes[0].meta.get("source") or "")


def _where(site: Site) -> str:
    return " ".join(part for part in (site.module, _source(site)) if part)
