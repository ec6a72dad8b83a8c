"""Simulated runs with known truth: each answer comes as often as its stated error rate and power say.

A case is simulated ``N`` or ``N_CLAIMS`` times, with fixed seeds. A count of answers whose true rate is p has the
binomial distribution. It must be a count that is not exceeded, or not left to either side, with a probability of more
than 1e-4 in all. So with other seeds a correct judge would fail one of these fewer than 100 comparisons with a
probability of at most 1 %.
"""

from math import sqrt
from statistics import stdev

import numpy as np
import pytest
from scipy.stats import binom

from sngd.paper.trained.comparing import LEVEL, compare_values
from sngd.paper.trained.judges import judge_large_batch
from sngd.paper.trained.variation import _deviation_ratio
from sngd.paper.verdicts import CONTRADICTED, OPEN, POWER, SHOWN, Verdict, above, noncentrality, reach_of_mean

N = 500
N_CLAIMS = 250
ERROR = (1 - LEVEL) / 2  # of an answer: 2.5 %
CHANCE = 1e-4
SEEDS = [3, 5, 8, 20]


def at_most(count, rate, n=N):
    return count <= binom.ppf(1 - CHANCE, n, rate)


def about(count, rate, n=N):
    return binom.ppf(CHANCE / 2, n, rate) <= count <= binom.ppf(1 - CHANCE / 2, n, rate)


def count_answers(seeds, effect, generator):
    """Of ``N`` comparisons of runs whose paired differences have mean ``effect`` and deviation 1."""
    ours = generator.normal(10, 3, (N, seeds))  # what runs with the same seed share
    theirs = ours + generator.normal(effect, 1, (N, seeds))
    answers = [compare_values("", list(a), list(b), LEVEL).answer for a, b in zip(ours, theirs, strict=True)]
    return {answer: answers.count(answer) for answer in (SHOWN, CONTRADICTED, OPEN)}


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_comparison_without_effect_is_shown_or_contradicted_at_the_error_rate(seeds):
    answers = count_answers(seeds, 0, np.random.default_rng(seeds))
    assert about(answers[SHOWN], ERROR)
    assert about(answers[CONTRADICTED], ERROR)
    assert about(answers[OPEN], LEVEL)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_least_effect_is_shown_and_its_opposite_contradicted_with_the_stated_power(seeds):
    effect = noncentrality(seeds - 1, LEVEL) / sqrt(seeds)
    generator = np.random.default_rng(seeds)
    answers = count_answers(seeds, effect, generator)
    assert about(answers[SHOWN], POWER)
    assert at_most(answers[CONTRADICTED], ERROR)
    answers = count_answers(seeds, -effect, generator)
    assert about(answers[CONTRADICTED], POWER)
    assert at_most(answers[SHOWN], ERROR)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_least_effect_is_stated_in_units_of_the_measured_spread(seeds):
    """Its mean over many runs is the true one, but for the bias of a deviation of few values: −11 % of three."""
    samples = np.random.default_rng(seeds).normal(0, 1, (N, seeds))
    true = noncentrality(seeds - 1, LEVEL) / sqrt(seeds)
    ratios = [reach_of_mean(list(sample), LEVEL) / true for sample in samples]
    assert ratios == pytest.approx([stdev(sample) for sample in samples.tolist()])
    assert 0.85 < sum(ratios) / N < 1.05


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
def test_a_ratio_of_deviations_has_its_error_rate_and_power(seeds):
    generator = np.random.default_rng(seeds)
    samples = generator.normal(0, 1, (2, N, seeds, 1)).tolist()
    pairs = list(zip(*samples, strict=True))
    least = _deviation_ratio(*pairs[0], LEVEL)[1]
    for truth, rates in ((1, (ERROR, ERROR)), (least, (POWER, 0)), (1 / least, (0, POWER))):
        answers = [
            above("", _deviation_ratio([[truth * y for y in seed] for seed in rough], smooth, LEVEL)[0], 1).answer
            for rough, smooth in pairs
        ]
        for answer, rate in zip((SHOWN, CONTRADICTED), rates, strict=True):
            holds = about(answers.count(answer), rate) if rate else at_most(answers.count(answer), ERROR)
            assert holds, (truth, answer)


# ---- a claim of several comparisons --------------------------------------------------------------------------


def large_batch(ours, theirs):
    """C6's measurements: final losses and errors of the two methods, (criterion, seed)."""
    seeds = len(ours[0])

    def arm(values):
        return {
            "seeds": list(range(seeds)), "diverged": [], "beyond": False,
            "final": {"train_loss": values[0].tolist(), "test_accuracy": (1 - values[1] / 100).tolist()},
        }  # fmt: skip

    tuning = {"grid": [0.1, 1.0], "chosen": {}, "outcomes": [], "at_edge": []}
    experiment = {
        "problem": "any", "batch_size": 1, "epochs": 1, "departures": [], "tuning": tuning,
        "arms": {"S-SGD": arm(theirs), "S-SNGD": arm(ours)},
    }  # fmt: skip
    return {"figure": "fig4", "profile": "small", "experiments": {"large-batch": experiment}}


def count_outcomes(seeds, effects, generator):
    ours = generator.normal(10, 3, (N_CLAIMS, 2, seeds))
    theirs = ours + np.array(effects)[:, None] + generator.normal(0, 1, (N_CLAIMS, 2, seeds))
    verdicts = [Verdict("C6", "", "", judge_large_batch(large_batch(*pair))) for pair in zip(ours, theirs, strict=True)]
    outcomes = [verdict.outcome for verdict in verdicts]
    return {outcome: outcomes.count(outcome) for outcome in (SHOWN, CONTRADICTED, OPEN)}


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_at_the_edge_of_truth_is_rarely_decided(seeds):
    """Both effects are 0: neither its being shown nor its being contradicted is more frequent than 2.5 %."""
    outcomes = count_outcomes(seeds, (0, 0), np.random.default_rng(seeds))
    assert at_most(outcomes[SHOWN], ERROR**2, N_CLAIMS)  # both of two independent comparisons
    assert about(outcomes[CONTRADICTED], 1 - (1 - ERROR / 2) ** 2, N_CLAIMS)  # one of them, each at half the rate


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_false_in_one_part_alone_is_shown_at_most_at_the_error_rate(seeds):
    """The intersection–union test at its worst: one effect is 0, and the other so large that it is always shown."""
    outcomes = count_outcomes(seeds, (0, 100), np.random.default_rng(seeds))
    assert about(outcomes[SHOWN], ERROR, N_CLAIMS)
    assert about(outcomes[CONTRADICTED], ERROR / 2, N_CLAIMS)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_with_large_effects_is_decided_as_they_are(seeds):
    generator = np.random.default_rng(seeds)
    far = 3 * noncentrality(seeds - 1, 1 - (1 - LEVEL) / 2) / sqrt(seeds)
    assert count_outcomes(seeds, (far, far), generator)[SHOWN] >= 0.97 * N_CLAIMS
    assert count_outcomes(seeds, (far, -far), generator)[CONTRADICTED] >= 0.97 * N_CLAIMS
