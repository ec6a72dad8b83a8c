"""The gradient noise: its values, the coverage of its intervals, its cost, and that it leaves no traces."""

import math
from itertools import combinations

import pytest
import torch
from torch import nn

from reference import noise as reference
from sngd.diagnose.noise import gradient_noise
from sngd.diagnose.objective import Objective


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    """f(w; a) = ‖w − a‖²/2, whose gradient is w − a: the noise is that of the samples."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float32))

    def forward(self, batch):
        return (self.w - batch).square().sum(1).mean() / 2


def quadratic(samples, w):
    model = Quadratic(w)
    return Objective(model, model, samples)


def classifier(*layers, n=60):
    """Cross-entropy of a model between Linear(5, 6) and Linear(6, 3) on random data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), *layers, nn.Linear(6, 3))
    data = torch.randn(n, 5), torch.randint(0, 3, (n,))
    return Objective(model, lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), data)


def truth(objective):
    return reference.population(reference.sample_gradients(objective.loss, objective.params, objective.samples))


def intervals(noise):
    return noise.variance, noise.grad_norm_squared, noise.scale


# Values


def test_all_samples_of_a_quadratic_give_its_exact_noise():
    samples = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])  # mean 0, σ² = (1 + 1 + 4 + 4)/4
    noise = gradient_noise(quadratic(samples, [3.0, 4.0]), samples=4, generator=seeded())
    assert noise.method == "per-sample"
    assert noise.samples == noise.oracle_calls == 4
    for interval, value in zip(intervals(noise), (2.5, 25.0, 0.1), strict=True):
        assert interval == pytest.approx((value,) * 3, rel=1e-6)


def test_noise_of_known_sigma_is_found():
    samples = 3 * torch.randn(100_000, 4, generator=seeded(1), dtype=torch.float64)  # σ² = 4 · 9
    noise = gradient_noise(quadratic(samples, [2.0, 0, 0, 0]), samples=4096, generator=seeded(), batch_size=1024)
    assert noise.variance.low < 36 < noise.variance.high
    assert noise.grad_norm_squared.low < 4 < noise.grad_norm_squared.high
    assert noise.scale.low < 9 < noise.scale.high
    assert noise.scale.high / noise.scale.low < 1.5
    assert noise.scale.value == pytest.approx(noise.variance.value / noise.grad_norm_squared.value)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 100])
def test_per_sample_gradients_are_those_of_a_loop_over_samples(batch_size):
    objective = classifier(nn.BatchNorm1d(6), nn.ELU())
    objective.gradient()  # in training mode, yet without a trace in the running statistics
    objective.model[1].running_mean.normal_(generator=seeded())
    objective.model.eval()
    noise = gradient_noise(objective, generator=seeded(), batch_size=batch_size)
    variance, norm_squared = truth(objective)
    assert noise.method == "per-sample"
    assert noise.variance.value == pytest.approx(variance, rel=1e-5)
    assert noise.grad_norm_squared.value == pytest.approx(norm_squared, rel=1e-5)
    assert noise.grad_norm_squared.value == pytest.approx(float(objective.gradient().square().sum()), rel=1e-5)


def test_frozen_and_shared_parameters_count_as_in_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[4].weight = model[0].weight
    model[2].requires_grad_(False)
    objective = Objective(model, lambda batch: model(batch[0]).square().mean(), (torch.randn(20, 4),))
    noise = gradient_noise(objective, generator=seeded(), method="per-sample")
    variance, norm_squared = truth(objective)
    assert noise.variance.value == pytest.approx(variance, rel=1e-5)
    assert noise.grad_norm_squared.value == pytest.approx(norm_squared, rel=1e-5)


