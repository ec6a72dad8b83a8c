"""What a GPU gains from many runs at once, and from steps as CUDA graphs; and what a step of the optimizer is made of.

    python benchmarks/gpu.py [--json FILE]    # samples are random, so that no data set is needed

Measured are the wall times of some steps until the device has done them, all sides in turn. With `--device cpu` it runs
without a GPU, with few runs and without graphs, to see that it works.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sngd import SNGD
from sngd.bench.step import COPY, MODELS, SHAPES
from sngd.bench.timing import Call, interleaved, ratio, spread
from sngd.problems import Problem
from sngd.problems.augment import random_crop_and_flip
from sngd.problems.cifar10 import prepare
from sngd.problems.models import mlp
from sngd.problems.resnet import cifar_resnet
from sngd.training import RunConfig
from sngd.training.environment import environment
from sngd.training.graphed import record
from sngd.training.repeatable import repeatable, without_tf32
from sngd.training.replicas.stack import Stack
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState

REPLICAS = (1, 16, 64, 256)
AT_ONCE = 4  # runs on streams of their own
SECONDS = 10.0  # for each comparison
PASSES = 160
PRECISIONS = ("float32", "bfloat16")

Cases = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="steps in a measurement")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each comparison")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    given = parser.parse_args()
    measured: dict[str, Cases] = {}
    for measure in (cases, side_by_side, kernels, kernels_of_a_step):
        with repeatable(threads=1), without_tf32():  # as runs do
            found = measured[measure.__name__] = measure(given.device, given.steps, given.seconds)
        print(*found, sep="\n", flush=True)
        if given.json:
            write_json(given.json, {"environment": environment(), **measured})


# --- runs


def random_problem(name: str, device: str) -> Problem:
    """The built-in problem with random samples; on the CPU with few."""
    generator = torch.Generator().manual_seed(0)
    loss = nn.functional.cross_entropy
    n = 50_000 if device != "cpu" else 500

    def drawn(count: int, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (count, *shape), dtype=torch.uint8, generator=generator)

    labels, test_labels = drawn(n, 10).long(), drawn(n // 5, 10).long()
    if name == "mnist-mlp":
        train, test = (drawn(count, 256, 784).float() / 255 for count in (n, n // 5))
        return Problem(partial(mlp, 784, 100, 10), loss, (train, labels), (test, test_labels))
    train, test = (drawn(count, 256, 3, 32, 32) for count in (n, n // 5))
    model = partial(cifar_resnet, int(name.removeprefix("cifar10-resnet")))
    return Problem(model, loss, (train, labels), (test, test_labels), augment=random_crop_and_flip, prepare=prepare)


def config_of(name: str, batch_size: int, device: str, precision: str = "float32") -> RunConfig:
    return RunConfig(
        name,
        "sngd",
        lr=1e-3,
        batch_size=batch_size,
        epochs=1e6,
        curve_samples=0,
        device=device,
        threads=1,
        precision=precision,
    )


def cases(device: str, steps: int, seconds: float) -> Cases:
    """The time of a step: of runs that are trained as one, and of single ones, as graphs and compiled."""
    found = replicas(device, steps, seconds)
    for name, batch_size in (("cifar10-resnet8", 128), ("cifar10-resnet20", 128), ("cifar10-resnet20", 4096)):
        problem = random_problem(name, device)
        found += graphs(name, min(batch_size, problem.n // 5), problem, device, steps, seconds)
    return found


def replicas(device: str, steps: int, seconds: float) -> Cases:
    """The time of a step of so many runs that are trained as one, over the time of a step of a single run."""
    problem = random_problem("mnist-mlp", device)
    config = config_of("mnist-mlp", 128, device).resolved(problem.n)
    counts = REPLICAS if device != "cpu" else (1, 4)
    sides: dict[str, Callable[[], object]] = {"1": RunState(config, problem).step}
    for count in counts[1:]:
        stack = Stack([RunState(replace(config, seed=seed), problem) for seed in range(count)])
        sides[str(count)] = partial(stack.step, range(count))
    times = timed(sides, device, steps, seconds)
    return [
        {
            "case": f"{config.problem}, {count} replicas",
            "milliseconds": round(1e3 * spread(times[count]).median / steps, 4),
            "ratio": rounded(times[count], times["1"]),
        }
        for count in sides
    ]


def graphs(name: str, batch_size: int, problem: Problem, device: str, steps: int, seconds: float) -> Cases:
    """A run's step with graphs and without, and the time of 160 passes of steps; with float32, unless it says so.

    ``graphs`` are two, of the loss and of its gradient; ``one graph`` has the whole step. A graph keeps its memory, so
    those of large batches are measured in bfloat16 alone.
    """
    steps = max(1, steps * 128 // batch_size)
    configs = {p: config_of(name, batch_size, device, p).resolved(problem.n) for p in PRECISIONS}
    runs = {"single operations": RunState(configs["float32"], problem)}
    if device != "cpu":
        for precision in PRECISIONS if batch_size <= 128 else ("bfloat16",):
            words = "" if precision == "float32" else f", {precision}"
            runs[f"graphs{words}"] = recorded(RunState(configs[precision], problem), whole=False)
            runs[f"one graph{words}"] = recorded(RunState(configs[precision], problem))
        runs["graphs, bfloat16, compiled"] = recorded(compiled(RunState(configs["bfloat16"], problem)), whole=False)
        runs["one graph, bfloat16, compiled"] = recorded(compiled(RunState(configs["bfloat16"], problem)))
    began = time.perf_counter()
    runs["single operations"].evaluate()
    evaluation = round(time.perf_counter() - began, 3)
    times = timed({name: run.step for name, run in runs.items()}, device, steps, seconds)
    return [
        {
            "case": f"{name}, b={batch_size}, {how}",
            "milliseconds": round(1e3 * spread(found).median / steps, 4),
            "seconds_of_160_passes": round(spread(found).median / steps * PASSES * problem.n / batch_size, 1),
            "ratio": rounded(found, times["single operations"]),
            "seconds_of_an_evaluation": evaluation,
        }
        for how, found in times.items()
    ]


def side_by_side(device: str, steps: int, seconds: float) -> Cases:
    """The time of a step for each of several runs whose graphs are on streams of their own."""
    if device == "cpu":
        return []
    problem = random_problem("cifar10-resnet20", device)
    config = config_of("cifar10-resnet20", 128, device, "bfloat16").resolved(problem.n)
    sides = {}
    for how, made in (("bfloat16", lambda run: run), ("bfloat16, compiled", compiled)):
        runs = [recorded(made(RunState(config, problem))) for _ in range(AT_ONCE)]
        sides[how] = partial(_all_at_once, runs, [torch.cuda.Stream() for _ in runs])
    times = timed(sides, device, steps, seconds)
    return [
        {"how": how, "runs": AT_ONCE, "milliseconds_for_each": round(1e3 * spread(found).median / steps / AT_ONCE, 4)}
        for how, found in times.items()
    ]


def _all_at_once(runs: Sequence[RunState], streams: Sequence[torch.cuda.Stream]) -> None:
    for run, stream in zip(runs, streams, strict=True):
        with torch.cuda.stream(stream):
            run.step()


def compiled(run: RunState) -> RunState:
    if reason := run.compile():
        raise SystemExit(f"{run.config.problem}: steps are not compiled, because {reason}")
    return run


def recorded(run: RunState, whole: bool = True) -> RunState:
    """The run, whose steps are CUDA graphs from now on, each of them a single one if ``whole``."""
    reason = run.record()
    if not reason and whole:
        run.step()  # makes the optimizer's state
        reason = run.record_whole_step()
    if reason:
        raise SystemExit(f"{run.config.problem}: steps are not CUDA graphs, because {reason}")
    if not whole:
        run.whole = None
    return run


# --- the optimizer's step


def kernels(device: str, steps: int, seconds: float) -> Cases:
    """The kernels that a step of SNGD consists of, each as a graph, and the step itself."""
    found = []
    for model in ("mlp", "tiny") if device == "cpu" else MODELS:
        params: list[Tensor] = [nn.Parameter(1e-4 * torch.randn(shape, device=device)) for shape in SHAPES[model]()]
        for param in params:
            param.grad = 1e-4 * torch.randn_like(param)
        sides = _parts_of_a_step(params, device)
        times = timed(sides, device, steps, seconds / 4)
        found += [
            {"weights": model, "what": what, "microseconds": round(1e6 * spread(some).median / steps, 1)}
            for what, some in times.items()
        ]
    return found


def _parts_of_a_step(params: list[Tensor], device: str) -> dict[str, Call]:
    grads = [p.grad for p in params if p.grad is not None]
    source, target = torch.zeros(2, 2 * sum(p.numel() for p in params), device=device)
    rate = torch.tensor(1e-12, device=device) if device != "cpu" else 1e-12
    optimizer, captured = SNGD(params, 1e-12), SNGD(params, rate, capturable=device != "cpu")

    def norm() -> Tensor:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    def fused() -> None:
        options: dict[str, Any] = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0}
        torch._fused_sgd_(params, grads, [], lr=rate, nesterov=False, maximize=False, is_first_step=False, **options)

    alone = {"the norm": norm, "the fused kernel of SGD": fused, "SNGD's step": captured.step}
    as_graphs: dict[str, Call] = {}
    if device != "cpu":
        with torch.no_grad():
            as_graphs = {f"{what}, as a graph": record([call])[0].repeat for what, call in alone.items()}
    return {COPY: lambda: target.copy_(source), **as_graphs, "SNGD's step": optimizer.step}


# --- the kernels of a whole step


def kernels_of_a_step(device: str, _steps: int, _seconds: float) -> Cases:
    """How many kernels ResNet20's step has, and their time on the device; without graphs."""
    activity = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    problem = random_problem("cifar10-resnet20", device)
    found = []
    for precision in PRECISIONS:
        run = RunState(config_of("cifar10-resnet20", 128, device, precision).resolved(problem.n), problem)
        for _ in range(3):
            run.step()
        with profile(activities=[activity]) as events:
            run.step()
            if device != "cpu":
                torch.cuda.synchronize()
        rows = events.key_averages()
        times = [row.self_cpu_time_total if device == "cpu" else row.self_device_time_total for row in rows]
        found.append(
            {
                "case": f"cifar10-resnet20, b=128, {precision}",
                "kernels": sum(row.count for row in rows),
                "milliseconds": round(sum(times) / 1e3, 3),
            }
        )
    return found


# --- times


def rounded(times: list[float], others: list[float]) -> list[float]:
    """The ratio's median and quartiles."""
    return [round(value, 3) for value in ratio(times, others)]


def timed(sides: Mapping[str, Callable[[], object]], device: str, steps: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of so many steps of each side, until the device has done them."""

    def repeated(step: Callable[[], object]) -> Call:
        def call() -> None:
            for _ in range(steps):
                step()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return call

    return interleaved({name: repeated(step) for name, step in sides.items()}, seconds=seconds, warm_up=2)


if __name__ == "__main__":
    main()
