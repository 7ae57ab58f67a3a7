"""explain(): which layer hurts, of an artifact that a compile left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from drawplate.analysis.sites import Site, sites
from drawplate.artifact import Artifact
from drawplate.cache import Cache
from drawplate.calibration import Calibration
from drawplate.device import Device, Rates
from drawplate.encoding import QTensor
from drawplate.errors import DrawplateError, EvaluationError
from drawplate.explain.curve import corrected, curve, menus_of, offered, recorded, upgrades
from drawplate.explain.damage import Damage, damage
from drawplate.explain.harm import expect
from drawplate.explain.layers import Places, places
from drawplate.explain.report import Curve, Explanation, Part, Upgrade
from drawplate.explain.twins import Twins, twins
from drawplate.explain.words import verdict
from drawplate.passbase import Progress
from drawplate.program import Program
from drawplate.progress import quiet
from drawplate.recipe import Registry
from drawplate.roofline import shares
from drawplate.streaming import inputs_of

SITES = 40  # measured, unless asked otherwise: minutes on a small model, and rarely does harm hide behind so many
BYTES_ALONE = Device("", "bytes alone", Rates(1.0, math.inf), Rates(1.0, math.inf))


def explain(
    artifact: Artifact,
    original: Program,
    text: Calibration,
    session: Registry,
    *,
    measured: int = SITES,
    calibration: Calibration | None = None,
    device: Device = BYTES_ALONE,
    progress: Progress = quiet,
    cache: Cache | None = None,
) -> Explanation:
    """Measure, on `text`, which stored weights make the artifact's predictions differ from the original's.

    original: the canonical program that it was compiled from. measured: of the weights with the largest expected damage
    so many are measured, by two partial runs of the model each; the others' harm is told as expected. calibration: the
    text of the compile, if it was given one. device: whose time is shared out; by default the bytes that a token
    makes it read. Raises EvaluationError, for a model that does not predict tokens among others, and what the passes
    raise.
    """
    inputs = _inputs(original, text)
    known = twins(artifact.manifest, original, session, calibration=calibration, progress=progress, cache=cache)
    found = [s for s in sites(known.floating) if s.name in known.weights]
    record = recorded(artifact)
    menus = {} if record else menus_of(known, found)
    foreseen = expect(known, menus, text, progress)
    expected = {s.name: foreseen.stored(s.name) for s in found}
    worst = sorted(expected, key=lambda name: -expected[name])[:measured]
    harm = damage(known, worst, inputs, progress)
    items, chosen = record or offered(known, found, menus, foreseen)
    items, chosen = corrected(items, chosen, expected, {name: kl.value for name, kl in harm.only.items()})
    where, size = places(known.floating, known.weights), sum(path.stat().st_size for path in artifact.model_files)
    parts = _parts(known, found, where, expected, harm, upgrades(items, chosen), device)
    offer = f"the menu of {known.target.name}, ranges by {known.range}" if known.target else ""
    source = "what allocate-bits chose from" if record else offer
    shape = curve(items, chosen, size, harm.weights, source) if items else None
    return _explanation(artifact, known, text, where, size, harm, parts, shape)


def _inputs(original: Program, text: Calibration) -> list[Any]:
    """The windows as inputs. Raises EvaluationError if the output is not a score for each token that can be read."""
    try:
        inputs = list(inputs_of(original, text.windows))
    except DrawplateError as error:
        raise _no_tokens(original, error.why) from error
    tables = [s.shape[0] for s in sites(original) if s.role in ("embedding", "tied")]
    (first, *_) = original.graph.output_node().all_input_nodes
    width = first.meta["val"].shape[-1]
    if width not in tables:
        raise _no_tokens(original, f"its output has {width} channels, which are no scores of tokens")
    return inputs


def _no_tokens(original: Program, why: str) -> EvaluationError:
    return EvaluationError(
        "only models that predict tokens can be explained",
        where=original.name,
        why=f"harm is measured as KL, the divergence of token probabilities; {why}",
        fix="explain an artifact of a language model",
    )


def _parts(
    known: Twins,
    found: Sequence[Site],
    where: Places,
    expected: Mapping[str, float],
    harm: Damage,
    better: Mapping[str, Upgrade],
    device: Device,
) -> list[Part]:
    times = time_shares(known.stored, device)
    parts = [_part(known, site, where, times, expected, harm, better) for site in found]
    return sorted(parts, key=lambda p: -p.harm)


def _part(
    known: Twins,
    site: Site,
    where: Places,
    times: Mapping[str, float],
    expected: Mapping[str, float],
    harm: Damage,
    better: Mapping[str, Upgrade],
) -> Part:
    name, stored = site.name, known.stored.weights[site.name]
    assert isinstance(stored, QTensor)
    layer, component = where.of[name]
    return Part(
        name=name,
        layer=layer,
        component=component,
        role=site.role,
        encoding=str(stored.encoding),
        bits=8 * stored.nbytes / math.prod(stored.shape),
        bytes=stored.nbytes,
        time_share=times.get(name, 0.0),
        output_error=harm.errors[name],
        expected=expected[name],
        only=harm.only.get(name),
        won_back=harm.won_back.get(name),
        upgrade=better.get(name),
    )


def time_shares(program: Program, device: Device) -> dict[str, float]:
    """Of the time that one token takes on the device, by the weight's name."""
    seconds = shares(program, device)
    total = sum(seconds.values())
    return {name: s / total for name, s in seconds.items()} if total else {}


def _explanation(
    artifact: Artifact,
    known: Twins,
    text: Calibration,
    where: Places,
    size: int,
    harm: Damage,
    parts: list[Part],
    found: Curve | None,
) -> Explanation:
    manifest = artifact.manifest
    bare = Explanation(
        model=manifest.model,
        recipe=manifest.recipe,
        text=text.source,
        tokens=text.tokens,
        window=text.windows.shape[1],
        file_bytes=size,
        loss=harm.loss,
        rewritten=harm.rewritten,
        parts=tuple(parts),
        layers=where.layers,
        components=where.components,
        activations=harm.activations,
        curve=found,
        fallbacks=manifest.fallbacks,
        notes=known.notes,
    )
    return replace(bare, verdict=verdict(bare))
