"""The map of claim C8: its runs are the optimizers', its counts those that are known; and its judge."""

import copy
import json
import math
from itertools import islice

import pytest
import torch

from sngd.paper.closed_form import escape, escape_map
from sngd.paper.closed_form.escape_map import (
    METHODS,
    PAIRS,
    ROWS,
    Place,
    Row,
    best_rate,
    draw_map,
    judge_map,
    measure_map,
    places,
    steps_to_leave,
    walk,
)
from sngd.paper.verdicts import CONTRADICTED, OPEN, SHOWN, Evidence, Verdict, share_interval
from sngd.problems.analytic import sharp_and_flat, strict_saddle

DOUBLE = torch.float64


# ---- runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saddle", "sharp"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_the_map_is_the_optimizers(name, method):
    """With one start and one rate the samples and the noise are the same too."""
    place, seed, lr = places(3)[name], 3, 0.2
    start = place.draw_start(torch.Generator().manual_seed(5))
    ours = walk(place, Row(method), [lr], start[None], seed)
    stochastic = method in ("SGD", "SNGD")
    problem = place.noisy if stochastic else place.exact
    theirs = escape._walk(problem, escape.MethodAtRate(method, lr), start, seed, int(stochastic))
    for a, b in islice(zip(ours, theirs, strict=False), 30):
        torch.testing.assert_close(a[0, 0], b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", ROWS, ids=[row.label for row in ROWS])
def test_runs_of_other_rates_do_not_touch_each_other(row):
    place = places(3)["tensor"]
    starts = torch.stack([place.draw_start(torch.Generator().manual_seed(seed)) for seed in range(3)])
    together = list(islice(walk(place, row, [0.01, 0.1, 1.0], starts, 0), 12))[-1]
    alone = list(islice(walk(place, row, [0.1], starts, 0), 12))[-1]
    torch.testing.assert_close(together[1], alone[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("name", ["saddle", "manifold", "sharp"])
def test_first_steps_of_equal_length_are_of_equal_length(name, ours, theirs, monkeypatch):
    monkeypatch.setattr(escape_map, "NOISE", 0.0)  # a perturbation is no part of the step
    place = places(3)[name]
    starts = torch.stack([place.draw_start(torch.Generator().manual_seed(seed)) for seed in range(4)])
    for row in (Row(ours), Row(theirs, ours)):
        first, second = islice(walk(place, row, [0.03, 0.5], starts, 0), 2)
        lengths = (second - first).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.tensor([[0.03] * 4, [0.5] * 4], dtype=DOUBLE))


def test_starts_lie_where_the_docstring_says():
    at, draws = places(3), torch.Generator().manual_seed(0)
    near = torch.stack([at["saddle"].draw_start(draws) for _ in range(200)]).norm(dim=1).log10()
    assert -12 <= near.min() < -11
    assert -2 < near.max() <= -1
    beside = torch.stack([at["manifold"].draw_start(draws) for _ in range(50)])
    torch.testing.assert_close(beside[:, 1:].norm(dim=1), torch.full((50,), 0.9, dtype=DOUBLE))
    assert 0 < beside[:, 0].min() < beside[:, 0].max() <= 0.1
    hole = torch.stack([at["sharp"].draw_start(draws) for _ in range(200)]) - torch.tensor(escape_map.SHARP)
    assert 0.1 < hole.norm(dim=1).max() <= 0.15


# ---- counts that are known -----------------------------------------------------------------------------------


def counts(place, row, rates, starts=5):
    return (steps_to_leave(place, row, rates, starts, 0) >= 0).sum(dim=1).tolist()


def test_gradient_descent_leaves_a_quadratics_minimum_exactly_where_it_is_unstable():
    """F = ½ w²: |1 − lr| > 1 grows, and no run that ends beyond 1 has been back. NGD ends within lr of 0."""
    bowl = _quadratic(1.0)
    assert counts(bowl, Row("GD"), [0.5, 1.0, 1.9, 2.1, 3.0]) == [0, 0, 0, 5, 5]
    assert counts(bowl, Row("NGD"), [0.1, 0.9]) == [0, 0]


def _quadratic(curvature):
    """Of one weight, about a stationary point that is left beyond 1; L cos w has the saddles' curvature at 0."""
    problem = _Quadratic(curvature)
    return Place(problem, problem, 1, lambda _: torch.tensor([0.01], dtype=DOUBLE), lambda w: w.norm(dim=-1) > 1, 200)


class _Quadratic:
    """½ λ w² as the problem that the map reads: a model with the weight ``w``, and one sample."""

    def __init__(self, curvature):
        self.curvature, self.n, self.train = curvature, 1, (torch.zeros(1, 1, dtype=DOUBLE), torch.zeros(1))

    def build_model(self):
        return _HalfSquare(self.curvature)


class _HalfSquare(torch.nn.Module):
    def __init__(self, curvature):
        super().__init__()
        self.curvature, self.w = curvature, torch.nn.Parameter(torch.zeros(1, dtype=DOUBLE))

    def forward(self, _samples):
        return 0.5 * self.curvature * self.w.square()


@pytest.mark.parametrize("lr", [0.05, 0.1, 0.3])
def test_steps_out_of_a_quadratic_saddle_are_the_closed_forms(lr):
    """F = −½ w² from 0.01: GD's w_t = 0.01 (1 + lr)^t; NGD's w_t = 0.01 + lr t."""
    gd, ngd = (int(steps_to_leave(_quadratic(-1.0), Row(m), [lr], 1, 0)) for m in ("GD", "NGD"))
    assert gd == math.ceil(math.log(100) / math.log1p(lr))
    assert ngd == math.ceil(0.99 / lr)


@pytest.mark.slow
def test_nothing_leaves_from_exactly_a_saddle_without_noise():
    saddle = places(3)["saddle"]._replace(draw_start=lambda _: torch.zeros(escape_map.DIM, dtype=DOUBLE))
    for method in ("GD", "NGD"):
        assert counts(saddle, Row(method), [0.1, 1.0]) == [0, 0]
    for method in ("SGD", "SNGD", "Noisy-GD", "Saddle-NGD"):
        assert sum(counts(saddle, Row(method), [0.3, 1.0])) > 0


def test_a_run_that_diverges_has_not_left_a_saddle():
    assert counts(places(3)["saddle"], Row("GD"), [3.0, 30.0]) == [0, 0]


def test_a_run_that_comes_back_has_not_left():
    """Steps of length 3 along the axis go from 0.5 to −2.5 and back; only the last counts."""
    place = _quadratic(1.0)._replace(draw_start=lambda _: torch.tensor([0.5], dtype=DOUBLE))
    for limit, expected in ((3, 3), (4, -1)):
        assert int(steps_to_leave(place._replace(limit=limit), Row("NGD"), [3.0], 1, 0)) == expected


def test_in_the_hole_the_length_of_the_step_decides_for_ngd_and_the_curvature_for_gd():
    """The issue that led to the map: at 0.1, 0.3 and 0.5 NGD stays; GD leaves from lr 5 on, though L there is 1."""
    sharp = places(3)["sharp"]
    assert counts(sharp, Row("NGD"), [0.1, 0.3, 0.5]) == [0, 0, 0]
    assert counts(sharp, Row("SNGD"), [0.1, 0.3]) == [0, 0]
    assert counts(sharp, Row("GD"), [0.1, 1.0, 5.0, 10.0]) == [0, 0, 5, 5]


def test_the_map_s_noise_is_on_the_same_objective():
    for name, exact in (("saddle", strict_saddle(10, sigma=0.0, n=1)), ("sharp", sharp_and_flat(sigma=0.0, n=1))):
        w = torch.randn(len(places(3)[name].draw_start(torch.Generator())), dtype=DOUBLE)
        value = escape_map.value_of(exact.problem)(w.float()).double()
        torch.testing.assert_close(escape_map.value_of(places(3)[name].noisy)(w), value, rtol=1e-4, atol=1e-5)


# ---- the rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuning", "best"),
    [
        ([(3, 9.0), (5, 8.0), (4, 1.0)], 0.1),  # most starts
        ([(5, 9.0), (5, 8.0), (5, 8.5)], 0.1),  # then fewest steps
        ([(5, 8.0), (5, 8.0), (0, 61.0)], 0.01),  # then the smallest rate
        ([(0, 61.0), (0, 61.0), (0, 61.0)], 0.01),
    ],
)
def test_the_best_rate_leaves_most_starts_then_takes_fewest_steps(tuning, best):
    assert best_rate(tuning, [0.01, 0.1, 1.0]) == best


SMALL = {"starts": 4, "tuning_starts": 3, "components": 3, "rates": (0.1, 1.0, 10.0)}


@pytest.fixture(scope="module")
def short():
    """Runs of 20 steps at most: what is measured is not the point here."""
    with pytest.MonkeyPatch.context() as patch:
        shortened = {name: place._replace(limit=20) for name, place in places(3).items()}
        patch.setattr(escape_map, "places", lambda _components: shortened)
        yield


@pytest.fixture(scope="module")
def measured(short):  # noqa: ARG001
    return measure_map(**SMALL)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_map_is_the_same_again_and_json(measured):
    assert measure_map(**SMALL) == measured
    json.dumps(measured, allow_nan=False)


@pytest.mark.slow
def test_the_compared_rate_is_the_tuned_one_and_its_steps_are_those_of_the_map(measured):
    for found in measured["places"].values():
        for row in ROWS:
            tuned = found["tuning"][row.as_long_as or row.method]
            assert found["lr"][row.label] == best_rate(tuned, measured["rates"])
            left = found["left"][row.label][measured["rates"].index(found["lr"][row.label])]
            assert sum(t is not None for t in found["steps"][row.label]) == left


@pytest.mark.slow
def test_the_map_is_drawn(measured, tmp_path):
    pictures = draw_map(measured, tmp_path / "map", "invented")
    assert [path.name for path in pictures] == ["map.png", "map.svg"]
    assert pictures[0].stat().st_size > 10_000
    before = [path.read_bytes() for path in pictures]
    assert [path.read_bytes() for path in draw_map(measured, tmp_path / "map", "invented")] == before


# ---- the judge, on invented maps -----------------------------------------------------------------------------


@pytest.fixture
def invented():
    """Each normalized method leaves every start at step 5, each other at step 9."""
    normalized = {ours for ours, _ in PAIRS}
    place = {
        "limit": 60,
        "tuning": {method: [(3, 7.0)] * 2 for method in METHODS},
        "left": {row.label: [20, 20] for row in ROWS},
        "lr": {row.label: 0.1 for row in ROWS},
        "steps": {row.label: [5 if row.method in normalized else 9] * 20 for row in ROWS},
    }
    named = {name: copy.deepcopy(place) for name in ("saddle", "manifold", "sharp", "tensor")}
    return {"starts": 20, "tuning_starts": 3, "rates": [0.1, 1.0], "places": named}


def outcome(measured):
    return Verdict("C8", "", "", Evidence("", tuple(judge_map(measured)), "", 0.0)).outcome


def quantity(measured, start):
    return next(q for q in judge_map(measured) if q.name.startswith(start))


def test_normalized_methods_that_leave_first_everywhere_reproduce_the_claim(invented):
    assert outcome(invented) == SHOWN
    required = [q for q in judge_map(invented) if q.answer is not None]
    assert len(required) == 4 * len(PAIRS)
    assert [q.name.split(":")[0] for q in required if q.essential] == ["saddle", "sharp"]
    assert all("SNGD" in q.name for q in required if q.essential)
    assert (required[0].value, required[0].low, required[0].high) == share_interval(20, 20)
    told = "saddle: share that NGD (lr 0.1: 20 of 20 in 5 steps) leaves before GD (lr 0.1: 20 of 20 in 9 steps)"
    assert required[0].name == told


@pytest.mark.parametrize("name", ["saddle", "sharp"])
def test_sgd_that_leaves_first_in_an_essential_place_refutes_it(invented, name):
    invented["places"][name]["steps"]["SGD"] = [1] * 20
    assert outcome(invented) == CONTRADICTED
    found = quantity(invented, f"{name}: share that SNGD")
    assert found.high < 0.5  # the interval lies on the other side


@pytest.mark.parametrize(("name", "theirs"), [("tensor", "SGD"), ("manifold", "SGD"), ("sharp", "GD")])
def test_elsewhere_and_of_the_other_pairs_it_is_a_part(invented, name, theirs):
    invented["places"][name]["steps"][theirs] = [1] * 20
    assert outcome(invented) == OPEN


def test_a_difference_that_chance_could_make_is_not_shown_either_way(invented):
    invented["places"]["sharp"]["steps"]["SGD"] = [1] * 8 + [9] * 12
    found = quantity(invented, "sharp: share that SNGD")
    assert found.low < 0.5 < found.high
    assert found.answer == OPEN


def test_a_run_that_never_leaves_is_later_than_any_that_does(invented):
    invented["places"]["sharp"]["steps"]["SNGD"] = [None] * 20
    found = quantity(invented, "sharp: share that SNGD")
    assert (found.value, found.answer) == (0, CONTRADICTED)
    assert "SNGD (lr 0.1: 0 of 20) leaves before" in found.name


def test_equal_steps_and_two_that_never_leave_decide_nothing(invented):
    steps = invented["places"]["saddle"]["steps"]
    steps["SNGD"] = [9] * 10 + [None] * 10
    steps["SGD"] = [9] * 10 + [None] * 10
    found = quantity(invented, "saddle: share that SNGD")
    assert (found.value, found.low, found.high, found.answer) == (0.5, 0, 1, OPEN)


def test_first_steps_of_equal_length_are_reported_and_decide_nothing(invented):
    for found in invented["places"].values():
        for ours, theirs in PAIRS:
            found["steps"][Row(theirs, ours).label] = [1] * 20
    assert outcome(invented) == SHOWN
    beside = [q for q in judge_map(invented) if q.answer is None]
    assert len(beside) == 4 * len(PAIRS)
    assert all(q.high < 0.5 for q in beside)
