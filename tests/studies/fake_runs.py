"""Run folders as the engine leaves them, without training anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from sngd.studies.runs import Study, read_study

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "numpy": "2.2.0",
    "sngd": "0.1.0",
    "platform": "Linux",
    "threads": 1,
}


def write_run(
    path: Path,
    label: str = "sngd",
    seed: int = 0,
    *,
    lr: float = 0.1,
    floor: float = 0.05,
    epochs: int = 10,
    every: float = 1.0,
    noise: float = 0.05,
    stop: int | None = None,
    diverge: int | None = None,
    drawn: bool = False,
    test: bool = True,
    tracked: bool = False,
    answer: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """One run whose training loss decays to about `floor`.

    `stop` leaves it unfinished and `diverge` makes it diverge after so many rows; `drawn` ends it with a random
    iterate; `tracked` adds what `--track smoothness,noise,curvature` does; `answer` overwrites fields of the last row.
    """
    path.mkdir(parents=True)
    settings = {
        "problem": "digits-mlp", "method": label.split()[0], "label": label, "lr": lr, "batch_size": 32,
        "epochs": epochs, "seed": seed, "weight_decay": 0.0, "plan": None, "params": {},
        "output": "random" if drawn else "last", "device": "cpu", "threads": 1, "eval_every": every,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(settings | (config or {})))
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    rows = [_row(i * every, seed, lr, floor, noise, test) for i in range(int(epochs / every) + 1)]
    if tracked:
        rows = [row | _tracked(row["grads_over_n"]) for row in rows]
    if diverge is not None:
        rows = rows[: diverge + 1]
        rows[-1] |= {"train_loss": None, "test_loss": None, "grad_norm": None, "diverged": True, "final": True}
    elif stop is not None:
        rows = rows[: stop + 1]
    else:
        if drawn:
            rows.append(rows[-1] | {"iterate": "random", "train_loss": 1.5 * rows[-1]["train_loss"]})
        rows[-1] |= {"final": True} | (answer or {})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(cost: float, seed: int, lr: float, floor: float, noise: float, test: bool) -> dict[str, Any]:
    jitter = 1 + noise * random.Random(f"{cost} {seed} {floor}").uniform(-1, 1)
    loss = (floor + 2.3 * math.exp(-cost / 2)) * jitter
    accuracy = 0.98 - 0.35 * min(loss, 2.5)
    return {
        "step": int(45 * cost), "epoch": cost, "oracle_calls": int(1437 * cost), "grads_over_n": cost, "lr": lr,
        "train_loss": loss, "train_accuracy": accuracy, "test_loss": 1.1 * loss if test else None,
        "test_accuracy": accuracy - 0.01 if test else None, "grad_norm": 0.7 * loss, "skipped_steps": 0,
        "seconds": 0.02 * cost, "iterate": "last", "final": False, "diverged": False,
    }  # fmt: skip


def _tracked(cost: float) -> dict[str, Any]:
    sharp, noise = 2 + cost, 10 * 1.5**cost
    return {
        "noise_variance": 4.0, "noise_variance_low": 3.0, "noise_variance_high": 5.0, "noise_scale": noise,
        "noise_scale_low": 0.8 * noise, "noise_scale_high": None, "smoothness_grad_norm": 1.0,
        "smoothness_along": 0.5 * sharp, "smoothness_off": 0.2 * sharp, "hessian_max": sharp,
        "hessian_max_error": 0.01, "hessian_min": -0.1 * sharp, "hessian_min_error": 0.01, "tracking_calls": 0,
    }  # fmt: skip


def write_study(folder: Path, floors: dict[str, float] | None = None, seeds: int = 3, **options: Any) -> Path:
    """A folder as `sngd compare --tune` leaves it, with a run for every label and seed."""
    floors = floors or {"sgd": 0.12, "sngd": 0.06, "s-sngd": 0.02}
    for label, floor in floors.items():
        for seed in range(seeds):
            write_run(folder / "runs" / label / f"seed-{seed}", label, seed, floor=floor, **options)
    grid = [0.01, 0.1, 0.5]
    outcomes = [
        {"label": label, "lr": lr, "train_loss": None if lr == 0.5 and label == "sgd" else floor + abs(lr - 0.1)}
        for label, floor in floors.items()
        for lr in grid
    ]
    for label in floors:
        write_run(folder / "tuning" / label / "lr-0.01", label, seed=0, lr=0.01)
    write_comparison(
        folder,
        methods=list(floors),
        seeds=list(range(seeds)),
        tuning={"grid": grid, "seed": 0, "outcomes": outcomes, "chosen": dict.fromkeys(floors, 0.1)},
    )
    return folder


def write_comparison(folder: Path, **content: Any) -> None:
    command = "sngd compare digits-mlp --methods sgd,sngd,s-sngd --seeds 3 --tune"
    asked = {"command": command, "problem": "digits-mlp", "methods": [], "seeds": [], "epochs": 10, "tuning": None}
    comparison = asked | content
    (folder / "compare.json").write_text(json.dumps(comparison))


def study_of(folder: Path, **losses: list[float | None]) -> Study:
    """A study with the given final training losses: one list per arm, a number per seed, None for a diverged run."""
    for label, by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            diverge = 3 if loss is None else None
            write_run(folder / label / str(seed), label, seed, diverge=diverge, answer={"train_loss": loss})
    return read_study(folder)


def edit_rows(folder: Path, change: dict[str, Any], which: slice = slice(None)) -> None:
    """Change so the rows that ``which`` chooses of every run at or below ``folder``."""
    for path in folder.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[which]:
            row.update(change)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
