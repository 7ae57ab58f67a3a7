"""What verification accepts and refuses, and which program it compares with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flowkit import Plain
from passkit import CAUSAL, TIED

from drawplate.errors import BackendError
from drawplate.facts import HEAD_LAST_POSITION
from drawplate.parity import Distance, Parity
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.pack_weights import PackWeights
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.program import Program
from drawplate.runner import Timing
from drawplate.sources.source import Assets
from drawplate.text import parse_program
from drawplate.verifying import Verified, WholeText, _judge, summary, verify

NOISE = Distance(200, 0.05, 0.3, 1.0, 0.02, 0.2, 0.93, ())
EXACT = Distance(200, 1e-6, 2e-6, 1e-4, 1e-12, 1e-11, 1.0, ())
TOOK = Timing("any", 0.0, 0.0, 0)


def parity(stepwise: Distance, prefill: Distance, floor: Distance | None) -> Parity:
    return Parity(stepwise, prefill, floor, prompts=5, new_tokens=16, equal=0, differences=())


@pytest.mark.parametrize("same", [NOISE, EXACT])
def test_the_schemes_own_noise_is_accepted(same: Distance) -> None:
    _judge(parity(same, same, same), Path("out"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"relative_median": 0.9}, "token by token, logits differ by 0.9 (median); rounding explains 0.6"),
        ({"kl_mean": 4.59}, "token by token, the KL is 4.59 nats; rounding explains 0.1"),
        ({"agreement": 0.493}, "51% of top tokens are others; rounding explains 40%"),
        ({"relative_median": float("nan")}, "token by token, logits differ by nan (median)"),
    ],
)
def test_each_figure_is_bounded(changes: dict[str, float], why: str) -> None:
    with pytest.raises(BackendError, match="the artifact does not compute what its program does") as error:
        _judge(parity(replace(NOISE, **changes), NOISE, NOISE), Path("out"))
    assert why in str(error.value)


def test_without_rounding_the_bound_is_tight() -> None:
    with pytest.raises(BackendError, match=r"rounding explains 0\.0001"):
        _judge(parity(replace(EXACT, relative_median=1e-3), EXACT, EXACT), Path("out"))


def test_the_summary_has_three_digits() -> None:
    found = summary(parity(replace(NOISE, relative_median=0.0123456), NOISE, None))
    assert found["stepwise"]["relative_median"] == 0.0123
    assert found["equal"] == 0
    assert "floor" not in found


def cached(context: int) -> Program:
    return AddKvCache(context).run(parse_program(CAUSAL), Env())


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (parse_program(TIED), "the program has no cache, so nothing can be generated to compare"),
        (replace(cached(8), dims=()), "the program's length is fixed, so it takes no prompt and then its answer"),
        (cached(1), "a context of one token has no room for a prompt and an answer"),
        (
            cached(8),
            "an artifact of backend 'plain' does not run on this machine: the backend brings no runtime for this host",
        ),
    ],
)
def test_what_cannot_be_verified_has_a_reason(
    program: Program, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the process that opens it imports the backend
    found = verify(None, program, Plain(), tmp_path, Assets())
    assert found == Verified(why_not=why)
    assert found.notes == (f"not verified: {why}",)
    assert Verified().notes == ()


def test_the_last_whole_text_is_kept_until_a_pass_changes_what_is_computed() -> None:
    plain = parse_program(TIED)
    cached = replace(plain, facts=frozenset({HEAD_LAST_POSITION.name}))
    whole = WholeText()
    whole.before(QuantizeWeights(), plain)
    whole.after(QuantizeWeights(), plain, TOOK)
    whole.before(AddKvCache(), plain)
    whole.after(AddKvCache(), cached, TOOK)
    assert whole.program is plain
    whole.before(PackWeights(), cached)
    assert whole.program is plain
    whole.before(QuantizeWeights(), cached)
    assert whole.program is None
    assert torch.is_tensor(next(iter(plain.weights.values())))
