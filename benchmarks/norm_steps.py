"""What a step in each norm costs: ratios to a step of AdamW(fused), measured interleaved in one process.

    python benchmarks/norm_steps.py [--json FILE] [--quick]

Two sets of weights: shakespeare-gpt's 0.8 M, and the 124 M of GPT-2's shapes. The parts of the step that all norms
share (a running mean, the update) are in each time. "spectral, one by one" is the spectral step with the iteration
called for each matrix, as a loop over matrices does it; "spectral" calls it for all matrices of a shape together.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sngd
from sngd.norms import Norm, Spectral
from sngd.problems.gpt import GPT
from sngd.training.environment import environment
from sngd.training.run_folder import write_json

PEER = "AdamW(fused)"


class OneByOne(Spectral):
    """The spectral norm without batching."""

    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        return [unit for v in vs for unit in super(OneByOne, self).units([v])]


def small() -> nn.Module:
    return GPT(65, context=64, layers=4, heads=4, width=128)


def gpt2() -> nn.Module:
    return GPT(50257, context=1024, layers=12, heads=12, width=768)


def with_gradients(build: Callable[[], nn.Module]) -> nn.Module:
    model = build()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def steps(model: nn.Module) -> dict[str, Callable[[], object]]:
    """A step of each kind. All work on the same weights; each has buffers of its own."""
    everything = list(model.parameters())
    hidden = [p for group in sngd.groups(model) if group["kind"] == "hidden" for p in group["params"]]

    def in_norm(params: Iterable[Any], norm: Norm | str = "l2") -> Callable[[], object]:
        return sngd.SNGD(params, lr=1e-9, norm=norm, momentum=0.9, normalize="momentum").step

    return {
        PEER: torch.optim.AdamW(everything, lr=1e-9, fused=True).step,
        **{norm: in_norm(everything, norm) for norm in ("l2", "layer", "sign", "row", "col")},
        "spectral, hidden matrices": in_norm(hidden, "spectral"),
        "spectral, hidden matrices one by one": in_norm(hidden, OneByOne()),
        "sngd.groups": in_norm(sngd.groups(model, 1e-9)),
    }


def medians(sides: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each side, called in turn, after one call that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(1 + repetitions):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps in each norm, as ratios to AdamW's.")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="the small weights alone, few repetitions")
    arguments = parser.parse_args()

    models = {"shakespeare-gpt, 0.8 M weights": (small, 3 if arguments.quick else 50)}
    if not arguments.quick:
        models["GPT-2, 124 M weights"] = (gpt2, 5)
    results = {}
    for title, (build, repetitions) in models.items():
        times = medians(steps(with_gradients(build)), repetitions)
        ratios = {name: seconds / times[PEER] for name, seconds in times.items()}
        results[title] = {"median_seconds": times, "ratio": ratios, "repetitions": repetitions}
        print(f"{title}: {PEER} {1e3 * times[PEER]:.3g} ms")
        for name, ratio in ratios.items():
            print(f"  {name}: {ratio:.2f}")
    if arguments.json:
        about = {**environment(), "threads": torch.get_num_threads()}
        write_json(arguments.json, {"command": "python benchmarks/norm_steps.py", "results": results, **about})


if __name__ == "__main__":
    main()
