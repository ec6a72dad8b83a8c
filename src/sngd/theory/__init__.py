"""Theory you can run: lemmas, bounds and planners, in plain Python. The derivations are in `docs/theory.md`."""

from sngd.theory.bounds import (
    Bound,
    capped_bound,
    momentum_bound,
    sgd_bound,
    sngd_bound,
    spider_sfo_bound,
    spider_variance,
    stagewise_bound,
    stagewise_momentum_bound,
)
from sngd.theory.inexact import Inexact
from sngd.theory.lemmas import capped_lemma, lemma1, lemma2
from sngd.theory.planner import PLANNED, Plan, plan
from sngd.theory.smoothness import RelaxedSmooth, Smooth, Smoothness

__all__ = [
    "PLANNED",
    "Bound",
    "Inexact",
    "Plan",
    "RelaxedSmooth",
    "Smooth",
    "Smoothness",
    "capped_bound",
    "capped_lemma",
    "lemma1",
    "lemma2",
    "momentum_bound",
    "plan",
    "sgd_bound",
    "sngd_bound",
    "spider_sfo_bound",
    "spider_variance",
    "stagewise_bound",
    "stagewise_momentum_bound",
]