def test_samples_may_be_nested():
    samples = {"in": torch.randn(9, 2, generator=seeded()), "more": [torch.ones(9)]}
    model = nn.Linear(2, 1)

    def loss(batch):
        return (model(batch["in"])[:, 0] - batch["more"][0]).square().mean()

    noise = gradient_noise(Objective(model, loss, samples), generator=seeded(), method="per-sample")
    again = gradient_noise(Objective(model, loss, samples), generator=seeded(), method="two-batch", batch_size=1)
    for one, other in zip(intervals(noise), intervals(again), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_two_batch_follows_its_published_formula():
    samples = torch.randn(10**6, 2, generator=seeded(1))  # so many that taking them without replacement changes nothing
    objective = quadratic(samples, [1.0, 0.0])
    noise = gradient_noise(objective, samples=40, method="two-batch", batch_size=8, generator=seeded())
    drawn = torch.randperm(10**6, generator=seeded())[:40].view(5, 8)
    small = [objective.gradient(samples[batch]) for batch in drawn]
    small_norm_squared = sum(float(g @ g) for g in small) / 5
    big = objective.gradient(samples[drawn.flatten()])
    expected = reference.two_batch_sizes(8, 40, small_norm_squared, float(big @ big))
    assert noise[:2] == tuple(
        pytest.approx((value, *i[1:]), rel=1e-4) for value, i in zip(expected, noise, strict=False)
    )


def test_both_methods_agree():
    objective = classifier(nn.Tanh(), n=4000)
    each = gradient_noise(objective, samples=2048, method="per-sample", batch_size=512, generator=seeded(1))
    batches = gradient_noise(objective, samples=2048, method="two-batch", batch_size=16, generator=seeded(2))
    assert batches.method == "two-batch"
    for one, other in zip(intervals(each), intervals(batches), strict=True):
        assert one.low < other.high
        assert other.low < one.high
        assert one.value == pytest.approx(other.value, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "batch_size"), [("per-sample", 3), ("two-batch", 2)])
def test_estimates_are_unbiased_for_the_finite_population(monkeypatch, method, batch_size):
    samples = torch.randn(8, 2, generator=seeded(3))
    objective = quadratic(samples, [0.5, 0.0])
    subsets = combinations(range(8), 6)
    if method == "two-batch":  # it also matters which samples share a batch
        subsets = [pairs for six in subsets for pairs in _pairings(six)]
    orders = [torch.tensor([*six, *(set(range(8)) - set(six))]) for six in subsets]
    found = []
    for order in orders:
        monkeypatch.setattr(torch, "randperm", lambda *_, order=order, **__: order)
        noise = gradient_noise(objective, samples=6, method=method, batch_size=batch_size, generator=seeded())
        found.append([noise.variance.value, noise.grad_norm_squared.value])
    assert torch.tensor(found).mean(0).tolist() == pytest.approx(_population(samples, [0.5, 0.0]), rel=1e-5)


def _pairings(items):
    """All ways to part items into pairs, each as a flat tuple."""
    if not items:
        return [()]
    first, *rest = items
    return [
        (first, second, *others) for second in rest for others in _pairings([item for item in rest if item != second])
    ]


def _population(samples, w):
    gradients = torch.tensor(w) - samples.double()
    return list(reference.population(gradients))


# Intervals


N, REPETITIONS, LEVEL = 20_000, 300, 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("method", "samples", "batch_size"), [("per-sample", 128, 128), ("two-batch", 80, 4)])
def test_intervals_cover_the_truth_as_often_as_stated(method, samples, batch_size):
    """Error rate: for each count, binomial bounds that a true coverage of 90 % leaves once in 1000 studies."""
    objective, expected = _gaussian(scale=10)
    generator = seeded(1)
    covered = [0, 0, 0]
    for _ in range(REPETITIONS):
        noise = gradient_noise(
            objective, samples=samples, method=method, batch_size=batch_size, level=LEVEL, generator=generator
        )
        for i, (interval, value) in enumerate(zip(intervals(noise), expected, strict=True)):
            covered[i] += interval.low <= value <= interval.high
    low, high = _binomial_bounds(REPETITIONS, LEVEL, 1e-3)
    assert all(low <= count <= high for count in covered), covered


