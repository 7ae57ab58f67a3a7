"""Every architecture: the canonical program equals the eager model, and everything in it was recognised."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from architectures import DECODERS, WINDOW, captured, decoder_inputs, eager

from drawplate.canonical import unrecognised
from drawplate.canonical.grouped import SDPA
from drawplate.program import Program
from drawplate.spec import check
from drawplate.textual.words import operator_name

aten, ours = torch.ops.aten, torch.ops.drawplate


def counts(program: Program) -> Counter[str]:
    return Counter(operator_name(n.target).partition(".")[2] for n in program.nodes())


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 13), (3, 2), (2, 37)])
def test_equals_the_eager_model(name: str, batch: int, length: int) -> None:
    ids, positions = decoder_inputs(batch, length)
    with torch.no_grad():
        expected = eager(name)(input_ids=ids).logits
        got = captured(name).module()(ids, positions)
    assert expected.abs().max() > 0.1
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", DECODERS)
def test_everything_is_recognised(name: str) -> None:
    want, program = DECODERS[name], captured(name)
    found = counts(program)
    assert found[want.kind] == want.norms
    assert found["rotary"] == want.rotaries
    assert found["linear"] == want.linears
    assert found["scaled_dot_product_attention"] == want.attentions
    assert found["window_mask"] == want.windows
    assert {n.args[1] for n in program.nodes(ours.window_mask.default)} <= {WINDOW}
    assert all(n.args[3] is None or n.args[3].target is ours.window_mask.default for n in program.nodes(SDPA))
    assert {n.args[3] for n in program.nodes(ours.rotary.default)} <= {want.interleaved}
    assert {r.op for r in unrecognised(program)} == set(want.residue)
    assert check(program, "canonical") == []


@pytest.mark.parametrize("name", DECODERS)
def test_weights_have_the_checkpoints_names(name: str) -> None:
    program, model = captured(name), eager(name)
    known = {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    made = [w for w in program.weights if w not in known]
    assert all(w.rpartition("_")[0] in known for w in made), made
    assert {"input_ids", "position_ids"} == {s.name for s in program.inputs}
    assert all(n.meta["source"] and "site" in n.meta for n in program.nodes() if n.target is not aten.sym_size.int)
