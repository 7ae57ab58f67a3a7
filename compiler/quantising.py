"""Storing a program's weights as integers: what the passes that choose which weights share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drawplate.analysis.sites import Site, sites
from drawplate.calibration import Calibration
from drawplate.encoding import Encoding, QTensor, RangeMethod, encode
from drawplate.errors import DrawplateError, PassError, Refusal, grouped
from drawplate.gptq import Settings, gptq
from drawplate.passbase import Env
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.streaming import fitting, inputs_of, store_streamed

OPERATORS = {"embedding": "aten.embedding", "tied": "aten.linear and aten.embedding"}


Encode = Callable[[Mapping[str, Encoding]], Mapping[str, QTensor]]


def store(program: Program, wanted: Iterable[Site], encoding: Encoding, encode_all: Encode, env: Env) -> Program:
    """The program with the weights of these sites stored under the encoding; each is replaced once, for all readers.

    encode_all: gives the stored weights of the sites that fit, from the encoding of each by its name. A site that is
    stored under the encoding already is left alone. One that it does not fit is refused; if it fits none of them, that
    is a PassError with all the reasons, and so is a weight that is stored in another way.
    """
    fit, refusals, there = [], [], 0
    for site in wanted:
        weight = program.weights[site.name]
        if isinstance(weight, QTensor):
            _same_or_error(site, weight.encoding, encoding)
            there += 1
        elif why := _unfit(site, weight, encoding):
            refusals.append(why)
        else:
            fit.append(site)
    if refusals and not fit and not there:
        fixes = {r.fix for r in refusals}
        listed = grouped(refusals if len(fixes) > 1 else [replace(r, fix="") for r in refusals])
        fix = "" if len(fixes) > 1 else refusals[0].fix
        raise PassError(f"no weight can be stored as '{encoding}'", why="\n".join(listed), fix=fix)
    for refusal in refusals:
        env.refuse(refusal)
    editor = program.edit()
    editor.weights.update(encode_all({site.name: encoding for site in fit}))
    return editor.finish()


def by_rounding(
    program: Program, encodings: Mapping[str, Encoding], method: RangeMethod, env: Env, label: str
) -> dict[str, QTensor]:
    """These weights, each under its encoding: every element to the nearest code, the ranges found by `method`."""
    kept: dict[str, Any] = {name: program.weights[name] for name in encodings}
    bar = env.progress(list(kept), label) if kept else ()
    return {name: encode(kept[name], encodings[name], method=method, name=name) for name in bar}


def by_gptq(
    program: Program,
    encodings: Mapping[str, Encoding],
    settings: Settings,
    budget: int,
    tokens: int,
    env: Env,
    label: str,
) -> dict[str, QTensor]:
    """These weights, each under its encoding, by GPTQ on the calibration text. See streaming.store_streamed.

    A weight that is read in several places is rounded to nearest, and told. Without contents it is the same as
    by_rounding. tokens: of the text, that are read. budget:
    bytes of activations in memory. Raises PassError if there is no text.
    """
    if hollow(program):
        return by_rounding(program, encodings, settings.range, env, label)
    windows = text_for_gptq(env).windows
    wanted = [s for s in sites(program) if s.name in encodings]
    alone = [s for s in wanted if s.role in ("linear", "head") and len(s.nodes) == 1]
    others = {s.name: encodings[s.name] for s in wanted if s not in alone}
    for name in others:
        env.refuse(Refusal(name, "gptq", "rounded to nearest: it is looked up, or read in several places"))

    def encoder(site: Site, weight: Tensor, moments: Tensor) -> QTensor:
        return gptq(weight, moments, encodings[site.name], settings)

    inputs = list(inputs_of(program, fitting(program, windows, tokens)))
    streamed = store_streamed(program, alone, inputs, encoder, env, label, budget=budget) if alone else {}
    return {**by_rounding(program, others, settings.range, env, label), **streamed}


def text_for_gptq(env: Env) -> Calibration:
    """Raises PassError if there is none."""
    return env.text("method=gptq needs", "it weighs errors by what each linear reads", "use method=round")


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
