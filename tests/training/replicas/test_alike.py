"""Runs that cannot be replicas are found, and told why; those that gain nothing are left alone."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as module_of_optimizer
from torch.utils.data import TensorDataset

from sngd.problems import Problem, load_problem
from sngd.training import METHODS, RunConfig
from sngd.training.replicas.alike import Limit, gains_in_evaluation, kind, limit, most_replicas, reason_against

CONFIG = RunConfig("some", "sngd", batch_size=7)


def problem_of(build_model, loss=nn.functional.cross_entropy, **settings):
    chance = torch.Generator().manual_seed(0)
    samples = torch.randn(30, 4, generator=chance), torch.randint(3, (30,), generator=chance)
    return Problem(build_model, loss, samples, **settings)


def with_frozen_weights():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


def with_shared_memory():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    return model


def with_transposed_weight():
    model = nn.Linear(4, 4)
    model.weight.data = torch.randn(4, 4).T
    return model


class WithBuffer(nn.Linear):
    """A fixed random direction is added to the inputs."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("direction", torch.randn(4))

    def forward(self, x):
        return super().forward(x + self.direction)


class OtherwiseInEval(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else self.weight.detach().max().item())


class WithItem(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return super().forward(x) * (2.0 if self.weight.sum().item() > 0 else 1.0)


class WithUnused(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.other = nn.Linear(2, 2)


def with_hook_on_a_gradient():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softplus())
    model[0].weight.register_hook(lambda gradient: gradient.clamp(-100, 100))
    return model


def with_hook_on_a_sum_of_gradients():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softplus())
    model[0].bias.register_post_accumulate_grad_hook(lambda param: param.grad.clamp_(-100, 100))
    return model


class Embedded(nn.Module):
    """Places of sequences that hold nothing have index 0; the row of weights there is not to be trained."""

    def __init__(self, lookup):
        super().__init__()
        self.weight, self.last, self.lookup = nn.Parameter(torch.randn(9, 4)), nn.Linear(4, 3), lookup

    def forward(self, x):
        return self.last(self.lookup(x.abs().clamp(1, 7).long(), self.weight).mean(1))


class WithHookOnItsActivations(nn.Linear):
    """Outliers among the gradients are clipped; these samples have none."""

    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.clamp(-100, 100))
        return y


def with_hook_on_a_module():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softplus())
    model[1].register_full_backward_hook(lambda _, into, __: (into[0].clamp(-100, 100),))
    return model


