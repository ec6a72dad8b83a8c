"""Do a figure's training runs, and read their folders back as the figure's measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import numpy as np

from sngd.paper.trained.experiments import EXPERIMENTS, Arm, Experiment, default_device
from sngd.studies.compare import compare
from sngd.studies.execution.execution import Execution
from sngd.studies.runs import Floats, Run, Study, Tuning, all_runs, interpolate, read_study, value
from sngd.training import RunConfig
from sngd.training.environment import Environment
from sngd.training.schema import Count, NonNegative, Positive

CurveKey = Literal["train_loss", "test_accuracy"]
CURVE_KEYS: tuple[CurveKey, ...] = ("train_loss", "test_accuracy")


Table = Mapping[str, Sequence[Experiment]]  # a figure's experiments by profile


def run(
    figure: str, profile: str, out: Path, command: str, execution: Execution, *, table: Table | None = None
) -> None:
    """Do the runs of a figure that ``out`` lacks, each experiment as ``compare`` does it, in a folder of its own.

    Args:
        figure: its name; a key of ``EXPERIMENTS`` if there is no ``table``.
        profile: one of the table's.
        out: the figure's folder, made if need be.
        command: the command line, for the reports.
        execution: how the runs are done; ``begin`` is told titles that name figure and experiment. A cluster's GPUs
            serve the paper's profile if a run's share of them is named. Its ``device``, ``precision`` and ``compile``
            are settings of all runs; an experiment that has been begun goes on with its own where they are None.
        table: the figure's experiments, if they are not those of ``EXPERIMENTS``.

    Raises:
        ValueError: see ``compare``.
        Interrupted: ``execution.should_stop`` said so; the same call goes on.
    """
    default = default_device(profile, execution.ray.gpus if execution.ray else None)
    experiments = (table or EXPERIMENTS[figure])[profile]
    for number, experiment in enumerate(experiments, 1):
        how = {**_how(_begun(out / experiment.name)), **_how(execution)}
        compare(
            [replace(config, **{"compile": False, **how}) for config in experiment.configs(default)],
            experiment.seed_numbers,
            out / experiment.name,
            execution.titled(f"{figure}, study {number} of {len(experiments)}, {experiment.name}"),
            grid=experiment.grid or None,
            tuning_epochs=experiment.tuning_epochs,
            command=command,
        )


# Any: these settings of RunConfig have several types.
def _how(told: Execution | RunConfig | None) -> dict[str, Any]:
    """What this tells of how to train."""
    names = ("device", "precision", "compile")
    return {name: value for name in names if (value := getattr(told, name, None)) is not None}


def _begun(folder: Path) -> RunConfig | None:
    """The settings of a run that the folder has already; None if there is none."""
    try:
        return next((run.settings for run in all_runs(folder)), None)
    except ValueError:  # damaged files, of which ``compare`` says more
        return None


# ---- read back -----------------------------------------------------------------------------------------------


class TuningWithEdges(Tuning):
    """The search for learning rates, and for which arms it ended at the edge of the grid."""

    at_edge: list[str]  # arms whose α is the grid's least or greatest


class Finals(TypedDict):
    """What the runs ended with, a value a seed; None if it diverged."""

    train_loss: list[float | None]
    test_accuracy: list[float | None]  # in [0, 1]
    test_loss: NotRequired[list[float | None]]  # earlier measurements have none
    grad_norm: NotRequired[list[float | None]]  # ‖∇F‖, where it was measured


class Curves(TypedDict):
    """A list a seed, with a value for each cost; None after divergence."""

    grads_over_n: list[NonNegative]  # the costs
    train_loss: list[list[float | None]]
    test_accuracy: list[list[float | None]]


class ArmMeasured(TypedDict):
    """An arm of an experiment, its runs in the order of ``seeds``."""

    method: str
    lr: Positive
    plan: str | None
    params: dict[str, float]
    beyond: bool  # the paper has no such arm
    seeds: list[Count]
    diverged: list[Count]  # those of the seeds whose run diverged
    final: Finals
    curves: Curves


class ExperimentMeasured(TypedDict):
    """An experiment: its setting, how it departs from the paper's, and its arms by label."""

    title: str
    problem: str
    n: Count
    batch_size: Count
    epochs: Positive
    weight_decay: NonNegative
    departures: list[str]  # a phrase each
    machines: NotRequired[list[str]]  # that trained the runs, with PyTorch's version; earlier measurements have none
    arms: dict[str, ArmMeasured]  # by label, in the figure's order
    tuning: TuningWithEdges | None  # None: nothing was tuned


class ExperimentsMeasured(TypedDict):
    """Experiments by name, and where the first run was done."""

    device: str
    environment: Environment
    experiments: dict[str, ExperimentMeasured]


class FigureMeasured(TypedDict):
    """A figure made of runs: its experiments by name."""

    figure: str
    profile: str
    experiments: dict[str, ExperimentMeasured]
    device: NotRequired[str]  # of the first run, and so is the environment; a figure under another reading has none
    environment: NotRequired[Environment]


