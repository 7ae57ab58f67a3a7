"""`drawplate inspect`: what a model is made of, or what an artifact holds."""

from __future__ import annotations

import math
import re
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drawplate.commands.options import AsJson
from drawplate.commands.output import Output, count, plain, table
from drawplate.errors import DrawplateError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drawplate.capture import Captured


class Stage(StrEnum):
    """How far to take the model before it is shown."""

    captured = "captured"
    canonical = "canonical"


def inspect(
    source: Annotated[str, typer.Argument(metavar="MODEL|ARTIFACT", help="A model, or a folder that `compile` wrote.")],
    ir: Annotated[bool, typer.Option("--ir", help="Print the textual IR and nothing else.")] = False,
    stage: Annotated[
        Stage, typer.Option("--stage", help="As torch.export saw it, or in canonical form.")
    ] = Stage.canonical,
    turns: Annotated[
        bool, typer.Option("--rotations", help="Which channels rotate may turn once norms are folded, and which not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's parameters, sites, blocks and what was not recognised; or an artifact's bytes and proofs."""
    from drawplate.artifact import Artifact, is_artifact
    from drawplate.commands.rotations import rotation_tables, rotations
    from drawplate.plugins.manager import Session

    with Output(as_json) as out:
        if is_artifact(source):
            from drawplate.commands.compiling import artifact_tables

            if turns:
                raise _turned_already(source)
            artifact = Artifact.load(source)
            out.give(plain(artifact.manifest), *artifact_tables(artifact))
            return
        captured = _captured(source, stage, out)
        if ir:
            text = str(captured.program)
            out.give({"ir": text}, text)
            return
        if turns:
            found = rotations(captured.program, Session().passes)
            out.give(found, *rotation_tables(found, _starred))
            return
        data = _facts(captured, stage)
        out.give(data, *_tables(data))


def _turned_already(source: str) -> DrawplateError:
    return DrawplateError(
        "an artifact cannot be turned",
        where=source,
        why="--rotations shows what passes may do to a model, and an artifact has been through its passes",
        fix="point --rotations at the model that it was made from",
    )


def _captured(source: str, stage: Stage, out: Output) -> Captured:
    from drawplate.capture import capture
    from drawplate.commands.models import capture_canonical

    if stage is Stage.canonical:
        return capture_canonical(source, out)
    with out.busy("capture"):
        return capture(source)


def _facts(captured: Captured, stage: Stage) -> dict[str, Any]:
    """Everything that is shown, as JSON has it."""
    from drawplate.analysis.blocks import blocks
    from drawplate.analysis.sites import sites
    from drawplate.canonical import unrecognised
    from drawplate.textual.words import operator_name

    program, assets = captured.program, captured.assets
    found = sites(program)
    return {
        "name": program.name,
        "inputs": [plain(s) for s in program.inputs],
        "dims": [plain(d) for d in program.dims],
        "parameters": sum(math.prod(w.shape) for w in program.weights.values()),
        "bytes": sum(w.nbytes for w in program.weights.values()),
        "macs_per_token": sum(s.macs_per_token for s in found),
        "context": assets.context,
        "vocabulary": assets.vocabulary,
        "weights": [
            {"name": n, "shape": list(w.shape), "dtype": _dtype(w), "bytes": w.nbytes}
            for n, w in program.weights.items()
        ],
        "sites": [
            {
                "name": s.name,
                "role": s.role,
                "shape": list(s.shape),
                "module": s.module,
                "macs_per_token": s.macs_per_token,
            }
            for s in found
        ],
        "blocks": [_block(b) for b in blocks(program)],
        "ops": dict(Counter(operator_name(n.target) for n in program.nodes()).most_common()),
        "unrecognised": [str(r) for r in unrecognised(program)] if stage is Stage.canonical else [],
    }


def _block(block: Any) -> dict[str, Any]:
    return {"name": block.name, "nodes": len(block.nodes), "kind": block.kind}


def _tables(data: dict[str, Any]) -> list[RenderableType]:
    """People get sites that differ in a layer's number only as one row."""
    from drawplate.planning import size

    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for site in data["sites"]:
        key = (_starred(site["name"]), site["role"], "x".join(map(str, site["shape"])))
        groups.setdefault(key, []).append(site)
    rows = [
        (name, role, shape, len(group), count(sum(math.prod(s["shape"]) for s in group)),
         count(sum(s["macs_per_token"] for s in group)))
        for (name, role, shape), group in groups.items()
    ]  # fmt: skip
    context = f", context {data['context']} tokens" if data["context"] else ""
    head = (
        f"{data['name']}: {count(data['parameters'])} parameters, {size(data['bytes'])}, "
        f"{count(data['macs_per_token'])} multiply-adds per token{context}"
    )
    kinds = Counter((_starred(b["name"]), b["kind"]) for b in data["blocks"])
    blocks = ", ".join(f"{n} x {name}" for (name, _), n in kinds.items()) or "none"
    ops = ", ".join(f"{n} {op}" for op, n in data["ops"].items())
    missed = data["unrecognised"]
    return [
        head,
        table("", ("weight", "role", "shape", "sites", "parameters", "multiply-adds/token"), rows),
        f"blocks: {blocks}",
        f"ops: {ops}",
        "not recognised: " + ("\n  ".join(["", *missed]) if missed else "nothing was left over"),
    ]


def _starred(name: str) -> str:
    """`model.layers.3.mlp` -> `model.layers.*.mlp`, for tables."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _dtype(weight: Any) -> str:
    from drawplate.backendbase import encoding_of

    return encoding_of(weight)