class Counting(nn.Linear):
    """Its first thirty batches are scaled."""

    def __init__(self):
        super().__init__(4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (1.0 if self.calls < 30 else 0.5)


class CountingInEval(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        if not self.training:
            self.seen += len(x)
        return super().forward(x)


class KeepsMaximum(nn.Linear):
    """These samples have none that is larger, so that the buffer keeps its number."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("most", torch.tensor(100.0))

    def forward(self, x):
        self.most = torch.maximum(self.most, x.detach().abs().max())
        return super().forward(x) / self.most


class OtherwiseForMany(nn.Linear):
    """More than four samples are looked at, which vmap does not allow."""

    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return super().forward(x) * (1.0 if len(x) < 5 or bool(x.isfinite().all()) else 0.5) if self.training else x


class DropsItsLayer(nn.Linear):
    """In one of a thousand batches."""

    def __init__(self, chance):
        super().__init__(4, 3)
        self.chance = chance

    def forward(self, x):
        return super().forward(x) * (self.chance() < 0.999)


class OtherGradientInEval(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        if self.training:
            return super().forward(x)
        scale = self.weight.square().sum()
        return super().forward(x) * (scale / scale.detach() if scale.requires_grad else 1)


REASONS = {
    "changes buffers while it trains": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
    "draws random numbers while it trains": lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.01)),
    "some of its weights are not trained": with_frozen_weights,
    "some of its weights share memory": with_shared_memory,
    "or do not lie in one piece": with_transposed_weight,
    "not all float32 or all float64": lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).bfloat16()),
    "buffers that depend on the seed": WithBuffer,
    "torch.func.vmap cannot batch its model or loss": WithItem,
    "torch.func.vmap cannot batch its model": OtherwiseInEval,
    "its loss does not depend on some of its weights": WithUnused,
    "some of its weights have hooks": with_hook_on_a_gradient,
    "weights have hooks": with_hook_on_a_sum_of_gradients,
    "has embeddings with a padding_idx": lambda: Embedded(partial(nn.functional.embedding, padding_idx=0)),
    "embeddings with a padding_idx": lambda: Embedded(lambda x, w: torch.embedding(w, x, 0)),
    "hooks on modules' gradients": with_hook_on_a_module,
    "registers hooks on tensors": WithHookOnItsActivations,
    "changes attributes of its own": Counting,
    "changes buffers while it": CountingInEval,
    "its model changes buffers while it trains": KeepsMaximum,
    "its model draws random numbers": lambda: DropsItsLayer(random.random),
    "model draws random numbers": lambda: DropsItsLayer(np.random.random),
    "its losses or gradients come out differently": OtherGradientInEval,
    "cannot batch its model or loss": OtherwiseForMany,
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_model_that_cannot_be_batched_is_told_why(reason):
    assert reason in reason_against(CONFIG, problem_of(REASONS[reason]))


def test_a_loss_that_cannot_be_batched(recwarn):
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * float(outputs.detach().max())

    assert "vmap cannot batch" in reason_against(CONFIG, problem_of(lambda: nn.Linear(4, 3), loss))
    assert not recwarn.list


# Models may draw from numpy's global generator, which its authors advise against
@pytest.mark.parametrize(
    "noise",
    [torch.randn_like, lambda _: random.random(), lambda _: np.random.random()],  # noqa: NPY002
)
def test_samples_that_vary_by_no_generator_of_the_run(noise):
    problem = problem_of(lambda: nn.Linear(4, 3), augment=lambda inputs, _: inputs + noise(inputs))
    assert "augment draws from global random numbers" in reason_against(CONFIG, problem)


def test_samples_that_are_varied_in_place_stay_as_they_are():
    def augment(inputs, _):
        inputs.neg_()
        return inputs

    problem = problem_of(lambda: nn.Linear(4, 3), augment=augment)
    before = problem.train[0].clone()
    assert limit(CONFIG, problem) == Limit(16)
    assert torch.equal(problem.train[0], before)


def test_a_layer_that_models_share_stays_as_it_is():
    shared = nn.Softplus()
    assert limit(CONFIG, problem_of(lambda: nn.Sequential(nn.Linear(4, 3), shared))) == Limit(16)
    assert shared.training
    assert not shared._forward_hooks


def test_embeddings_without_padding_can():
    assert reason_against(CONFIG, problem_of(lambda: Embedded(nn.functional.embedding))) is None
    assert reason_against(CONFIG, problem_of(lambda: Embedded(lambda x, w: torch.embedding(w, x)))) is None


@pytest.mark.parametrize("register", [torch_modules.register_module_full_backward_hook])
def test_hooks_on_the_gradients_of_all_modules(register):
    handle = register(lambda *_: None)
    try:
        assert "hooks on modules' gradients" in reason_against(CONFIG, problem_of(lambda: nn.Linear(4, 3)))
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_model_that_cannot_be_counted():
    scripted = problem_of(lambda: torch.jit.script(nn.Linear(4, 3)))
    found = limit(CONFIG, scripted)
    assert found.most == 1
    assert "cannot batch its model or loss (register_forward_hook" in found.reason


@pytest.mark.parametrize(
    ("settings", "reason"), [({"method": "natasha2"}, "a loop of its own"), ({"track": "noise"}, "--track measures")]
)
def test_a_run_that_cannot_be_a_replica(settings, reason):
    assert reason in reason_against(replace(CONFIG, **settings), problem_of(lambda: nn.Linear(4, 3)))


@pytest.mark.parametrize(
    ("part", "reason"), [("estimate", "an estimator of its own"), ("step_rule", "a step rule of its own")]
)
def test_a_method_with_a_part_of_its_own_trains_run_by_run(monkeypatch, part, reason):
    """Replicas would replace the estimator by the mean over a batch, and do what its optimizer does another way."""
    plain = METHODS["sngd"]
    monkeypatch.setitem(METHODS, "mine", replace(plain, name="mine", **{part: getattr(plain, part)._replace()}))
    monkeypatch.setitem(METHODS, "of-known-parts", replace(plain, name="of-known-parts", plan="poly"))
    problem = problem_of(lambda: nn.Linear(4, 3))
    assert reason_against(replace(CONFIG, method="mine"), problem) == f"mine has {reason}"
    assert reason_against(replace(CONFIG, method="of-known-parts"), problem) is None


@pytest.mark.parametrize(
    "register",
    [module_of_optimizer.register_optimizer_step_pre_hook, module_of_optimizer.register_optimizer_step_post_hook],
)
def test_hooks_of_all_optimizers_are_called_for_each_run_by_itself(register):
    problem = problem_of(lambda: nn.Linear(4, 3))
    handle = register(lambda *_: None)
    try:
        assert "hooks are registered" in reason_against(CONFIG, problem)
    finally:
        handle.remove()
    assert reason_against(CONFIG, problem) is None


@pytest.mark.parametrize(
    "build_model",
    [
        lambda: nn.Linear(4, 3),
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)).double().float(),
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)),
    ],
)
def test_other_models_can_and_no_random_number_is_drawn(build_model):
    before = torch.get_rng_state()
    assert reason_against(CONFIG, problem_of(build_model)) is None
    assert torch.equal(before, torch.get_rng_state())


def test_a_gradient_that_is_another_one_is_noticed(monkeypatch):
    """Whatever vmap does not see: here the gradient of a batched model is spoiled on purpose."""
    from sngd.training.replicas.losses import Losses

    right = Losses.gradient

    def wrong(self, weights, batch, into, chunk_size=None):
        losses = right(self, weights, batch, into, chunk_size)
        into[1] *= 1.1
        return losses

    monkeypatch.setattr(Losses, "gradient", wrong)
    assert "come out differently" in reason_against(CONFIG, problem_of(lambda: nn.Linear(4, 3)))


def test_runs_of_a_kind_differ_in_seed_rate_parameters_and_label_alone():
    same = [
        CONFIG,
        replace(CONFIG, seed=4),
        replace(CONFIG, lr=0.3),
        replace(CONFIG, params={"momentum": 0.1}),
        replace(CONFIG, label="mine"),
    ]
    assert len({kind(config) for config in same}) == 1
    others = [
        replace(CONFIG, **{name: value})
        for name, value in (("batch_size", 8), ("method", "sgd"), ("plan", "poly"), ("params", {"chunk_size": 7.0}))
    ]
    assert len({kind(config) for config in (*others, CONFIG)}) == 5
    assert kind(replace(CONFIG, params={"chunk_size": 512.0})) == kind(CONFIG)  # the default


@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("digits-mlp", {}, 16),
        ("digits-mlp", {"method": "gd"}, 16),
        ("saddle", {}, 16),
        ("digits-mlp", {"device": "cuda"}, 256),
    ],
)
def test_small_problems_gain(name, settings, most):
    assert most_replicas(replace(CONFIG, **settings), load_problem(name)) == most


def test_a_step_of_much_arithmetic_gains_nothing():
    problem = problem_of(lambda: nn.Sequential(nn.Linear(4, 3000), nn.Linear(3000, 2500), nn.Linear(2500, 3)))
    assert most_replicas(replace(CONFIG, batch_size=5), problem) == 16
    assert most_replicas(replace(CONFIG, batch_size=30), problem) == 1
    assert most_replicas(replace(CONFIG, method="gd"), problem) == 1
    assert most_replicas(replace(CONFIG, batch_size=30, device="cuda"), problem) == 17


def test_convolutions_gain_in_small_steps_of_many_models():
    def images(channels):
        problem = problem_of(lambda: nn.Sequential(nn.Conv2d(1, channels, 3), nn.Flatten(), nn.Linear(4 * channels, 3)))
        return replace(problem, train=(torch.randn(30, 1, 4, 4), problem.train[1]))

    assert limit(CONFIG, images(2)) == Limit(16, least=4)
    assert most_replicas(replace(CONFIG, batch_size=30), images(4000)) == 1
    assert most_replicas(replace(CONFIG, batch_size=30, device="cuda"), images(4000)) > 1


def test_replicas_fit_into_memory():
    problem = problem_of(lambda: nn.Sequential(nn.Linear(4, 3_000_000), nn.Linear(3_000_000, 3)))
    assert most_replicas(replace(CONFIG, batch_size=1), problem) == 5


def test_only_small_evaluations_gain_through_vmap():
    small = problem_of(lambda: nn.Linear(4, 3))
    assert gains_in_evaluation(small)
    assert not gains_in_evaluation(problem_of(lambda: nn.Sequential(nn.Linear(4, 90_000), nn.Linear(90_000, 3))))


def test_a_limit_of_one_says_why():
    problem = problem_of(lambda: nn.Linear(4, 3))
    assert limit(CONFIG, problem) == Limit(16)
    assert limit(CONFIG, problem_of(REASONS["some of its weights are not trained"])).reason.endswith("are not trained")
    for part in ("train", "test"):
        read_later = replace(problem, **{part: TensorDataset(*problem.train)})
        assert limit(CONFIG, read_later) == Limit(1, "its samples are read when they are needed")
    assert "so much arithmetic" in limit(RunConfig("some", "sngd", batch_size=30), problem_of(Wide)).reason


class Wide(nn.Linear):
    """A step of it takes far longer than to start its operations."""

    def __init__(self):
        super().__init__(4, 3)
        self.repeated = nn.Linear(2000, 2000)

    def forward(self, x):
        return super().forward(x) + self.repeated(x.new_zeros(len(x), 2000)).mean(1, keepdim=True)
