"""Storing a program's weights as integers: what the passes that choose which weights share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drawplate.analysis.sites import Site, sites
from drawplate.encoding import Encoding, QTensor, RangeMethod, encode
from drawplate.errors import DrawplateError, PassError, Refusal, grouped
from drawplate.gptq import Settings, gptq
from drawplate.learning.rows import fitting, inputs_of
from drawplate.passbase import Env
from drawplate.program import Program
from drawplate.streaming import store_streamed

OPERATORS = {"embedding": "aten.embedding", "tied": "aten.linear and aten.embedding"}


Encode = Callable[[Sequence[Site]], Mapping[str, QTensor]]


def store(program: Program, wanted: Iterable[Site], encoding: Encoding, encode_all: Encode, env: Env) -> Program:
    """The program with the weights of these sites stored under the encoding; each is replaced once, for all readers.

    encode_all: gives the stored weights of the sites that fit. A site that is stored under the encoding already is left
    alone. One that it does not fit is refused; if it fits none of them, that is a PassError with all the reasons, and
    so is a weight that is stored in another way.
    """
    fitting, refusals, there = [], [], 0
    for site in wanted:
        weight = program.weights[site.name]
        if isinstance(weight, QTensor):
            _same_or_error(site, weight.encoding, encoding)
            there += 1
        elif why := _unfit(site, weight, encoding):
            refusals.append(why)
        else:
            fitting.append(site)
    if refusals and not fitting and not there:
        fixes = {r.fix for r in refusals}
        listed = grouped(refusals if len(fixes) > 1 else [replace(r, fix="") for r in refusals])
        fix = "" if len(fixes) > 1 else refusals[0].fix
        raise PassError(f"no weight can be stored as '{encoding}'", why="\n".join(listed), fix=fix)
    for refusal in refusals:
        env.refuse(refusal)
    editor = program.edit()
    editor.weights.update(encode_all(fitting))
    return editor.finish()


def rounded_to_nearest(program: Program, encoding: Encoding, method: RangeMethod, env: Env, label: str) -> Encode:
    """Each element of each weight to the nearest code, the ranges found by `method`."""

    def encode_all(sites: Sequence[Site]) -> dict[str, QTensor]:
        bar = env.progress(list(sites), label) if sites else ()
        return {s.name: encode(program.weights[s.name], encoding, method=method, name=s.name) for s in bar}  # type: ignore[arg-type]

    return encode_all


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

    A weight that is read in several places is rounded to nearest, and told. tokens: of the text, that are read. budget:
    bytes of activations in memory. Raises PassError if there is no text.
    """
    refuse_no_text(env)
    assert env.calibration is not None
    wanted = [s for s in sites(program) if s.name in encodings]
    alone = [s for s in wanted if s.role in ("linear", "head") and len(s.nodes) == 1]
    others = {s.name: s for s in wanted if s not in alone}
    for name in others:
        env.refuse(Refusal(name, "gptq", "rounded to nearest: it is looked up, or read in several places"))

    def encoder(site: Site, weight: Tensor, moments: Tensor) -> QTensor:
        return gptq(weight, moments, encodings[site.name], settings)

    inputs = list(inputs_of(program, fitting(program, env.calibration.windows, tokens)))
    streamed = store_streamed(program, alone, inputs, encoder, env, label, budget=budget) if alone else {}
    kept: dict[str, Any] = {name: program.weights[name] for name in others}
    nearest = {n: encode(w, encodings[n], method=settings.range, name=n) for n, w in kept.items()}
    return {**nearest, **streamed}


def refuse_no_text(env: Env) -> None:
    """Raises PassError if there is no text for GPTQ."""
    if env.calibration is None:
        raise PassError(
            "method=gptq needs a text, and there is none",
            why="it weighs errors by what each linear reads",
            fix="give one: --calibration FILE (in Python, calibration=load_text(..)), or use method=round",
        )


def hollow(program: Program) -> bool:
    """Have its weights no contents, as in a rehearsal?"""
    return any(isinstance(w, Tensor) and w.is_meta for w in program.weights.values())


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
