"""Theory you can run: lemmas, bounds and planners, in plain Python. The derivations are in `docs/theory.md`."""

from sngd.theory.bounds import Bound, sgd_bound, sngd_bound, spider_sfo_bound, spider_variance, stagewise_bound
from sngd.theory.lemmas import lemma1, lemma2
from sngd.theory.planner import PLANNED, Plan, plan
from sngd.theory.smoothness import RelaxedSmooth, Smooth, Smoothness

__all__ = [
    "PLANNED",
    "Bound",
    "Plan",
    "RelaxedSmooth",
    "Smooth",
    "Smoothness",
    "lemma1",
    "lemma2",
    "plan",
    "sgd_bound",
    "sngd_bound",
    "spider_sfo_bound",
    "spider_variance",
    "stagewise_bound",
]
