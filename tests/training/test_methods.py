"""Every method of the registry, run by the engine, against its naive twin: same draws, same iterates, same cost."""

import hashlib
import re
from dataclasses import replace
from itertools import product, repeat
from math import inf

import pytest
import torch

from reference import methods as naive
from reference.training import generator
from sngd import stages
from sngd.training import METHODS, RunConfig, train
from sngd.training.methods import Setting, check_parameters, find_method, parameter_values
from sngd.training.natasha2 import epoch_cost
from sngd.training.run_folder import RunFolder

N, B_LARGE, B, M, STEPS, LR, SEED = 60, 24, 4, 3, 9, 0.05, 3
CONFIG = RunConfig("plain", "sgd", lr=LR, batch_size=B, epochs=1000, threads=1, seed=SEED)


class Flat:
    """The plain problem as one flat vector of weights."""

    def __init__(self, problem):
        self.problem, self.shuffle, self.queue = problem, generator(SEED, "samples"), []
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{SEED} model".encode()).digest()[:7]))
        self.model = problem.build_model()
        self.start = torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def draw(self, size):
        if size is None:
            return list(range(N))
        while len(self.queue) < size:
            self.queue += torch.randperm(N, generator=self.shuffle).tolist()
        batch, self.queue = self.queue[:size], self.queue[size:]
        return batch

    def gradient(self, w, batch):
        torch.nn.utils.vector_to_parameters(w.clone(), self.model.parameters())
        inputs, targets = self.problem.train
        loss = self.problem.loss(self.model(inputs[batch]), targets[batch])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.model.parameters()))])

    def noise(self, stream):
        return torch.cat(
            [torch.randn(p.shape, generator=stream, dtype=p.dtype).flatten() for p in self.model.parameters()]
        )


def twin(method, flat, steps):
    """Weights after ``steps`` steps of the naive method."""
    noise = generator(SEED, "noise")
    given = (flat.gradient, flat.start, flat.draw)

    def simple(size, update):
        return naive.minibatch_steps(*given, size, steps, update)

    path = {
        "gd": lambda: simple(None, lambda w, g, _: w - LR * g),
        "ngd": lambda: simple(None, lambda w, g, _: naive.capped(w, g, LR)),
        "sgd": lambda: simple(B, lambda w, g, _: w - LR * g),
        "s-sgd": lambda: simple(B, lambda w, g, _: w - LR * g),
        "sngd": lambda: simple(B, lambda w, g, _: naive.capped(w, g, LR)),
        "s-sngd": lambda: simple(B, lambda w, g, _: naive.capped(w, g, LR)),
        "capped-sngd": lambda: simple(B, lambda w, g, _: naive.capped(w, g, LR, 0.2)),
        "spider-sfo": lambda: naive.spider_sfo(*given, steps, LR, 0.2, B_LARGE, B, M),
        "svrg": lambda: naive.anchored(*given, steps, LR, None, B, repeat(M)),
        "scsg": lambda: naive.anchored(*given, steps, LR, B_LARGE, B, scsg_periods()),
        "saddle-ngd": lambda: simple(
            None,
            lambda w, g, t: naive.capped(w, g, LR) + (0.03 * flat.noise(noise) if t % 2 == 0 else 0),
        ),
        # the draws enter with the other sign, which their law does not notice
        "noisy-gd": lambda: simple(None, lambda w, g, _: w - LR * (g - 0.03 * flat.noise(noise))),
        "sgd-momentum": lambda: naive.heavy_ball(*given, B, steps, LR, 0.8),
        "adamw": lambda: naive.adamw(*given, B, steps, LR, 0.8, 0.95),
        "sngm": lambda: naive.sngm(*given, B, steps, LR, 0.8),
        "nsgd-momentum": lambda: naive.nsgd_momentum(*given, B, steps, LR, 0.8),
        "sngd-layer": lambda: naive.in_norms(*given, B, steps, 0.8, [(s, LR, rms) for s in SHAPES]),
        "signum": lambda: naive.in_norms(*given, B, steps, 0.8, [(s, LR, torch.sign) for s in SHAPES]),
        "muon": lambda: naive.in_norms(
            *given, B, steps, 0.8, [(SHAPES[0], LR, orthogonal), *((s, 0.002, torch.sign) for s in SHAPES[1:])]
        ),
        "scion": lambda: naive.in_norms(
            *given,
            B,
            steps,
            0.8,
            [
                (SHAPES[0], LR, orthogonal),
                (SHAPES[1], LR, rms),
                (SHAPES[2], 16 * LR, lambda v: torch.sign(v) / 8),
                (SHAPES[3], LR, rms),
            ],
        ),
    }[method]()
    *_, last = path
    return last


