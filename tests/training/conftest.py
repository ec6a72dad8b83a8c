"""The small problems as fixtures."""

import pytest
from small_problems import plain_problem, tiny_problem


@pytest.fixture
def tiny():
    return tiny_problem


@pytest.fixture
def plain():
    return plain_problem
