"""Two ratios, measured interleaved in one process: an SNGD step against clipping, an engine epoch against a DataLoader.

    python benchmarks/first_look.py [--json FILE]

The machine's noise hits both sides of a ratio alike, so medians of interleaved repetitions are compared, never times
of different runs. The epoch uses MNIST if it is found (SNGD_DATA), else random data of its shape: the arithmetic and
its time are the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sngd import SNGD
from sngd.problems import Problem, load_problem
from sngd.problems.models import mlp
from sngd.problems.resnet import cifar_resnet
from sngd.training import RunConfig
from sngd.training.environment import environment
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState


def medians(sides: dict[str, Callable[[], None]], repetitions: int, warm_up: int) -> dict[str, float]:
    """Median seconds of each side, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(warm_up + repetitions):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if repetition >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def step_sides() -> dict[str, Callable[[], None]]:
    """One step on ResNet56's 167 parameter shapes: SNGD, and what people write today."""

    def parameters() -> list[nn.Parameter]:
        params = [nn.Parameter(torch.randn_like(p)) for p in cifar_resnet(56).parameters()]
        for p in params:
            p.grad = torch.randn_like(p)
        return params

    ours, theirs = parameters(), parameters()
    assert len(ours) == 167
    normalized = SNGD(ours, lr=1e-6)
    plain = torch.optim.SGD(theirs, lr=1e-6, foreach=True)

    def clip_and_step() -> None:
        nn.utils.clip_grad_norm_(theirs, 1.0)
        plain.step()

    return {"SNGD": normalized.step, "clip_grad_norm_ + SGD(foreach)": clip_and_step}


def epoch_sides(problem: Problem) -> dict[str, Callable[[], None]]:
    """One epoch of SGD at batch 128 on the MNIST perceptron: the engine, and a loop over a DataLoader."""
    config = RunConfig("mnist-mlp", "sgd", batch_size=128, epochs=1e6, threads=torch.get_num_threads()).resolved()
    run = RunState(config, problem)
    steps = -(-problem.n // 128)

    def engine() -> None:
        for _ in range(steps):
            run.step()

    model = problem.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(*problem.train), batch_size=128, shuffle=True)

    def dataloader() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()

    return {"engine": engine, "DataLoader loop": dataloader}


def mnist() -> tuple[Problem, str]:
    try:
        return load_problem("mnist-mlp"), "MNIST"
    except ValueError:
        x, y = torch.rand(60000, 784), torch.randint(10, (60000,))
        build: Callable[[], nn.Module] = lambda: mlp(784, 100, 10)  # noqa: E731
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
        return Problem(build, loss, (x, y)), "random data of MNIST's shape"


def main() -> None:
    parser = argparse.ArgumentParser(description="Two ratios against what people write today.")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it runs")
    arguments = parser.parse_args()

    problem, data = mnist()
    results = {}
    for title, sides, repetitions in (
        ("step, ResNet56's 167 shapes", step_sides(), 20 if arguments.quick else 300),
        (f"epoch, batch 128, {data}", epoch_sides(problem), 1 if arguments.quick else 7),
    ):
        times = medians(sides, repetitions, warm_up=max(1, repetitions // 10))
        (ours, ours_s), (theirs, theirs_s) = times.items()
        results[title] = {"median_seconds": times, "ratio": ours_s / theirs_s, "repetitions": repetitions}
        print(f"{title}: {ours} {1e3 * ours_s:.3g} ms, {theirs} {1e3 * theirs_s:.3g} ms, ratio {ours_s / theirs_s:.2f}")
    if arguments.json:
        about = {**environment(), "threads": torch.get_num_threads()}
        write_json(arguments.json, {"command": "python benchmarks/first_look.py", "results": results, **about})


if __name__ == "__main__":
    main()