def measure(figure: str, profile: str, out: Path, *, table: Table | None = None) -> FigureMeasured:
    """The figure's measurements from the runs that ``out`` holds, and from nothing else; arguments as for ``run``.

    Raises:
        FileNotFoundError: there are none of an experiment.
        ValueError: a run is absent or has not finished; see ``read_study`` for broken files.
    """
    experiments = (table or EXPERIMENTS[figure])[profile]
    return {"figure": figure, "profile": profile, **measure_experiments(experiments, out)}


def measure_experiments(experiments: Sequence[Experiment], out: Path) -> ExperimentsMeasured:
    """``measure`` for any experiments."""
    studies = [read_study(out / experiment.name) for experiment in experiments]
    first = studies[0].runs[0]
    measured = {e.name: _measure_experiment(e, study) for e, study in zip(experiments, studies, strict=True)}
    return {"device": first.settings.device, "environment": first.environment, "experiments": measured}


def _measure_experiment(experiment: Experiment, study: Study) -> ExperimentMeasured:
    arms = {arm.label: _measure_arm(arm, finished_runs(arm, experiment, study)) for arm in experiment.arms}
    tuning = study.tuning
    return {
        "title": experiment.title,
        "problem": experiment.problem,
        "n": samples_of(study),
        "batch_size": experiment.batch_size,
        "epochs": experiment.epochs,
        "weight_decay": experiment.weight_decay,
        "departures": list(experiment.departures),
        "machines": list(dict.fromkeys(map(_machine, study.runs))),
        "arms": arms,
        "tuning": None if tuning is None else {**tuning, "at_edge": _at_edge(tuning)},
    }


def _machine(run: Run) -> str:
    words, precision = _in_words(run.settings.device, run.environment), run.settings.precision
    return words if precision == "float32" else f"{words}, products in {precision}"


def _in_words(device: str, environment: Environment) -> str:
    name = environment.get("cuda") if device.startswith("cuda") else None
    return f"{name or device}, PyTorch {environment.get('torch', '?')}"


def machines(figure: FigureMeasured) -> list[str]:
    """What trained the figure's runs, each once."""
    if "device" not in figure:
        return []
    first = _in_words(figure["device"], figure["environment"])
    return list(dict.fromkeys(name for e in figure["experiments"].values() for name in e.get("machines", [first])))


def finished_runs(arm: Arm, experiment: Experiment, study: Study) -> list[Run]:
    """The arm's runs of all seeds; ValueError if one is absent or has not finished."""
    runs = [run for run in study.arms.get(arm.label, []) if run.finished and run.seed in experiment.seed_numbers]
    if len(runs) < experiment.seeds:
        raise ValueError(
            f"{study.folder}: {len(runs)} finished runs of {arm.label!r}, must be {experiment.seeds}: run it again"
        )
    return runs


def samples_of(study: Study) -> int:
    """n, from what a run counted."""
    last = next(run.answer for run in study.runs if run.answer.get("grads_over_n"))
    return round(last["oracle_calls"] / last["grads_over_n"])


def _measure_arm(arm: Arm, runs: list[Run]) -> ArmMeasured:
    config = runs[0].settings
    costs = np.array(sorted({row["grads_over_n"] for run in runs for row in run.curve}), dtype=np.float64)
    return {
        "method": config.method,
        "lr": cast(float, config.lr),  # config.json has it resolved
        "plan": config.plan,
        "params": dict(config.params),
        "beyond": arm.beyond,
        "seeds": [run.seed for run in runs],
        "diverged": [run.seed for run in runs if run.diverged],
        "final": _finals(runs),
        "curves": {
            "grads_over_n": costs.tolist(),
            "train_loss": [_curve(run, "train_loss", costs) for run in runs],
            "test_accuracy": [_curve(run, "test_accuracy", costs) for run in runs],
        },
    }


def _finals(runs: Sequence[Run]) -> Finals:
    found: Finals = {
        "train_loss": final_values(runs, "train_loss"),
        "test_accuracy": final_values(runs, "test_accuracy"),
        "test_loss": final_values(runs, "test_loss"),
    }
    norms = final_values(runs, "grad_norm")
    return found if norms.count(None) == len(norms) else {**found, "grad_norm": norms}


def final_values(runs: Sequence[Run], key: str) -> list[float | None]:
    """What each run ended with; None if it diverged, or has no such number."""
    return [None if run.diverged else value(run.answer, key) for run in runs]


def _curve(run: Run, key: str, costs: Floats) -> list[float | None]:
    """With six digits, more than a picture shows or a seed repeats, so that the file is short."""
    return [None if np.isnan(number) else float(f"{number:.6g}") for number in interpolate(run.curve, key, costs)]


def _at_edge(tuning: Tuning) -> list[str]:
    """Arms whose best learning rate is the grid's least or greatest. A better one may lie outside of the grid."""
    edge = (min(tuning["grid"]), max(tuning["grid"]))
    return [label for label, lr in tuning["chosen"].items() if lr in edge]
