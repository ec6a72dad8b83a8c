"""Simulated runs with known truth: each answer comes as often as its stated error rate and power say.

The stated rates are the numbers below, 2.5 % for a wrong answer, and not what the judges make of their own level.

A case is simulated thousands of times, with fixed seeds. A count of answers whose true rate is p has the binomial
distribution. It must be a count that is not exceeded, or not left to either side, with a probability of more than 1e-6
in all. So with other seeds a correct judge would fail one of these about 150 comparisons with a probability of at most
2e-4. Of 5,000 simulations at most 182 may have a given wrong answer, 3.6 %: a judge at 5 % fails almost surely.

Where runs diverge, only the rate of being shown is tested. A winner that diverges contradicts its claim without a test.
A competitor's run that diverged counts as less bad than it is, so that its claim can be contradicted more often.
"""

from functools import partial
from math import sqrt
from statistics import stdev

import numpy as np
import pytest
from scipy.stats import binom

from sngd.diagnose.interval import mean_interval
from sngd.paper import verdicts
from sngd.paper.trained.comparing import compare_values, evidence_of
from sngd.paper.trained.judges import judge_large_batch
from sngd.paper.trained.variation import _deviation_ratio, judge_variation
from sngd.paper.verdicts import (
    CONTRADICTED,
    OPEN,
    SHOWN,
    Verdict,
    above,
    at_least,
    at_most,
    between,
    noncentrality,
    reach_of_mean,
    share_interval,
)

N = 5000
N_POWER = 1500
N_CLAIMS = 4000  # of two comparisons
N_DOZEN = 500
N_SLOW = 1000
LEVEL = 0.95  # as stated, of the claims judged from training runs
ERROR = 0.025  # of an answer, as stated
RARE = 0.0005  # of an answer at the closed-form claims' level, 99.9 %
POWER = 0.8  # as stated
CHANCE = 1e-6
SEEDS = [3, 5, 8, 20]
FIGURE = {"figure": "any", "profile": "small", "experiments": {}}


def rarely(count, rate, n=N):
    return count <= binom.ppf(1 - CHANCE, n, rate)


def about(count, rate, n=N):
    return binom.ppf(CHANCE / 2, n, rate) <= count <= binom.ppf(1 - CHANCE / 2, n, rate)


def count_of(answers):
    answers = list(answers)
    return {answer: answers.count(answer) for answer in (SHOWN, CONTRADICTED, OPEN)}


def outcome(evidence):
    return Verdict("C0", "", "", evidence).outcome


def decide(comparisons):
    """The outcome of a claim of these comparisons, at the judges' own level."""
    return outcome(evidence_of([FIGURE], comparisons))


def simulate(seeds, effect, generator, n, ratio=False):
    """``n`` pairs of runs whose paired differences, or log ratios, have mean ``effect`` and deviation 1."""
    ours = generator.normal(10, 3, (n, seeds))  # what runs with the same seed share
    theirs = ours + generator.normal(effect, 1, (n, seeds))
    if ratio:
        ours, theirs = np.exp(ours - 10), np.exp(theirs - 10)
    return zip(ours.tolist(), theirs.tolist(), strict=True)


def count_answers(seeds, effect, generator, n=N, ratio=False):
    pairs = simulate(seeds, effect, generator, n, ratio)
    return count_of(decide([partial(compare_values, "", a, b, ratio=ratio)]) for a, b in pairs)


# ---- a single comparison -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("seeds", SEEDS)
def test_a_comparison_without_effect_is_shown_or_contradicted_at_the_error_rate(seeds, ratio):
    answers = count_answers(seeds, 0, np.random.default_rng(seeds), ratio=ratio)
    assert about(answers[SHOWN], ERROR)
    assert about(answers[CONTRADICTED], ERROR)
    assert about(answers[OPEN], LEVEL)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_least_effect_is_shown_and_its_opposite_contradicted_with_the_stated_power(seeds):
    effect = noncentrality(seeds - 1, LEVEL) / sqrt(seeds)
    generator = np.random.default_rng(seeds)
    answers = count_answers(seeds, effect, generator, N_POWER)
    assert about(answers[SHOWN], POWER, N_POWER)
    assert rarely(answers[CONTRADICTED], ERROR, N_POWER)
    answers = count_answers(seeds, -effect, generator, N_POWER)
    assert about(answers[CONTRADICTED], POWER, N_POWER)
    assert rarely(answers[SHOWN], ERROR, N_POWER)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_least_effect_is_stated_in_units_of_the_measured_spread(seeds):
    """Its mean over many runs is the true one, but for the bias of a deviation of few values: −11 % of three."""
    samples = np.random.default_rng(seeds).normal(0, 1, (N_POWER, seeds))
    true = noncentrality(seeds - 1, LEVEL) / sqrt(seeds)
    ratios = [reach_of_mean(list(sample), LEVEL) / true for sample in samples]
    assert ratios == pytest.approx([stdev(sample) for sample in samples.tolist()])
    assert 0.85 < sum(ratios) / N_POWER < 1.05


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("seeds", SEEDS)
def test_a_comparison_of_equals_that_diverge_equally_often_is_shown_at_most_at_the_error_rate(seeds, share):
    generator = np.random.default_rng(seeds)

    def diverge(values):
        return [None if hit else value for value, hit in zip(values, generator.random(seeds) < share, strict=True)]

    pairs = [(diverge(a), diverge(b)) for a, b in simulate(seeds, 0, generator, N_CLAIMS)]
    answers = count_of(decide([partial(compare_values, "", a, b)]) for a, b in pairs)
    assert rarely(answers[SHOWN], ERROR, N_CLAIMS)