SHAPES = [(8, 6), (8, 1), (2, 8), (2, 1)]  # of the plain problem's weights; a bias is a column


def rms(v):
    """Of Frobenius norm √(d_out/d_in)."""
    return (v.shape[0] / v.shape[1]) ** 0.5 * v / naive.norm(v)


def orthogonal(v):
    return max(1, v.shape[0] / v.shape[1]) ** 0.5 * naive.newton_schulz(v)


def scsg_periods():
    stream = generator(SEED, "periods")
    while True:
        yield int(torch.empty((), dtype=torch.float64).geometric_(B / B_LARGE, generator=stream))


PARAMS = {
    "capped-sngd": {"max_scale": 0.2},
    "spider-sfo": {"max_scale": 0.2, "anchor_batch_size": B_LARGE, "period": M},
    "svrg": {"period": M},
    "scsg": {"anchor_batch_size": B_LARGE},
    "saddle-ngd": {"std": 0.03, "every": 2},
    "noisy-gd": {"std": 0.03},
    "sgd-momentum": {"momentum": 0.8},
    "adamw": {"beta1": 0.8, "beta2": 0.95},
    "sngm": {"momentum": 0.8},
    "nsgd-momentum": {"momentum": 0.8},
    "sngd-layer": {"momentum": 0.8},
    "signum": {"momentum": 0.8},
    "muon": {"momentum": 0.8, "others_lr": 0.002},
    "scion": {"momentum": 0.8},
}


def after_steps(config, folder, problem, steps):
    """Weights of a run stopped after exactly ``steps`` steps, and its count of oracle calls."""
    count = iter(range(1, steps + 1))
    with pytest.raises(Exception, match=f"stopped after {steps} steps"):
        train(config, folder, problem=problem, should_stop=lambda: next(count) == steps)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    state = checkpoint["loop"]
    calls = state.get("estimator", state)["oracle_calls"]
    return torch.cat([w.flatten() for w in checkpoint["model"].values()]), calls


# Those two have test files of their own.
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"natasha2", "muon-adamw"}))
def test_equals_its_naive_twin_over_three_periods(tmp_path, plain, method):
    steps = 60 if method == "scsg" else STEPS  # enough for more than three random periods of mean B/b = 6
    config = replace(CONFIG, method=method, plan="constant", params=PARAMS.get(method, {}))
    ours, _ = after_steps(config, tmp_path, plain, steps)
    theirs = twin(method, Flat(plain()), steps)
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    assert (ours - Flat(plain()).start).norm() > 1e-3


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        ("gd", N * STEPS),
        ("sgd", B * STEPS),
        ("capped-sngd", B * STEPS),
        ("sngm", B * STEPS),
        ("saddle-ngd", N * STEPS),
        ("noisy-gd", N * STEPS),
        ("spider-sfo", 3 * (B_LARGE + 2 * B * (M - 1))),
        ("svrg", 3 * (N + 2 * B * (M - 1))),
    ],
)
def test_oracle_calls_are_exact(tmp_path, tiny, method, cost):
    config = replace(CONFIG, method=method, params=PARAMS.get(method, {}))
    assert after_steps(config, tmp_path, tiny, STEPS)[1] == cost


