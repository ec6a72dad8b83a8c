"""Training through torch.compile: the numbers of the plain way, one compilation a shape, and one way out."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from outcomes import assert_bitwise_equal, outcome
from torch import nn

from sngd.problems import Problem
from sngd.problems.resnet import cifar_resnet
from sngd.studies.runs import all_runs
from sngd.training import Interrupted, RunConfig, train
from sngd.training.compiled import pays
from sngd.training.ranks import Ranks
from sngd.training.run_state import RunState

CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=4, threads=1, compile=True)

needs_a_compiler = pytest.mark.skipif(
    not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")), reason="there is no C++ compiler"
)


def same_numbers(_call):
    """In the place of a compiler: what it is given, as it is."""

    def compiled(function, **_options):
        return lambda *args: _call(function, *args)

    return compiled


def other_chance(function, *args):
    torch.rand(1)
    return function(*args)


def failing(*_):
    raise RuntimeError("\nNo working C++ compiler found\nand much more")


def compiled_sizes(monkeypatch, config, problem):
    """The sizes of the batches that go through compiled code after the trial, and of all batches."""
    compiled, every = [], []

    def noting(function, model, loss, inputs, targets):
        compiled.append(len(inputs))
        return function(model, loss, inputs, targets)

    monkeypatch.setattr(torch, "compile", same_numbers(noting))
    run = RunState(config.resolved(60), problem())
    assert run.compile() is None
    compiled.clear()
    original = run.loss_of
    run.loss_of = lambda batch: (every.append(len(batch[0])), original(batch))[1]
    for _ in range(3):
        run.step()
    return compiled, every


@pytest.mark.parametrize(
    ("method", "params", "compiled", "every"),
    [
        ("sngd", {}, [7, 7, 7], [7, 7, 7]),
        ("gd", {"chunk_size": 25}, [25, 25] * 3, [25, 25, 10] * 3),
        (
            "spider-sfo",
            {"anchor_batch_size": 20, "period": 2, "chunk_size": 8},
            [8, 8, 7, 7, 8, 8],
            [8, 8, 4, 7, 7, 8, 8, 4],
        ),
        ("svrg", {"period": 2}, [60, 7, 7, 60], [60, 7, 7, 60]),
    ],
)
def test_batches_of_the_usual_sizes_are_compiled_and_rests_are_not(monkeypatch, tiny, method, params, compiled, every):
    config = replace(CONFIG, method=method, params=params, epochs=20)
    assert compiled_sizes(monkeypatch, config, tiny) == (compiled, every)


def test_the_trial_leaves_no_trace(monkeypatch, tiny):
    monkeypatch.setattr(torch, "compile", same_numbers(lambda function, *args: function(*args)))
    tried, other = (RunState(CONFIG.resolved(60), tiny()) for _ in range(2))
    before = torch.get_rng_state()
    assert tried.compile() is None
    assert torch.equal(before, torch.get_rng_state())
    saved, expected = tried.state_dict(False), other.state_dict(False)
    for name, tensor in expected["model"].items():
        assert torch.equal(saved["model"][name], tensor)
    assert all(param.grad is None for param in tried.model.parameters())


@pytest.mark.parametrize(
    ("precision", "factor", "same"), [("float32", 1.1, False), ("bfloat16", 1.1, True), ("bfloat16", 1.5, False)]
)
def test_products_of_bfloat16_may_be_rounded_as_bfloat16_is(monkeypatch, tiny, precision, factor, same):
    """Compiled code rounds the results of several operations once, and a gradient may be some percent away."""
    monkeypatch.setattr(torch, "compile", same_numbers(lambda function, *args: factor * function(*args)))
    run = RunState(replace(CONFIG, precision=precision).resolved(60), tiny())
    assert (run.compile() is None) == same


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (failing, "torch.compile cannot do it (No working C++ compiler found)"),
        (lambda function, *args: 1.1 * function(*args), "its loss or gradient comes out differently when compiled"),
        (lambda function, *args: function(*args).detach().requires_grad_(), "its loss or gradient comes out"),
        (lambda function, m, *args: function(m.eval(), *args), "other random numbers are drawn when compiled"),
        (other_chance, "other random numbers are drawn when compiled"),
    ],
)
def test_what_cannot_be_compiled_is_trained_plainly_with_one_warning(monkeypatch, tmp_path, tiny, call, reason):
    train(replace(CONFIG, compile=False), tmp_path / "plain", problem=tiny)
    monkeypatch.setattr(torch, "compile", same_numbers(call))
    told = []
    train(CONFIG, tmp_path / "run", problem=tiny, on_warning=told.append)
    (warning,) = told
    assert warning.startswith(f"tiny: steps are not compiled, because {reason}")
    assert "\n" not in warning
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "plain"))


def test_a_compiler_that_is_stopped_with_the_run_makes_no_plain_step(monkeypatch, tmp_path, tiny):
    working = same_numbers(lambda function, *args: function(*args))
    monkeypatch.setattr(torch, "compile", working)
    train(CONFIG, tmp_path / "whole", problem=tiny)
    monkeypatch.setattr(torch, "compile", same_numbers(failing))
    told = []
    with pytest.raises(Interrupted, match="stopped after 0 steps"):
        train(CONFIG, tmp_path / "run", problem=tiny, on_warning=told.append, should_stop=lambda: True)
    monkeypatch.setattr(torch, "compile", working)
    train(CONFIG, tmp_path / "run", problem=tiny, on_warning=told.append, resume=True)
    assert told == []
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_statistics_that_come_out_differently_are_noticed(monkeypatch):
    def without_statistics(function, model, *args):
        model[1].momentum = 0.0
        return function(model, *args)

    monkeypatch.setattr(torch, "compile", same_numbers(without_statistics))
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    problem = Problem(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        nn.functional.mse_loss,
        (x, x[:, :1]),
    )
    reason = RunState(CONFIG.resolved(60), problem).compile()
    assert reason == "its buffers, such as BatchNorm's statistics, come out differently when compiled"


def test_methods_with_second_derivatives_and_several_processes_are_trained_plainly(tiny):
    run = RunState(replace(CONFIG, method="natasha2").resolved(60), tiny())
    assert run.compile() == "natasha2 needs second derivatives"
    run = RunState(CONFIG.resolved(60), tiny(), Ranks(0, 2))
    assert run.compile() == "several processes train together"


def test_an_embedding_is_compiled_for_one_thread_only(monkeypatch):
    monkeypatch.setattr(torch, "compile", same_numbers(lambda function, *args: function(*args)))
    tokens = torch.arange(60).reshape(60, 1) % 5
    problem = Problem(
        lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(4, 2)),
        nn.functional.cross_entropy,
        (tokens, tokens[:, 0] % 2),
    )
    run = RunState(CONFIG.resolved(60), problem)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert run.compile() == "an embedding's gradient would be summed in any order, take --threads 1 on a CPU"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert run.compile() is None


def test_a_run_from_before_the_setting_goes_on_as_it_was(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr(torch, "compile", same_numbers(failing))
    plain = replace(CONFIG, compile=False)
    train(plain, tmp_path / "whole", problem=tiny)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "run", problem=tiny, should_stop=lambda: True)
    path = tmp_path / "run/config.json"
    stored = json.loads(path.read_text())
    assert stored.pop("compile") is False
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="cannot resume with other settings: compile is False, not True"):
        train(CONFIG, tmp_path / "run", problem=tiny, resume=True)
    train(plain, tmp_path / "run", problem=tiny, resume=True)
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


# ---- whether it pays


def long_run(problem, times):
    """A run whose layers are ``times`` as many operations as are enough."""
    each = 2 * (
        27 * 4 * 16 + 64 * 3
    )  # a multiplication and an addition for each weight, of the convolution at 16 places
    return replace(CONFIG, compile=None, epochs=times * 1e15 / (3 * each * problem.n))


@pytest.fixture
def alone(monkeypatch):
    """As if runs of small networks gained nothing by being trained as one."""
    monkeypatch.setattr("sngd.training.compiled.most_replicas", lambda *_: 1)


@pytest.mark.usefixtures("alone")
def test_it_pays_in_long_runs_of_convolutional_networks():
    problem = convolutional()
    model = problem.build_model()
    chance = torch.get_rng_state()
    assert [pays(model, long_run(problem, times), problem) for times in (0.999, 1.001)] == [False, True]
    assert torch.equal(torch.get_rng_state(), chance)


def test_runs_that_could_be_trained_as_one_are_all_plain():
    """Otherwise the runs of an arm, which differ in their seed, would differ in this as well, by how many there are."""
    problem = convolutional()
    assert not pays(problem.build_model(), long_run(problem, 1e6), problem)


@pytest.mark.parametrize(("depth", "passes"), [(8, 273), (20, 83)])
def test_the_passes_over_cifar10_that_the_documentation_names(depth, passes):
    images = torch.zeros(2, 3, 32, 32)
    problem = Problem(lambda: cifar_resnet(depth), nn.functional.cross_entropy, (images, torch.zeros(2).long()))
    config = RunConfig("cifar10-resnet", "sngd", batch_size=128)
    configs = [replace(config, epochs=25_000 * (passes - less)) for less in (1, 0)]  # of two samples, not 50,000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sngd.training.compiled.most_replicas", lambda *_: 1)
        assert [pays(problem.build_model(), one, problem) for one in configs] == [False, True]
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text(encoding="utf-8")
    assert f"ResNet{depth} from {passes}" in page


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("config", "ranks", "answer"),
    [
        ({}, Ranks(), True),
        ({"method": "natasha2"}, Ranks(), False),
        ({}, Ranks(0, 2), False),
        ({"epochs": 1}, Ranks(), False),
    ],
)
def test_it_pays_for_whom(monkeypatch, config, ranks, answer):
    monkeypatch.setattr("sngd.training.compiled._ENOUGH", 3 * 60 * 2 * 1920 * 3.0)
    run = RunState(replace(CONFIG, compile=None, **config).resolved(60), convolutional(), ranks)
    assert run.compiling_pays() is answer


def test_what_has_no_convolution_never_pays(tiny):
    problem = tiny()
    assert not pays(problem.build_model(), replace(CONFIG, epochs=1e9), problem)


@pytest.mark.usefixtures("alone")
def test_a_model_that_cannot_be_asked_is_not_compiled(monkeypatch):
    monkeypatch.setattr("sngd.training.compiled._ENOUGH", 0)
    problem = convolutional()
    fixed = replace(problem, build_model=lambda: nn.Sequential(problem.build_model(), nn.Unflatten(0, (3, 20))))
    assert pays(problem.build_model(), CONFIG, problem)
    assert not pays(fixed.build_model(), CONFIG, fixed)  # which takes 60 samples, and no others


@pytest.mark.usefixtures("alone")
def test_asking_changes_nothing_of_the_run(monkeypatch, tmp_path):
    """Not even of a model that sets itself up by the first samples that it sees."""

    class SetUp(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.zeros(()))

        def forward(self, x):
            if self.scale == 0:
                self.scale.copy_(1 / x.std())
            return x * self.scale

    problem = convolutional()
    own = replace(problem, build_model=lambda: nn.Sequential(SetUp(), problem.build_model()))
    monkeypatch.setattr("sngd.training.compiled._ENOUGH", 1e300)
    for name, given in (("asked", None), ("told", False)):
        train(replace(CONFIG, compile=given), tmp_path / name, problem=lambda: own)
    assert_bitwise_equal(outcome(tmp_path / "asked"), outcome(tmp_path / "told"))


@pytest.mark.parametrize(
    ("given", "paid", "expected"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_a_new_run_is_compiled_if_it_pays_or_as_it_is_told(monkeypatch, tmp_path, tiny, given, paid, expected):
    monkeypatch.setattr(torch, "compile", same_numbers(lambda function, *args: function(*args)))
    monkeypatch.setattr(RunState, "compiling_pays", lambda _: paid)
    compiled = []
    original = RunState.compile
    monkeypatch.setattr(RunState, "compile", lambda run: compiled.append(run) or original(run))
    config = replace(CONFIG, compile=given)
    with pytest.raises(Interrupted):
        train(config, tmp_path, problem=tiny, should_stop=lambda: True)
    assert json.loads((tmp_path / "config.json").read_text())["compile"] is expected
    monkeypatch.setattr(RunState, "compiling_pays", lambda _: not paid)  # a run goes on as it was begun
    train(config, tmp_path, problem=tiny, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["compile"] is expected
    assert len(compiled) == 2 * expected


@pytest.mark.parametrize("without", ["no entry", "null"])
def test_the_command_of_a_run_from_before_repeats_it(tmp_path, tiny, without):
    train(replace(CONFIG, compile=False), tmp_path, problem=tiny)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["compile"]
    path.write_text(json.dumps(stored | ({"compile": None} if without == "null" else {})))
    (run,) = all_runs(tmp_path)
    assert "--no-compile" in run.settings.command()
    train(replace(CONFIG, compile=False), tmp_path, problem=tiny, resume=True)


# ---- with a real compiler ------------------------------------------------------------------------------------


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def convolutional():
    """Images of bytes, prepared channels last; convolution, BatchNorm and dropout."""
    x = torch.randint(0, 256, (60, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def prepare(images):
        return images.contiguous(memory_format=torch.channels_last).float().div_(255)

    def model():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
        )

    return Problem(model, nn.functional.cross_entropy, (x, x[:, 0, 0, 0].long() % 3), prepare=prepare)


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("method", "sizes"), [("sngd", 1), ("spider-sfo", 2)])
def test_compiled_steps_have_the_same_numbers_and_go_on_bit_for_bit(tmp_path, method, sizes):
    config = replace(CONFIG, method=method, params={"chunk_size": 20} if method == "spider-sfo" else {})
    before = graphs()
    train(config, tmp_path / "whole", problem=convolutional)
    assert graphs() - before == sizes
    train(replace(config, compile=False), tmp_path / "plain", problem=convolutional)
    rows, plain = (outcome(tmp_path / name)[1] for name in ("whole", "plain"))
    for row, expected in zip(rows, plain, strict=True):
        for key in ("train_loss", "grad_norm"):
            assert row[key] == pytest.approx(expected[key], rel=1e-3)
    stops = iter([False] * 5 + [True])
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", problem=convolutional, should_stop=lambda: next(stops))
    train(config, tmp_path / "run", problem=convolutional, resume=True)
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@needs_a_compiler
@pytest.mark.slow
def test_more_runs_in_a_process_than_torch_compiles_one_function_are_all_compiled(plain):
    before = graphs()
    with torch._dynamo.config.patch(cache_size_limit=1):
        for size in (5, 6, 7):
            assert RunState(replace(CONFIG, batch_size=size).resolved(60), plain()).compile() is None
    assert graphs() - before == 3


SCRIPT = """
import sys
from pathlib import Path
import torch
from small_problems import plain_problem
from sngd.training import RunConfig, train

for seed in (0, 1):
    config = RunConfig("plain", "sngd", seed=seed, batch_size=7, epochs=1, threads=1, compile=True)
    train(config, Path(sys.argv[1]) / str(seed), problem=plain_problem, on_warning=print)
counted = torch._dynamo.utils.counters["inductor"]
print(counted["fxgraph_cache_hit"] > 0, counted["fxgraph_cache_miss"] > 0)
"""


def in_another_process(folder, **variables):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=variables).stdout.splitlines()


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)  # a cold cache, on a machine that may be busy
def test_another_process_finds_what_was_compiled(tmp_path):
    cache = str(tmp_path / "cache")
    assert in_another_process(tmp_path / "first", TORCHINDUCTOR_CACHE_DIR=cache) == ["True True"]
    assert in_another_process(tmp_path / "second", TORCHINDUCTOR_CACHE_DIR=cache) == ["True False"]


@pytest.mark.slow
def test_without_a_compiler_runs_are_trained_with_a_warning(tmp_path):
    lines = in_another_process(
        tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), CXX="/nowhere/g++", PATH="/nowhere"
    )
    assert all(line.startswith("plain: steps are not compiled, because torch.compile cannot") for line in lines[:2])
    assert len(lines) == 3