@pytest.mark.slow
@pytest.mark.parametrize(("method", "batch_size"), [("per-sample", 96), ("two-batch", 8)])
def test_noise_scale_far_above_the_samples_seen_is_covered_by_an_unbounded_interval(method, batch_size):
    """Here intervals cover more often than stated; one-sided bound of error rate 1/2000."""
    objective, expected = _gaussian(scale=5000)
    found = [
        gradient_noise(objective, samples=96, method=method, batch_size=batch_size, level=LEVEL, generator=seeded(seed))
        for seed in range(60)
    ]
    covered = sum(noise.scale.low <= expected[2] <= noise.scale.high for noise in found)
    assert covered >= _binomial_bounds(60, LEVEL, 1e-3)[0]
    assert sum(noise.scale.high == math.inf for noise in found) > 50
    assert any(noise.scale.value == math.inf and noise.grad_norm_squared.value < 0 for noise in found)
    assert all(noise.scale.low > 0 for noise in found)


def _gaussian(scale):
    """A quadratic in three dimensions of the given noise scale, and its σ², ‖∇F‖² and noise scale."""
    samples = torch.randn(N, 3, generator=seeded(9))
    w = samples.mean(0) + torch.tensor([math.sqrt(3 / scale), 0.0, 0.0])
    variance, norm_squared = _population(samples, w.tolist())
    return quadratic(samples, w), (variance, norm_squared, variance / norm_squared)


def _binomial_bounds(n, p, error):
    from scipy.stats import binom

    return binom.ppf(error / 2, n, p), binom.isf(error / 2, n, p)


def test_seeing_more_of_the_samples_narrows_the_interval_to_nothing():
    objective = classifier(nn.Tanh(), n=400)
    widths = []
    for samples in (100, 399, 400, 5000):
        noise = gradient_noise(objective, samples=samples, generator=seeded(), batch_size=400)
        widths.append(noise.variance.high - noise.variance.low)
    assert widths[0] > 10 * widths[1] > 0
    assert widths[2:] == [0, 0]
    assert noise.samples == 400


def test_a_higher_level_is_wider():
    objective = classifier(n=200)
    narrow, wide = (gradient_noise(objective, samples=100, level=level, generator=seeded()) for level in (0.5, 0.99))
    for one, other in zip(intervals(narrow), intervals(wide), strict=True):
        assert other.low < one.low < one.value == other.value < one.high < other.high


def test_no_noise():
    noise = gradient_noise(quadratic(torch.ones(50, 2), [1.0, 3.0]), samples=40, generator=seeded())
    assert intervals(noise) == ((0, 0, 0), (4, 4, 4), (0, 0, 0))


def test_gradients_that_are_no_numbers():
    noise = gradient_noise(quadratic(torch.randn(50, 2), [math.nan, 0.0]), samples=40, generator=seeded())
    assert all(math.isnan(value) for interval in intervals(noise) for value in interval)


def test_noise_of_a_single_odd_sample_could_be_anything():
    samples = torch.zeros(200, 1)
    samples[int(torch.randperm(200, generator=seeded())[0])] = 1.0  # drawn for certain
    noise = gradient_noise(quadratic(samples, [1.0]), samples=20, generator=seeded())
    assert noise.variance.value > 0
    assert noise.variance.low < noise.variance.value / 1e3
    assert noise.variance.high > noise.variance.value * 1e3
    assert noise.scale.low < noise.scale.value / 1e3
    assert noise.scale.high == math.inf


# Which method


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return 2 * x

    @staticmethod
    def backward(ctx, grad):  # noqa: ARG004
        return 2 * grad


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def written_in_place(x):
    result = torch.zeros(6)
    result += x.mean(0)
    return x + result