RANDOM_PERIODS = {"scsg": 30**0.5, "natasha2": (4 / 3) ** 0.5}  # a bound on the standard deviation of a period
COST_PARAMS = PARAMS | {"natasha2": {"anchor_batch_size": B_LARGE, "sub_epochs": 2, "oja_steps": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_cost_of_a_row_is_what_its_method_counts_over_many_periods(method):
    """Step by step, and in the mean; on a convex problem, so that natasha2 has no negative curvature to follow."""
    row, periods = METHODS[method], 400 if method in RANDOM_PERIODS else 5
    values = parameter_values(row, COST_PARAMS.get(method, {}), B, N)
    cost = row.estimate.cost(B, N, values)
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(3, 1), torch.randn(N, 3), torch.randn(N, 1)
    if method.startswith("muon"):  # which needs a hidden matrix
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), model)
    setting = Setting(model, N, B, 0.01, 0.0, lambda purpose: generator(SEED, purpose), values)
    loop = row.build(setting, stages.constant(0.01, 10**6))
    counted = []
    while counted.count(cost.anchor) < periods or (len(counted) % cost.period and method not in RANDOM_PERIODS):
        before, announced, size = loop.oracle_calls, loop.next_cost, loop.next_batch_size
        batch = torch.arange(N) if size is None else torch.randint(N, (size,))
        loop.step(lambda batch: torch.nn.functional.mse_loss(model(x[batch]), y[batch]), batch)
        counted.append(loop.oracle_calls - before)
        assert counted[-1] == announced
    assert set(counted) == ({cost.anchor, cost.between} if cost.period > 1 else {cost.anchor})
    if method in RANDOM_PERIODS:  # the last period lacks its end, the steps behind the last anchor
        error = 5 * RANDOM_PERIODS[method] / periods**0.5 + cost.period / periods
        assert len(counted) / periods == pytest.approx(cost.period, abs=error)
    else:
        assert sum(counted) == periods * cost.of_a_period
        assert sum(counted) / len(counted) == cost.mean
        assert [sum(counted[:steps]) for steps in range(len(counted))] == list(map(cost.of_steps, range(len(counted))))


@pytest.mark.parametrize(("anchor", "sub_epochs", "m"), [(24, 2, 3), (64, 4, 4), (4, 3, 2), (40, 1, 10)])
def test_the_cost_of_natasha2_is_the_mean_over_all_lengths_of_its_sub_epochs(anchor, sub_epochs, m):
    lengths = [sum(ends) for ends in product(range(m), repeat=sub_epochs)]
    inner = sum(max(0, n - 1) for n in lengths) / len(lengths)
    cost = epoch_cost(B, anchor, sub_epochs, 20)
    assert (cost.anchor, cost.between) == (2 * anchor, 2 * B)
    assert cost.period == pytest.approx(20 + 1 + inner, rel=1e-14)


@pytest.mark.parametrize("method", ["gd", "sgd", "spider-sfo", "svrg"])
def test_the_stage_plan_is_as_long_as_the_run(tmp_path, plain, method):
    """The budget is four periods, whatever they cost."""
    config = replace(CONFIG, method=method, params=PARAMS.get(method, {}), plan="constant")
    cost = find_method(method).estimate.cost(B, N, parameter_values(METHODS[method], config.params, B, N))
    config = replace(config, epochs=4 * cost.of_a_period / N)
    assert config.stage_plan(N).steps == train(config, tmp_path, problem=plain)["step"] == 4 * cost.period


# --- reductions