def count_deviations(seeds, truth, generator, n):
    """Of ``n`` ratios of deviations across seeds, ``truth`` in fact, at a single evaluation."""
    rough, smooth = generator.normal(0, 1, (2, n, seeds, 1))
    pairs = zip((truth * rough).tolist(), smooth.tolist(), strict=True)

    def compared(ours, theirs, level):
        return above("", _deviation_ratio(theirs, ours, level)[0], 1, essential=True)

    return count_of(decide([partial(compared, ours, theirs)]) for theirs, ours in pairs)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_ratio_of_equal_deviations_is_shown_or_contradicted_at_the_error_rate(seeds):
    answers = count_deviations(seeds, 1, np.random.default_rng(seeds), N)
    assert about(answers[SHOWN], ERROR)
    assert about(answers[CONTRADICTED], ERROR)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
def test_the_least_ratio_of_deviations_is_shown_and_its_inverse_contradicted_with_the_stated_power(seeds):
    generator = np.random.default_rng(seeds)
    any_curves = generator.normal(0, 1, (seeds, 1)).tolist()
    _, least = _deviation_ratio(any_curves, any_curves, LEVEL)
    answers = count_deviations(seeds, least, generator, N_POWER)
    assert about(answers[SHOWN], POWER, N_POWER)
    assert rarely(answers[CONTRADICTED], ERROR, N_POWER)
    answers = count_deviations(seeds, 1 / least, generator, N_POWER)
    assert about(answers[CONTRADICTED], POWER, N_POWER)
    assert rarely(answers[SHOWN], ERROR, N_POWER)


# ---- the closed-form claims' requirements --------------------------------------------------------------------


REQUIREMENTS = {
    "above": lambda measured: above("", measured, 0),
    "at least": lambda measured: at_least("", measured, 0),
    "at most": lambda measured: at_most("", measured, 0),
    "between, at its lower end": lambda measured: between("", measured, 0, 1e6),
    "between, at its upper end": lambda measured: between("", measured, -1e6, 0),
}


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_mean_at_the_limit_of_a_closed_form_requirement_is_rarely_decided(seeds):
    samples = np.random.default_rng(seeds).normal(0, 1, (N, seeds)).tolist()
    measured = [mean_interval(sample, verdicts.LEVEL) for sample in samples]
    for name, required in REQUIREMENTS.items():
        answers = count_of(required(interval).answer for interval in measured)
        assert about(answers[SHOWN], RARE), name
        assert about(answers[CONTRADICTED], RARE), name


@pytest.mark.parametrize("required", [above, at_least])
@pytest.mark.parametrize("limit", [0.5, 0.9])
@pytest.mark.parametrize("n", [5, 20, 40, 200])
def test_a_share_at_its_limit_is_decided_at_most_at_the_error_rate(n, limit, required):
    """Exactly, from the probability of every count. As counts are whole, the rates are less than stated, but not much
    less if there are many."""
    rates = {SHOWN: 0.0, CONTRADICTED: 0.0, OPEN: 0.0}
    for hits in range(n + 1):
        rates[required("", share_interval(hits, n), limit).answer] += binom.pmf(hits, n, limit)
    least = RARE / 3 if n == 200 else 0
    assert least <= rates[SHOWN] <= RARE
    assert least <= rates[CONTRADICTED] <= RARE


# ---- a claim of two comparisons ------------------------------------------------------------------------------


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


def count_outcomes(seeds, effects, generator, n=N_CLAIMS):
    ours = generator.normal(10, 3, (n, 2, seeds))
    theirs = ours + np.array(effects)[:, None] + generator.normal(0, 1, (n, 2, seeds))
    return count_of(outcome(judge_large_batch(large_batch(*pair))) for pair in zip(ours, theirs, strict=True))


