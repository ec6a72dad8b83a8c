"""Student's quantile is scipy's, and the interval of a mean covers it as often as it says."""

import random
from math import inf, isnan, nan

import numpy as np
import pytest
from scipy.stats import sem, t

from sngd.diagnose.interval import mean_interval, mean_margin, student_t


@pytest.mark.parametrize("level", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("dof", [1, 2, 3, 4, 9, 10, 99, 4000])
def test_student_quantiles(dof, level):
    assert student_t(dof, level) == pytest.approx(t.ppf((1 + level) / 2, dof), rel=1e-10)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_the_interval_of_a_mean_is_scipys(level):
    values = [1.0, 4.0, -2.0, 7.5]
    low, high = t.interval(level, 3, np.mean(values), sem(values))
    assert mean_interval(values, level) == pytest.approx((2.625, low, high))


@pytest.mark.slow
def test_the_mean_interval_covers_the_mean_as_often_as_it_says():
    rng = random.Random(0)
    missed = 0
    for _ in range(30_000):
        _, low, high = mean_interval([rng.gauss(3, 2) for _ in range(4)], 0.999)
        missed += not low <= 3 <= high
    assert 15 <= missed <= 45  # 30 expected, standard deviation 5.5


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_value_that_is_not_finite_leaves_the_margin_unknown(bad):
    assert isnan(mean_margin([1.0, bad, 2.0]))