def weights(folder, config, problem):
    return after_steps(config, folder, problem, STEPS)[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("capped-sngd", {"max_scale": 1e9}), ("sngd", {})),  # β = ∞
        (("saddle-ngd", {"std": 0.0}), ("ngd", {})),
        (("noisy-gd", {"std": 0.0}), ("gd", {})),
        (("sngm", {"momentum": 0.0}), ("sngd", {})),
        (("nsgd-momentum", {"momentum": 0.0}), ("sngd", {})),
        (("svrg", {"period": 1}), ("gd", {})),
        (("spider-sfo", {"period": 1, "anchor_batch_size": B}), ("capped-sngd", {})),
        (("spider-sfo", {"period": 5, "anchor_batch_size": N, "max_scale": 1e9}), ("ngd", {})),
    ],
    ids=str,
)
def test_reductions(tmp_path, plain, one, other):
    batch = N if one[1].get("anchor_batch_size") == N else B  # gradient noise switched off
    ends = [
        weights(tmp_path / name, replace(CONFIG, method=name, params=params, batch_size=batch), plain)
        for name, params in (one, other)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)


def test_the_chunk_size_is_a_parameter_that_a_run_stores_and_keeps(tmp_path, tiny):
    """On a problem with BatchNorm it changes the run, unless it holds the whole batch."""
    for method in ("gd", "spider-sfo", "svrg", "scsg"):
        ends = {}
        for chunk in (7, 60, 512):
            config = replace(CONFIG, method=method, params={"chunk_size": chunk}, epochs=3)
            train(config, tmp_path / method / str(chunk), problem=tiny)
            assert RunFolder(tmp_path / method / str(chunk)).read_config()["params"]["chunk_size"] == chunk
            checkpoint = torch.load(tmp_path / method / str(chunk) / "checkpoint.pt", weights_only=True)
            ends[chunk] = torch.cat([w.flatten().double() for w in checkpoint["model"].values()])
        assert torch.equal(ends[60], ends[512])
        assert not torch.allclose(ends[7], ends[60])
    assert not any(p.name == "chunk_size" for p in METHODS["natasha2"].parameters)  # which takes anchors whole


# --- the table


def test_every_row_is_described():
    for method in METHODS.values():
        assert method.summary
        assert method.paper
        assert method.estimate.cost_text
        assert method.output in ("last", "random")
        values = parameter_values(method, {}, 128, 60_000)
        assert all(0 <= value < inf for value in values.values())


def test_defaults_follow_the_paper():
    assert parameter_values(METHODS["spider-sfo"], {}, 32, 60_000) == {
        "anchor_batch_size": 1024,
        "period": 16,  # B/(2b)
        "chunk_size": 512,
        "max_scale": 1.0,
    }
    given = parameter_values(METHODS["spider-sfo"], {"anchor_batch_size": 256}, 32, 60_000)
    assert given["period"] == 4


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "spider-sfo",
            {"perod": 3},
            "'perod' is no parameter of spider-sfo, which takes anchor_batch_size",
        ),
        ("sgd", {"momentum": 0.9}, "'momentum' is no parameter of sgd, which takes none"),
        ("sngm", {"momentum": float("nan")}, "momentum must be a finite number, got nan"),
    ],
)
def test_wrong_parameters_are_named(method, given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_parameters(find_method(method), given)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("spider-sfo", {"period": 2.5}, "period must be a whole number, got 2.5"),
        ("spider-sfo", {"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
        ("spider-sfo", {"period": 0}, "period must be a whole number of at least 1, got 0"),
        ("sngm", {"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ("saddle-ngd", {"std": -1.0}, "std must be finite and at least 0, got -1.0"),
    ],
)
def test_values_out_of_range_are_named_and_leave_no_folder(tmp_path, plain, method, given, message):
    with pytest.raises(ValueError, match=message):
        train(replace(CONFIG, method=method, params=given), tmp_path / "run", problem=plain)
    assert not (tmp_path / "run" / "config.json").exists()


def test_natasha2_refuses_what_it_cannot_honour(tmp_path, plain):
    for change in ({"plan": "poly"}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match="natasha2 has a constant learning rate and no weight decay"):
            train(replace(CONFIG, method="natasha2", **change), tmp_path / "run", problem=plain)