def among(k):
    """How often one of ``k`` independent comparisons without effect contradicts the claim; just below ``ERROR``."""
    return 1 - (1 - ERROR / k) ** k


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_at_the_edge_of_truth_is_rarely_decided(seeds):
    """Both effects are 0: neither its being shown nor its being contradicted is more frequent than 2.5 %."""
    outcomes = count_outcomes(seeds, (0, 0), np.random.default_rng(seeds))
    assert rarely(outcomes[SHOWN], ERROR**2, N_CLAIMS)  # both of two independent comparisons
    assert about(outcomes[CONTRADICTED], among(2), N_CLAIMS)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_false_in_one_part_alone_is_shown_at_most_at_the_error_rate(seeds):
    """The intersection–union test at its worst: one effect is 0, and the other so large that it is always shown."""
    outcomes = count_outcomes(seeds, (0, 100), np.random.default_rng(seeds), N_POWER)
    assert about(outcomes[SHOWN], ERROR, N_POWER)
    assert about(outcomes[CONTRADICTED], ERROR / 2, N_POWER)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_with_large_effects_is_decided_as_they_are(seeds):
    generator = np.random.default_rng(seeds)
    far, n = 3 * noncentrality(seeds - 1, 1 - (1 - LEVEL) / 2) / sqrt(seeds), 250
    assert count_outcomes(seeds, (far, far), generator, n)[SHOWN] >= 0.97 * n
    assert count_outcomes(seeds, (far, -far), generator, n)[CONTRADICTED] >= 0.97 * n


# ---- a claim of a dozen comparisons --------------------------------------------------------------------------

DOZEN = 12


def count_dozens(seeds, effects, generator, n):
    """Of ``n`` claims of ``DOZEN`` comparisons, every other one of a ratio."""
    ratios = [k % 2 == 1 for k in range(DOZEN)]
    columns = [simulate(seeds, effect, generator, n, ratio) for effect, ratio in zip(effects, ratios, strict=True)]
    return count_of(
        decide([partial(compare_values, "", a, b, ratio=ratio) for (a, b), ratio in zip(claim, ratios, strict=True)])
        for claim in zip(*columns, strict=True)
    )


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_of_a_dozen_comparisons_without_effect_is_contradicted_at_most_at_the_error_rate(seeds):
    """If each had an interval of 95 %, it would be contradicted with 26 %."""
    outcomes = count_dozens(seeds, DOZEN * [0], np.random.default_rng(seeds), N_DOZEN)
    assert outcomes[SHOWN] == 0
    assert about(outcomes[CONTRADICTED], among(DOZEN), N_DOZEN)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_of_a_dozen_comparisons_false_in_one_alone_is_shown_at_the_error_rate(seeds):
    outcomes = count_dozens(seeds, [0, *(DOZEN - 1) * [100]], np.random.default_rng(seeds), N_SLOW)
    assert about(outcomes[SHOWN], ERROR, N_SLOW)
    assert about(outcomes[CONTRADICTED], ERROR / DOZEN, N_SLOW)


def test_the_stated_rate_and_levels_are_these():
    comparison = partial(compare_values, "", [1.0, 2.0, 3.0], [1.5, 2.0, 4.0])
    evidence = evidence_of([FIGURE], DOZEN * [comparison])
    assert evidence.error_rate == ERROR
    assert "95 % intervals. The claim is shown wrongly with at most 2.5 %" in evidence.test
    assert "one of 12 comparisons must lie on the other side with an interval of 99.58 %" in evidence.test
    assert verdicts.LEVEL == 1 - 2 * RARE
    assert verdicts.POWER == POWER


# ---- C3, of how much curves vary -----------------------------------------------------------------------------


def variation(generator, seeds):
    """C3's measurements: two methods alike, whose curves are level but for noise; their height depends on the seed.

    The noise is so much less that a deviation across seeds is about the heights', the same at each evaluation, as
    Fisher's F assumes.
    """
    costs = [float(cost) for cost in range(10, 31)]

    def curves():
        heights = generator.normal(0, 1, (seeds, 1))
        return (0.5 + 0.01 * (heights + generator.normal(0, 0.01, (seeds, len(costs))))).tolist()

    def arm():
        return {
            "seeds": list(range(seeds)), "diverged": [], "final": {},
            "curves": {"grads_over_n": costs, "train_loss": curves(), "test_accuracy": curves()},
        }  # fmt: skip

    arms = {f"{method}, α=0.5": arm() for method in ("SNGD", "SPIDER-SFO")}
    return {**FIGURE, "experiments": {"any": {"departures": [], "arms": arms}}}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 8])
def test_curves_that_vary_alike_contradict_c3_at_most_at_the_error_rate(seeds):
    """Of four comparisons; if each had an interval of 95 %, it would be contradicted with 10 %."""
    generator = np.random.default_rng(seeds)
    evidence = [judge_variation(variation(generator, seeds), FIGURE) for _ in range(N_SLOW)]
    assert sum(quantity.essential for quantity in evidence[0].quantities) == 4
    outcomes = count_of(map(outcome, evidence))
    assert rarely(outcomes[SHOWN], ERROR, N_SLOW)
    assert about(outcomes[CONTRADICTED], among(4), N_SLOW)
