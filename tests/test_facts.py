"""Facts hold where they should and say why where they do not."""

import pytest
from passkit import CAUSAL, MLP, TIED

from drawplate.facts import FACTS, INTERFACE, NUMBERS, STORED, known
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.last_position import LastPosition
from drawplate.passes.pack_weights import PackWeights
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.passes.quantize_cache import QuantizeCache
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.plugins.manager import Session
from drawplate.text import parse_program


def after(text, *passes):
    program = parse_program(text)
    for pass_ in passes:
        program = pass_.run(program, Env())
    return program


@pytest.mark.parametrize(
    ("program", "facts"),
    [
        (after(MLP), {"weights.float", "attention.plain"}),
        (after(MLP, QuantizeWeights()), {"weights.quantised", "linears.quantised", "attention.plain"}),
        (after(MLP, QuantizeEmbedding()), {"weights.quantised", "embedding.quantised", "attention.plain"}),
        (
            after(TIED, QuantizeEmbedding()),
            {"weights.quantised", "embedding.quantised", "linears.quantised", "attention.plain"},
        ),
        (
            after(MLP, QuantizeWeights(), QuantizeActivations(), PackWeights()),
            {"weights.quantised", "weights.packed", "linears.quantised", "activations.quantised", "attention.plain"},
        ),
        (after(CAUSAL, QuantizeCache()), {"weights.float"}),
        (after(CAUSAL, AddKvCache(8), LastPosition()), {"weights.float", "cache.inserted", "head.last_position"}),
        (after(CAUSAL, QuantizeCache(), AddKvCache(8)), {"weights.float", "cache.inserted"}),
    ],
)
def test_what_is_known_of_a_program(program, facts):
    assert known(program) == facts


def test_what_does_not_hold_has_reasons():
    program = after(CAUSAL, QuantizeWeights("head", 8, (1, -1)))
    reasons = {f.name: f.holds(program) for f in FACTS if f.name not in known(program)}
    assert reasons == {
        "weights.float": ["head is stored as 'i8 block 1x-1 sym scale f32'"],
        "weights.packed": ["the codes of head are not packed"],
        "activations.quantised": ["no linear with a stored weight reads an encoded value"],
        "embedding.quantised": ["embed is not stored as integers"],
        "cache.inserted": ["attn attends without a cache", "no attention reads a cache"],
        "head.last_position": ["the output is not of one position"],
    }


def test_attention_that_is_not_plain_says_where():
    fact = next(f for f in FACTS if f.name == "attention.plain")
    assert fact.holds(after(CAUSAL, QuantizeCache())) == ["attn reads encoded values"]
    assert fact.holds(after(CAUSAL, AddKvCache(8))) == ["attn reads a cache"]


def test_the_named_sets_are_of_the_facts_there_are():
    """A fact that is in neither of the two was added since: look at the passes that preserve them, then enter it."""
    assert INTERFACE.isdisjoint(NUMBERS)
    assert set(FACTS) == INTERFACE | NUMBERS
    assert STORED < NUMBERS


def test_what_passes_declare_cannot_be_changed():
    """`{A} | SET` would be a set that can; `SET | {A}` is not. A property is what follows from a pass's options."""
    for pass_ in Session(environment={"DRAWPLATE_PLUGINS": ""}).passes.values():
        assert all(
            isinstance(facts, frozenset | property) for facts in (pass_.requires, pass_.provides, pass_.preserves)
        )
