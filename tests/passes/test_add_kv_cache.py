"""add-kv-cache: fed in pieces the program says what it said of the whole; what cannot be cached is refused."""

import pytest
import torch
from architectures import captured, decoder_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from passkit import BIASED, CAUSAL, EVERYWHERE, MLP, WINDOWED

from drawplate.errors import DrawplateError
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.last_position import LastPosition
from drawplate.runtime import ProgramRunner
from drawplate.testing import check_pass
from drawplate.text import parse_program

CACHEABLE = ("llama", "mistral", "gpt2", "gemma3", "mixtral", "phi", "cohere")
PLAIN = {text: parse_program(text) for text in (CAUSAL, WINDOWED)}
CACHED = {text: AddKvCache(16).run(program, Env()) for text, program in PLAIN.items()}


@pytest.mark.parametrize("text", [CAUSAL, WINDOWED], ids=["causal", "window"])
def test_the_cached_form_is_legal_and_the_same_function(text):
    outcome = check_pass(AddKvCache(12), text)
    program = outcome.program
    assert [(s.name, s.shape) for s in program.inputs] == [("tokens", (1, "s")), ("input_pos", ("s",))]
    assert [(d.name, d.low, d.high) for d in program.dims] == [("s", 1, 12)]
    assert [(s.name, s.shape) for s in program.state] == [
        ("cache.0.key", (1, 12, 2, 8)),
        ("cache.0.value", (1, 12, 2, 8)),
    ]
    assert [c.invariant for c in outcome.certificates] == ["SAME_FUNCTION"]
    assert outcome.certificates[0].error < 1e-14


def test_queries_may_be_their_own_keys_and_values():
    text = CAUSAL.replace("(%qt, %kt, %vt,", "(%qt, %qt, %qt,").replace("enable_gqa=True", "enable_gqa=False")
    unread = ("@k", "@v", "%k", "%v")
    text = "\n".join(line for line in text.splitlines() if not line.replace("weight ", "").strip().startswith(unread))
    outcome = check_pass(AddKvCache(12), text)
    assert outcome.certificates[0].error < 1e-14


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([CAUSAL, WINDOWED]))
@settings(max_examples=20, deadline=None)
def test_however_it_is_fed_it_says_the_same(pieces, text):
    n = sum(pieces)
    ids = torch.randint(0, 12, (n,), generator=torch.Generator().manual_seed(n))
    whole = ProgramRunner(PLAIN[text]).step(ids)
    runner = ProgramRunner(CACHED[text])
    parts = torch.cat([runner.step(part) for part in ids.split(pieces)])
    assert torch.allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("name", CACHEABLE)
def test_every_cacheable_architecture_token_by_token(name):
    program = captured(name)
    ids, positions = decoder_inputs(1, 9)
    expected = program.module()(ids, positions)[0]
    runner = ProgramRunner(LastPosition().run(AddKvCache(16).run(program, Env()), Env()))
    first = runner.step(ids[0, :4])
    rest = [runner.step(token) for token in ids[0, 4:].split(1)]
    assert torch.allclose(torch.cat([first, *rest]), expected[3:], atol=2e-4)


def test_attention_that_was_not_recognised_is_refused_with_the_model_s_own_line():
    with pytest.raises(DrawplateError) as error:
        AddKvCache(16).run(captured("gemma2-softcap"), Env())
    assert error.value.what == "a cache cannot be added"
    assert error.value.why.count("attention that was not recognised [modeling_gemma2.py:") == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (EVERYWHERE, "attn (attention): it is not causal: each position also reads later ones"),
        (BIASED, "attn (attention): its mask is neither causal nor a window but computed by"),
    ],
)
def test_other_attention_is_refused_with_its_reason(text, why):
    with pytest.raises(DrawplateError) as error:
        AddKvCache(16).run(parse_program(text), Env())
    assert error.value.why.startswith(why)


def test_a_program_without_positions_has_no_text_to_cache():
    with pytest.raises(DrawplateError) as error:
        AddKvCache(16).run(parse_program(MLP), Env())
    assert str(error.value) == (
        "there is no text to cache\n"
        "  where: mlp\n"
        "  why:   the inputs should be input_ids and position_ids, both [batch, length]; "
        "they are input_ids ['b', 's']\n"
        "  do:    a cache is for decoders; leave add-kv-cache out"
    )


def test_a_context_longer_than_the_program_s_is_refused():
    with pytest.raises(DrawplateError) as error:
        AddKvCache(17).run(parse_program(CAUSAL), Env())
    assert str(error.value) == (
        "a context of 17 is longer than the program allows\n"
        "  where: attention\n"
        "  why:   it takes 1 to 16 tokens\n"
        "  do:    use context=16 or less"
    )


def test_a_context_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a context of 0 tokens holds nothing"):
        AddKvCache(0)
