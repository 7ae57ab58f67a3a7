"""Perplexity, KL and agreement against the same numbers worked out by hand."""

import math

import pytest
import torch

from drawplate.errors import EvaluationError
from drawplate.evaluate.head import split_head
from drawplate.evaluation import language
from drawplate.runtime import ProgramRunner
from drawplate.text import parse_program

WINDOWS = torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(0))


def log_probabilities(program):
    """f64 [5, 23, 258]."""
    positions = torch.arange(24).expand(5, 24)
    with torch.no_grad():
        return torch.log_softmax(program.module()(WINDOWS, positions).double(), -1)[:, :-1]


@pytest.fixture
def by_hand(plain, other):
    base, changed = log_probabilities(plain), log_probabilities(other)
    loss = -changed.gather(-1, WINDOWS[:, 1:, None])[..., 0]
    kl = (base.exp() * (base - changed)).sum(-1)
    return {
        "loss": float(loss.mean()),
        "error": float(loss.mean(1).std() / math.sqrt(5)),
        "kl": float(kl.mean()),
        "kl_99": float(kl.flatten().quantile(0.99)),
        "agreement": float((base.argmax(-1) == changed.argmax(-1)).double().mean()),
    }


@pytest.mark.parametrize("form", ["program", "plain runner", "cached runner", "cached program", "last position"])
def test_every_kind_of_model_gives_the_same_numbers(plain, other, by_hand, texts, form):
    model = {
        "program": lambda: other,
        "plain runner": lambda: ProgramRunner(other),
        "cached runner": lambda: ProgramRunner(parse_program(texts(seed=1))),
        "cached program": lambda: parse_program(texts(seed=1)),
        "last position": lambda: ProgramRunner(parse_program(texts(last=True, seed=1))),
    }[form]()
    report = language({"original": plain, "changed": model}, WINDOWS, original="original")
    changed = report["changed"]
    assert changed.loss.value == pytest.approx(by_hand["loss"], rel=1e-5)
    assert changed.loss.error == pytest.approx(by_hand["error"], rel=1e-4)
    assert changed.perplexity.value == pytest.approx(math.exp(by_hand["loss"]), rel=1e-5)
    assert (changed.tokens, changed.window, changed.loss.n) == (5 * 23, 24, 5)
    assert changed.against is not None
    assert changed.against.kl.value == pytest.approx(by_hand["kl"], rel=1e-3)
    assert changed.against.kl_99 == pytest.approx(by_hand["kl_99"], rel=1e-3)
    assert changed.against.agreement.value == pytest.approx(by_hand["agreement"])
    ratio = changed.perplexity.value / report["original"].perplexity.value
    assert changed.against.perplexity_ratio.value == pytest.approx(ratio, rel=1e-5)
    assert report["original"].against is None


def test_a_model_is_at_no_distance_from_itself(plain):
    against = language({"a": plain, "b": plain}, WINDOWS, original="a")["b"].against
    assert (against.kl.value, against.kl_99, against.agreement.value) == (0, 0, 1)
    assert (against.perplexity_ratio.value, against.perplexity_ratio.error) == (1, 0)


def test_chunks_and_batches_change_nothing(plain, monkeypatch):
    whole = language({"a": plain}, WINDOWS)["a"]
    monkeypatch.setattr("drawplate.evaluate.language.CHUNK", 7)
    monkeypatch.setattr("drawplate.evaluate.language.BATCH_TOKENS", 48)
    parts = language({"a": plain}, WINDOWS)["a"]
    assert parts.loss.value == pytest.approx(whole.loss.value, rel=1e-6)


def test_one_window_has_no_error_and_progress_is_told(plain):
    seen = []
    report = language({"a": plain}, WINDOWS[:1], progress=lambda items, label: seen.append(label) or items)
    assert report["a"].perplexity.error is None
    assert seen == ["windows"]


def test_the_head_is_cut_off_and_gives_the_same_logits(plain):
    body, head = split_head(plain)
    ids, positions = WINDOWS[:2, :9], torch.arange(9).expand(2, 9)
    with torch.no_grad():
        hidden = body(ids, positions)
        assert hidden.shape == (2, 9, 16)
        assert torch.equal(head(hidden), plain.module()(ids, positions))
        torch.testing.assert_close(head(hidden[:, 3:5]), plain.module()(ids, positions)[:, 3:5])


def test_what_mixes_positions_behind_the_linear_is_not_cut():
    text = """// drawplate text 1
program odd(%input_ids: i64[b, s]) where 1 <= b <= 8, 1 <= s <= 64 {
  weight @w : f32[10, 4] = seed(0)
  %0 : f32[b, s, 4] = aten.embedding(@w, %input_ids)
  %1 : f32[b, s, 10] = aten.linear(%0, @w)
  %2 : f32[b, s, 10] = aten.cumsum(%1, 1)
  return %2
}"""
    program = parse_program(text)
    body, head = split_head(program)
    ids = WINDOWS[:2, :9] % 10
    assert torch.equal(head(body(ids)), program.module()(ids))
    assert body(ids).shape == (2, 9, 10)
    assert language({"a": program}, ids)["a"].tokens == 16


def test_what_cannot_be_measured_is_a_clear_error(plain, cached, last):
    with pytest.raises(EvaluationError) as caught:
        language({"tiny": cached}, torch.zeros(1, 65, dtype=torch.int64))
    assert str(caught.value) == (
        "windows of 65 tokens do not fit tiny\n"
        "  why:   its context is 64 tokens\n"
        "  do:    evaluate with windows of 64 tokens, for every model alike"
    )
    with pytest.raises(EvaluationError, match="no original 'b' among the models\n  why:   they are a"):
        language({"a": plain}, WINDOWS, original="b")
    with pytest.raises(EvaluationError, match="at least one of at least two tokens"):
        language({"a": plain}, WINDOWS[:, :1])
    text = """// drawplate text 1
program picture(%x: f32[1, 4]) {
  %0 : f32[1, 4] = aten.relu(%x)
  return %0
}"""
    with pytest.raises(EvaluationError, match="picture cannot be evaluated on text\n  why:   its first input 'x'"):
        language({"a": parse_program(text)}, WINDOWS)
