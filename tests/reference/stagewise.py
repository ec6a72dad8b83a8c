"""Algorithm 2 of Zhao, Xie, Li (2021), S-SNGD, word for word: every iterate is kept, and the output drawn twice."""

import math
import random
from collections.abc import Callable, Sequence

Vector = list[float]


def s_sngd(
    gradient: Callable[[Vector], Vector], w: Vector, stages: Sequence[tuple[float, int, float]], rng: random.Random
) -> tuple[Vector, Vector]:
    """(last iterate, drawn iterate) after stages (α_t, M_t, p_{t+1}) from w; no gradient may be zero."""
    drawn = []
    for alpha, steps, _ in stages:
        iterates = []
        for _ in range(steps):
            iterates.append(w)
            g = gradient(w)
            norm = math.sqrt(sum(x * x for x in g))
            w = [x - alpha * y / norm for x, y in zip(w, g, strict=True)]
        drawn.append(rng.choice(iterates))
    return w, rng.choices(drawn, weights=[p for _, _, p in stages])[0]
