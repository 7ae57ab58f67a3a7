"""Storing a program's weights as integers: what the passes that choose which weights share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from drawplate.analysis.sites import Role, Site, sites
from drawplate.blockap import Settings as BlockApSettings
from drawplate.blockap import blockap
from drawplate.blockwise import Problem, in_one_part, store_blockwise, unsolved
from drawplate.calibration import Calibration
from drawplate.digest import digest
from drawplate.encoding import Encoding, QTensor, RangeMethod, encode
from drawplate.errors import DrawplateError, PassError, Refusal, grouped
from drawplate.gptq import Settings as GptqSettings
from drawplate.gptq import gptq, gptq_each
from drawplate.learning.descent import Told
from drawplate.learning.state import Aside
from drawplate.memory import of_blockwise
from drawplate.metrics import Metrics
from drawplate.passbase import Env
from drawplate.program import Program
from drawplate.rehearsal import hollow
from drawplate.signround import Settings as SignRoundSettings
from drawplate.signround import signround
from drawplate.streaming import Reading, Room, fitting, inputs_of, read_streamed, store_streamed

OPERATORS = {"embedding": "aten.embedding", "tied": "aten.linear and aten.embedding"}

COARSE = 20  # steps of the search for a range while encodings are compared: a fifth of the time, within 2 %

MethodName = Literal["round", "gptq", "signround", "block-ap"]
Settings = GptqSettings | SignRoundSettings | BlockApSettings
Encode = Callable[[Mapping[str, Encoding]], Mapping[str, QTensor]]
Inputs = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Method:
    """How weights are rounded. range: how grids are found, or where they start. tokens: of the text that is read.
    spill: bytes of activations that stay in memory. settings: of the method, where they are not its own defaults."""

    name: MethodName = "round"
    range: RangeMethod = "minmax"
    tokens: int = 16384
    spill: int = 4 << 30
    settings: Settings | None = None

    def text(self, env: Env) -> Calibration:
        """The text to read. Raises PassError if there is none."""
        return env.text(f"method={self.name} needs", _READS[self.name], "use method=round")


_READS = {
    "gptq": "it weighs errors by what each linear reads",
    "signround": "it learns from what each block makes of what it reads",
    "block-ap": "it learns from what each block makes of what it reads",
}
_SOLVERS: dict[str, Any] = {
    "signround": (signround, SignRoundSettings),
    "block-ap": (blockap, BlockApSettings),
}
_COMPENSATED = ("gptq", "block-ap")  # what is stored reads what was stored before it, and makes up for it
_LEARNED: dict[str, tuple[Role, ...]] = {
    "gptq": ("linear", "head"),
    "signround": ("linear",),
    "block-ap": ("linear",),
}


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
        elif why := unfit(site, weight, encoding):
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


def by(program: Program, encodings: Mapping[str, Encoding], method: Method, env: Env, label: str) -> dict[str, QTensor]:
    """These weights, each under its encoding, rounded by this method.

    What a method that reads a text cannot take is rounded to nearest, and told. Without contents all methods are the
    same. Raises PassError if a text is wanted and there is none.
    """
    if method.name == "round" or hollow(program):
        return by_rounding(program, encodings, method.range, env, label)
    text = method.text(env)
    taken = {s.name for s in _takes(program, method.name)}
    if method.name in _SOLVERS:
        taken &= in_one_part(program)
    others = {name: e for name, e in encodings.items() if name not in taken}
    logits = "" if method.name == "gptq" else ", or gives logits"
    for name in others:
        why = f"rounded to nearest: it is looked up, or read in several places{logits}"
        env.refuse(Refusal(name, method.name, why))
    mine = {name: e for name, e in encodings.items() if name in taken}
    inputs = list(inputs_of(program, fitting(program, text.windows, method.tokens)))
    stored = by_rounding(program, others, method.range, env, label)
    if mine and method.name == "gptq":
        stored |= _by_gptq(program, mine, method, inputs, env, label)
    elif mine:
        stored |= _by_blocks(program, mine, method, inputs, env, label)
    return stored


def _takes(program: Program, name: MethodName) -> list[Site]:
    """The sites that a method which reads a text can round: by their role, and read in one place."""
    return [s for s in sites(program) if s.role in _LEARNED[name] and len(s.nodes) == 1]


def candidates(
    program: Program, menus: Mapping[str, Sequence[Encoding]], method: Method, env: Env, label: str
) -> dict[str, list[QTensor]]:
    """Each weight under each of its encodings, about as `by` would store it, to compare them by.

    By GPTQ it is stored from what its linear reads while nothing else is, and so it is for Block-AP, which ends nearer
    to that than to rounding; by other methods it is rounded to nearest.
    """
    weights: dict[str, Any] = {name: program.weights[name] for name in menus}
    found: dict[tuple[str, Encoding], QTensor] = {}
    room = Room(method.spill)

    def keep(name: str, encoding: Encoding, stored: QTensor) -> None:
        found[name, encoding] = replace(stored, codes=room.hold(stored.codes))

    if method.name in _COMPENSATED:
        _each_by_gptq(program, menus, method, env, label, keep)
    for name, menu in env.progress(list(menus.items()), f"{label}, menu"):
        for encoding in menu:
            if (name, encoding) not in found:
                keep(name, encoding, encode(weights[name], encoding, method=method.range, steps=COARSE, name=name))
    return {name: [found[name, encoding] for encoding in menu] for name, menu in menus.items()}


def _each_by_gptq(
    program: Program,
    menus: Mapping[str, Sequence[Encoding]],
    method: Method,
    env: Env,
    label: str,
    keep: Callable[[str, Encoding, QTensor], None],
) -> None:
    settings = replace(_gptq_settings(method), steps=COARSE)
    wanted = [s for s in _takes(program, "gptq") if menus.get(s.name)]
    if not wanted:
        return
    inputs = list(inputs_of(program, fitting(program, method.text(env).windows, method.tokens)))

    def seen(index: int, read: list[Reading]) -> None:
        name = wanted[index].name
        weight: Any = program.weights[name]
        for stored in gptq_each(weight, read[0].moments, menus[name], settings):
            keep(name, stored.encoding, stored)

    read_streamed(program, [s.nodes for s in wanted], inputs, seen, env, label, budget=method.spill)


def _by_gptq(
    program: Program, encodings: Mapping[str, Encoding], method: Method, inputs: Inputs, env: Env, label: str
) -> dict[str, QTensor]:
    settings = _gptq_settings(method)

    def encoder(site: Site, weight: Tensor, moments: Tensor) -> QTensor:
        return gptq(weight, moments, encodings[site.name], settings)

    wanted = [s for s in sites(program) if s.name in encodings]
    return store_streamed(program, wanted, inputs, encoder, env, label, budget=method.spill)


def _gptq_settings(method: Method) -> GptqSettings:
    return method.settings if isinstance(method.settings, GptqSettings) else GptqSettings(range=method.range)


def _by_blocks(
    program: Program, encodings: Mapping[str, Encoding], method: Method, inputs: Inputs, env: Env, label: str
) -> dict[str, QTensor]:
    learn, defaults = _SOLVERS[method.name]
    settings: Any = method.settings or defaults(range=method.range)
    aside = Aside(env.checkpoints, digest(repr(method), repr(encodings), method.text(env).digest, str(env.seed)))
    if method.name == "block-ap":
        env.say(f"{label} takes {of_blockwise(program, encodings, inputs, method.spill)}")
    told = Told(label, Metrics(env.metrics, label, aside.purpose))
    steps = settings.steps_of(len(inputs)) * unsolved(program, encodings, aside)
    bar = iter(env.progress(range(steps), told))

    def solve(problem: Problem) -> Mapping[str, QTensor]:
        told.part = problem.name
        found: Mapping[str, QTensor] = learn(problem, encodings, settings, env.seed, told, bar)
        return found

    stored = store_blockwise(program, encodings, inputs, solve, aside, budget=method.spill)
    next(bar, None)
    return stored


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


def unfit(site: Site, weight: Tensor, encoding: Encoding) -> Refusal | None:
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
