"""Standard errors and tests, against scipy or simulation."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate.evaluate.statistics import Estimate, exponential, mcnemar, mean, paired, quantile


def test_the_standard_error_covers_the_truth_about_two_times_in_three():
    rng = random.Random(0)
    inside = 0
    for _ in range(2000):
        e = mean([rng.gauss(5, 2) for _ in range(20)])
        inside += abs(e.value - 5) < e.error
    assert 0.62 < inside / 2000 < 0.70


def test_a_single_observation_has_no_error():
    assert mean([3.0]) == Estimate(3.0, None, 1)
    assert str(mean([3.0])) == "3"
    assert exponential(Estimate(0.0, 0.1, 9)) == Estimate(1.0, 0.1, 9)
    assert str(Estimate(28.3812, 0.4149, 16)) == "28.38 ± 0.41"
    assert math.isinf(exponential(Estimate(1e4, 1.0, 2)).value)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_paired_is_antisymmetric_and_counts_discordant_items(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one, two = paired(a, b), paired(b, a)
    assert one.difference.value == -two.difference.value
    assert (one.gained, one.lost, one.p) == (two.lost, two.gained, two.p)
    assert one.difference.value == pytest.approx((one.gained - one.lost) / len(pairs))
    assert 0 < one.p <= 1


@settings(deadline=None)  # scipy is imported within
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    stats = pytest.importorskip("scipy.stats")
    wanted = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(wanted)


@settings(deadline=None)  # numpy is imported within
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_numpys(values, q):
    import numpy

    assert quantile(values, q) == pytest.approx(float(numpy.quantile(values, q)), abs=1e-6)
