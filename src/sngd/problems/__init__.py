"""Problems to train: a model, a loss and a data set, by name or from a user's own file."""

from sngd.problems.problem import DataError, Problem
from sngd.problems.registry import PROBLEMS, load_problem

__all__ = ["PROBLEMS", "DataError", "Problem", "load_problem"]
