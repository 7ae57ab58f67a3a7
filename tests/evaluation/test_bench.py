"""Speed and memory, measured in processes of their own."""

import json
import math

import pytest

from drawplate.bench import Spread, bench
from drawplate.errors import EvaluationError


def test_two_artifacts_in_turn(subject, texts):
    one, two = subject(texts(), "one"), subject(texts(last=True), "two")
    seen = []
    report = bench(
        [one, two],
        threads=1,
        rounds=2,
        prompt=20,
        new_tokens=6,
        repeats=2,
        progress=lambda items, label: seen.append((label, len(items))) or items,
    )
    assert seen == [("rounds", 6)]  # the machine and both artifacts, twice
    assert [row.name for row in report.rows] == ["one", "two"]
    for row in report.rows:
        for spread in (row.load_seconds, row.first_seconds, row.prefill_rate, row.decode_rate, row.cpu_per_token):
            assert len(spread.values) == 2
            assert spread.low <= spread.median <= spread.high
            assert spread.median > 0
        assert row.peak_bytes.median > report.baseline_bytes > 50e6
        assert row.net_peak_bytes.median == pytest.approx(row.peak_bytes.median - report.baseline_bytes)
    assert report.row("one").file_bytes == one.bytes
    assert report.ratio("one", "one", "decode_rate").median == 1
    ratio = report.ratio("two", "one", "prefill_rate").values[1]
    assert ratio == report.row("two").prefill_rate.values[1] / report.row("one").prefill_rate.values[1]
    assert 1e8 < report.read_rate.median < 1e12
    share = report.bandwidth_share("one", 1000).median
    assert 0 < share < 1
    assert json.loads(json.dumps(report.as_json()))["rows"][1]["name"] == "two"
    with pytest.raises(EvaluationError, match=r"no artifact 'three' in this run\n  why:   there are \['one', 'two'\]"):
        report.row("three")


def test_spread_is_the_median_with_its_quartiles():
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.median, spread.low, spread.high) == (3, 2, 4)
    assert str(spread) == "3 [2, 4]"
    assert math.isclose(Spread.of([2.0]).high, 2.0)


def test_what_cannot_be_measured_is_a_clear_error(subject, texts):
    tiny = subject(texts(context=16))
    with pytest.raises(EvaluationError) as caught:
        bench([tiny], threads=1, rounds=1, prompt=12, new_tokens=8)
    assert str(caught.value) == (
        "12 + 8 tokens do not fit\n"
        f"  where: {tiny.folder}\n"
        "  why:   its context is 16 tokens\n"
        "  do:    measure a shorter prompt or fewer new tokens"
    )
    with pytest.raises(EvaluationError, match="artifacts are told apart by name"):
        bench([tiny, tiny], threads=1)
    broken = subject(texts(), "broken", opener="fail")
    with pytest.raises(EvaluationError, match=r"no such kernel: drawplate\.unknown"):
        bench([broken], threads=1, rounds=1)
