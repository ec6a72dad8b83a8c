"""Student's quantile is scipy's."""

import pytest
from scipy.stats import t

from sngd.diagnose.interval import student_t


@pytest.mark.parametrize("level", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("dof", [1, 2, 3, 4, 9, 10, 99, 4000])
def test_student_quantiles(dof, level):
    assert student_t(dof, level) == pytest.approx(t.ppf((1 + level) / 2, dof), rel=1e-10)