REFUSED = {
    "BatchNorm in training mode": nn.BatchNorm1d(6),
    "BatchNorm without running statistics": nn.BatchNorm1d(6, track_running_stats=False).eval(),
    "in place": Apply(written_in_place),
    "control flow": Apply(lambda x: x if x.sum() > 0 else -x),
    "item": Apply(lambda x: x * x.sum().item()),
    "custom function": Apply(_Doubled.apply),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_func_refuses_is_measured_with_two_batch_sizes(name):
    objective = classifier(REFUSED[name])
    noise = gradient_noise(objective, samples=50, batch_size=8, generator=seeded())
    assert noise.method == "two-batch"
    assert noise.samples == noise.oracle_calls == objective.oracle_calls == 48
    assert 0 < noise.variance.low < noise.variance.value < noise.variance.high
    direct = gradient_noise(objective, samples=50, batch_size=8, generator=seeded(), method="two-batch")
    assert noise == direct
    with pytest.raises(RuntimeError):
        gradient_noise(objective, samples=50, generator=seeded(), method="per-sample")


def test_a_loss_that_goes_past_its_model_is_not_believed():
    samples = torch.randn(60, 2, generator=seeded())
    model = Quadratic([1.0, 0.0])
    w = model.w
    objective = Objective(model, lambda batch: model(batch) + w.square().sum(), samples)
    noise = gradient_noise(objective, batch_size=4, generator=seeded())
    assert noise.method == "two-batch"
    assert noise.grad_norm_squared.value == pytest.approx(float(objective.gradient().square().sum()), rel=1e-5)
    with pytest.raises(RuntimeError, match="does not take all weights from its model, use 'two-batch'"):
        gradient_noise(objective, generator=seeded(), method="per-sample")


def test_an_error_of_the_model_itself_is_raised():
    model = nn.Linear(3, 1)
    objective = Objective(model, lambda batch: model(batch).mean(), torch.ones(100, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradient_noise(objective, generator=seeded())


def test_lack_of_memory_is_no_refusal():
    model = nn.Linear(2, 1)
    failures = iter([torch.OutOfMemoryError("too much")])

    def loss(batch):
        for failure in failures:
            raise failure
        return model(batch).mean()

    objective = Objective(model, loss, torch.ones(100, 2))
    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        gradient_noise(objective, generator=seeded())


# Chance


class Masked(nn.Module):
    """f(w; a) = w · dropout(1): gradients are 0 or 2, whatever the sample."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return (nn.functional.dropout(torch.ones(len(batch)), 0.5) * self.w).mean()


@pytest.mark.parametrize(("method", "batch_size"), [("per-sample", 100), ("two-batch", 4)])
def test_every_sample_has_a_dropout_mask_of_its_own(method, batch_size):
    model = Masked()
    objective = Objective(model, model, torch.zeros(5000))
    noise = gradient_noise(objective, samples=1000, method=method, batch_size=batch_size, generator=seeded())
    assert noise.method == method
    assert noise.variance.value == pytest.approx(1, rel=0.2)  # 0 if samples or batches shared masks
    assert noise.grad_norm_squared.value == pytest.approx(1, rel=0.2)


def test_dropout_adds_to_the_noise():
    objective = classifier(nn.Dropout(0.5))
    training = gradient_noise(objective, generator=seeded())
    objective.model.eval()
    assert training.method == "per-sample"
    assert training.variance.value > 1.1 * gradient_noise(objective, generator=seeded()).variance.value


@pytest.mark.parametrize("method", ["per-sample", "two-batch"])
def test_seeds_decide_everything(method):
    objective = classifier(nn.Dropout(0.5))

    def measured(seed):
        return gradient_noise(objective, samples=30, method=method, batch_size=5, generator=seeded(seed))

    assert measured(1) == measured(1)
    assert measured(1) != measured(2)
    before = measured(1)
    objective.seed = 1
    assert measured(1) != before


# Traces


@pytest.mark.parametrize("method", ["auto", "two-batch"])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(6)])
def test_nothing_is_left_but_the_count(method, layer):
    objective = classifier(layer)
    model = objective.model
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    objective.gradient()
    noise = gradient_noise(objective, samples=50, method=method, batch_size=5, generator=seeded())
    assert noise.oracle_calls == 50
    assert objective.oracle_calls == 110
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in model.parameters())
    assert all(p.requires_grad and isinstance(p, nn.Parameter) for p in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("method", ["per-sample", "two-batch"])
def test_gradients_are_taken_under_no_grad_too(method):
    objective = classifier()
    with torch.no_grad():
        inside = gradient_noise(objective, method=method, batch_size=5, generator=seeded())
    assert inside == gradient_noise(objective, method=method, batch_size=5, generator=seeded())


def test_the_generator_alone_draws_the_samples():
    generator = seeded()
    objective = classifier(n=100)
    first, second = (gradient_noise(objective, samples=50, generator=generator) for _ in range(2))
    assert first.variance != second.variance


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "method must be one of auto, per-sample, two-batch, got 'exact'"),
        ({"level": 1}, "level must be in (0, 1), got 1"),
        ({"level": 0.0}, "level must be in (0, 1), got 0.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"samples": 0}, "samples must be a whole number of at least 1, got 0"),
        ({"samples": 2}, "samples must be at least 3, got 2"),
        (
            {"method": "two-batch", "samples": 50, "batch_size": 20},
            "samples must be at least 60 for method 'two-batch', 3 of batch_size 20, got 50",
        ),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        gradient_noise(classifier(), generator=seeded(), **options)
    assert str(error.value) == message


def test_too_few_samples_in_all():
    with pytest.raises(ValueError, match="samples must be at least 3, got 2"):
        gradient_noise(quadratic(torch.randn(2, 2), [0.0, 0.0]), generator=seeded())


# In dual norms


def test_two_batches_in_the_dual_norm_by_hand():
    """All four samples in batches of one: u = 4, (1 − 1/n) u/(u − 1) = 1, and X_j = |a_j|₁ as their mean is 0."""
    samples = torch.tensor([[1.0, 0.5], [-1.0, -0.5], [0.0, 2.0], [0.0, -2.0]])
    noise = gradient_noise(quadratic(samples, [3.0, 4.0]), generator=seeded(), batch_size=1, norm="sign(scaled=False)")
    assert noise.batch_error.value == pytest.approx((1.5 + 1.5 + 2 + 2) / 4)
    assert (noise.kappa, noise.batch_size) == (pytest.approx(math.sqrt(2)), 1)
    assert noise.oracle_calls == 4 + 4
    assert noise.variance.value == pytest.approx((1.25 * 2 + 4 * 2) / 4, rel=1e-6)  # σ² stays Euclidean


def test_without_another_norm_nothing_is_added():
    samples = torch.randn(50, 3, generator=seeded(1))
    plain, named = (
        gradient_noise(quadratic(samples, [1.0, 0, 0]), generator=seeded(), **more) for more in ({}, {"norm": "l2"})
    )
    assert plain == named
    assert (plain.kappa, plain.batch_error, plain.batch_size) == (1.0, None, None)


@pytest.mark.parametrize("norm", ["sign(scaled=False)", "spectral(scaled=False)"])
def test_the_error_is_below_kappa_sigma(norm):
    objective = classifier(nn.ELU(), n=400)
    noise = gradient_noise(objective, generator=seeded(), batch_size=10, norm=norm)
    most = noise.kappa * math.sqrt(noise.variance.value / 10)
    assert 0.2 * most < noise.batch_error.low < noise.batch_error.value < noise.batch_error.high < most


@pytest.mark.slow
def test_the_interval_in_the_dual_norm_covers_the_truth():
    """Normal noise of deviation s_i in entry i: E‖∇f_b − ∇F‖* = Σ s_i √(2/(πb)). Error rate 5 %: 400 draws, 3σ = 13."""
    deviations = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1], dtype=torch.float64)
    truth = deviations.sum().item() * math.sqrt(2 / (math.pi * 8))
    misses, sides = 0, [0, 0]
    for seed in range(400):
        samples = deviations * torch.randn(160, 5, generator=seeded(seed), dtype=torch.float64)
        objective = quadratic(samples, [1.0, 0, 0, 0, 0])
        error = gradient_noise(objective, generator=seeded(), batch_size=8, norm="sign(scaled=False)").batch_error
        misses += not error.low <= truth <= error.high
        sides[error.value > truth] += 1
    assert 7 <= misses <= 33
    assert min(sides) > 140


def test_too_few_batches_for_a_dual_norm():
    samples = torch.randn(50, 2, generator=seeded())
    with pytest.raises(ValueError, match=r"^samples must be at least 96 for norm, 3 of batch_size 32, got 50$"):
        gradient_noise(quadratic(samples, [1.0, 0]), generator=seeded(), norm="sign")
