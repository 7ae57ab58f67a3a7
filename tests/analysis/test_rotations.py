"""Plans: what applies to which architecture, what it costs, and what is refused."""

import pytest
from architectures import DECODERS, LAYERS, captured
from graphkit import attention, program

from drawplate.analysis.rotations import Plan, plan
from drawplate.passbase import Env
from drawplate.passes.fold_norms import FoldNorms
from drawplate.rehearsal import without_contents


def planned(name: str, maps: int = 1, tied: str = "keep") -> Plan:
    folded = FoldNorms(tied).run(without_contents(captured(name)), Env())  # type: ignore[arg-type]
    return plan(folded, r3=True, r4=True, maps=maps)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite"])
def test_everything_applies_by_default(name):
    found = planned(name)
    kinds = [r.kind for r in found.rotations]
    assert (kinds.count("r1"), kinds.count("r2")) == (1, LAYERS)
    assert [o.block for o in found.online if o.kind == "r4"] == [80] * LAYERS
    assert len([o for o in found.online if o.kind == "r3"]) == 2 * LAYERS
    assert len(found.maps) == (name in ("llama", "smollm3"))  # what a tied table costs
    assert not found.refusals
    stream = next(r for r in found.rotations if r.kind == "r1")
    linears = DECODERS[name].linears
    assert len({t.weight for t in stream.turns if "bias" not in t.weight}) == linears + 1 - len(found.maps)


@pytest.mark.parametrize(
    ("name", "maps"), [("gemma", 1), ("gemma2", 5), ("gemma2-softcap", 5), ("gemma3", 5), ("olmo2", 4)]
)
def test_norms_in_the_stream_cost_a_map_each(name, maps):
    found = planned(name, maps)
    assert len(found.maps) == maps
    assert {m.width for m in found.maps} == {48}
    if maps > 1:
        (refusal,) = planned(name, maps - 1).refusals
        assert refusal.fix == f"fold-norms in front folds what can be; maps={maps} allows the rest"
        assert refusal.why.startswith(f"{maps} per-channel products are not folded and would each become a 48 x 48")


@pytest.mark.parametrize("name", ["phi", "gpt-neox", "stablelm", "gpt2", "cohere"])
def test_layer_norms_are_centred_where_no_table_is_tied(name):
    assert "r1" in [r.kind for r in planned(name, 0, "split").rotations]
    refused = [r.op for r in planned(name).refusals]
    assert refused == (["r1"] if name in ("gpt2", "cohere") else [])


def test_queries_of_a_width_without_a_matrix_are_told():
    lines = attention().replace("2, 4]", "2, 7]").replace("8])", "14])")
    wide = dict.fromkeys("qkv", (14, 8))
    (refusal,) = plan(program(lines, **wide, o=(8, 14)), r1=False, r2=False, r3=True).refusals
    assert str(refusal) == "attn (r3): no Hadamard matrix turns its 7 channels"


def test_nothing_is_planned_that_was_not_asked_for():
    assert plan(captured("llama"), r1=False, r2=False) == Plan()
