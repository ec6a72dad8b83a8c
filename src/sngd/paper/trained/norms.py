"""Beyond the paper: methods that differ in the norm of their step, at equal budgets and on equal grids.

Three tables: what each method ends with at its best learning rate of the grid; how wide its plateau of learning rates
is (``sensitivity``); and which learning rate is best as the model becomes wider. The first has several seeds. The other
two are made of the runs that chose the learning rates, which have one seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import log10
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, TypedDict, cast

from sngd.diagnose.interval import mean_margin
from sngd.paper.trained.experiments import NORM_EXPERIMENTS, Arm, Experiment
from sngd.paper.trained.runs import final_values, finished_runs, samples_of
from sngd.paper.trained.sensitivity import FACTOR, plateau
from sngd.studies.figures import DASH_LENGTHS, Style, plain_labels, plain_style, save, styles
from sngd.studies.markdown import markdown_table
from sngd.studies.runs import Study, read_study
from sngd.studies.table import Spread, format_spread
from sngd.training.environment import Environment
from sngd.training.run_folder import replace_file
from sngd.training.schema import Count, NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_WIDTH = "width-"


class ArmInNorm(TypedDict):
    """A method on one problem. Lists have an entry a seed; None where a run diverged or there is no such number."""

    method: str
    lr: Positive  # the grid's best
    losses: list[float | None]  # final training loss at each rate of the grid, of the tuning's seed
    train_loss: list[float | None]
    test_loss: list[float | None]
    test_accuracy: list[float | None]
    ms_per_step: NonNegative  # time in steps over the number of steps, of the run that took the middle time


class ProblemInNorms(TypedDict):
    """The methods on one problem, by label."""

    title: str
    problem: str
    n: Count
    batch_size: Count
    epochs: Positive
    steps: Count
    grid: list[Positive]
    arms: dict[str, ArmInNorm]


class Norms(TypedDict):
    """The experiments by name."""

    figure: str
    profile: str
    device: str
    environment: Environment
    experiments: dict[str, ProblemInNorms]


def measure(profile: str, out: Path) -> Norms:
    """The measurements of the runs in ``out``.

    Raises:
        FileNotFoundError, ValueError: as ``runs.measure``.
    """
    experiments = NORM_EXPERIMENTS[profile]
    studies = [read_study(out / experiment.name) for experiment in experiments]
    first = studies[0].runs[0]
    return {
        "figure": "norms",
        "profile": profile,
        "device": first.settings.device,
        "environment": first.environment,
        "experiments": {e.name: _measured(e, study) for e, study in zip(experiments, studies, strict=True)},
    }


def _measured(experiment: Experiment, study: Study) -> ProblemInNorms:
    assert study.tuning is not None
    return {
        "title": experiment.title,
        "problem": experiment.problem,
        "n": samples_of(study),
        "batch_size": experiment.batch_size,
        "epochs": experiment.epochs,
        "steps": max(run.answer.get("step", 0) for run in study.runs),  # one that diverges ends early
        "grid": list(experiment.grid),
        "arms": {arm.label: _arm(arm, experiment, study) for arm in experiment.arms},
    }


def _arm(arm: Arm, experiment: Experiment, study: Study) -> ArmInNorm:
    assert study.tuning is not None
    runs = finished_runs(arm, experiment, study)
    trials = {trial["lr"]: trial["train_loss"] for trial in study.tuning["outcomes"] if trial["label"] == arm.label}
    return {
        "method": runs[0].settings.method,
        "lr": cast(float, runs[0].settings.lr),  # config.json has it resolved
        "losses": [trials[lr] for lr in experiment.grid],
        "train_loss": final_values(runs, "train_loss"),
        "test_loss": final_values(runs, "test_loss"),
        "test_accuracy": final_values(runs, "test_accuracy"),
        "ms_per_step": median(1000 * run.answer["seconds"] / max(1, run.answer["step"]) for run in runs),
    }


# ---- tables --------------------------------------------------------------------------------------------------


def tables(measurements: Norms) -> str:
    """The three tables, in Markdown."""
    problems = {name: found for name, found in measurements["experiments"].items() if not name.startswith(_WIDTH)}
    widths = {name: found for name, found in measurements["experiments"].items() if name.startswith(_WIDTH)}
    parts = [
        f"# Steps in several norms ({measurements['profile']} profile)",
        "Every method of a table has the same budget and the same grid of learning rates. Each is trained at its best "
        "rate of the grid, which is chosen on a separate seed by the final training loss. Rates rise for the first "
        "tenth of the steps, then fall linearly to 0. ± is the half width of Student's 95 % interval over seeds. A "
        "rate in brackets is an end of the grid: a better one may lie outside. Milliseconds a step are the median over "
        "seeds, and longer where the machine did other work.",
        "## Final loss",
        *(f"### {found['title']}, {found['steps']} steps\n\n{_finals(found)}" for found in problems.values()),
        "## Width of the plateau",
        f"Decades of learning rates about the best one with at most {FACTOR:g} times the method's best final training "
        "loss, of the one seed that the rates are chosen on. ≥: the grid ends first.",
        _table_by_method(problems, _plateau_text),
        "## Best learning rate by width",
        "Of one seed. The last column is how far the best rate moves from the narrowest model to the widest, in "
        "half-decades, the grid's steps.",
        _best_by_width(widths),
    ]
    return "\n\n".join(parts) + "\n"


def _finals(problem: ProblemInNorms) -> str:
    rows = [
        [
            label,
            _rate(arm["lr"], problem["grid"]),
            _mean(arm["train_loss"]),
            _mean(arm["test_loss"]),
            _mean(arm["test_accuracy"], percent=True),
            f"{arm['ms_per_step']:.1f}",
        ]
        for label, arm in problem["arms"].items()
    ]
    return markdown_table(["method", "α", "training loss", "test loss", "test accuracy (%)", "ms a step"], rows)


def _rate(lr: float, grid: Sequence[float]) -> str:
    return f"({lr:g})" if lr in (min(grid), max(grid)) else f"{lr:g}"


def _mean(values: Sequence[float | None], *, percent: bool = False) -> str:
    numbers = [number for number in values if number is not None]
    if len(numbers) < len(values) and numbers:
        return f"{len(values) - len(numbers)} of {len(values)} diverged"
    if not numbers:
        return "–"
    margin = mean_margin(numbers) if len(numbers) > 1 else None
    return format_spread(Spread(fmean(numbers), margin, len(numbers)), percent)


def _plateau_text(problem: ProblemInNorms, arm: ArmInNorm) -> str:
    found = plateau(problem["grid"], arm["losses"])
    return "–" if found is None else ("≥ " if found.clipped else "") + f"{found.decades:.2f}"


def _table_by_method(problems: Mapping[str, ProblemInNorms], cell: Callable[[ProblemInNorms, ArmInNorm], str]) -> str:
    labels = list(dict.fromkeys(label for found in problems.values() for label in found["arms"]))
    rows = [
        [label, *(cell(found, found["arms"][label]) if label in found["arms"] else "–" for found in problems.values())]
        for label in labels
    ]
    return markdown_table(["method", *problems], rows)


def best_rate(problem: ProblemInNorms, arm: ArmInNorm) -> float | None:
    """The learning rate of lowest loss in tuning; None if all diverged."""
    losses = [(loss, lr) for lr, loss in zip(problem["grid"], arm["losses"], strict=True) if loss is not None]
    return min(losses)[1] if losses else None


def _best_by_width(widths: Mapping[str, ProblemInNorms]) -> str:
    rows = []
    for label in dict.fromkeys(label for found in widths.values() for label in found["arms"]):
        best = [best_rate(found, found["arms"][label]) for found in widths.values()]
        cells = [_rate(lr, next(iter(widths.values()))["grid"]) if lr else "–" for lr in best]
        moved = f"{2 * log10(best[-1] / best[0]):+.0f}" if best[0] and best[-1] else "–"
        rows.append([label, *cells, moved])
    return markdown_table(["method", *widths, "moved by"], rows)


# ---- drawn ---------------------------------------------------------------------------------------------------

_DECADES = 5  # of losses that are shown; what is below, which may be 0 exactly, is drawn at the lower end


def draw(measurements: Norms, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``norms.png`` and ``norms.svg`` into ``folder`` (made if absent), and write ``norms.md``, the tables.

    Above: loss against learning rate, a panel a problem. Below: the same by width, a panel a method.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    problems = [found for name, found in measurements["experiments"].items() if not name.startswith(_WIDTH)]
    widths = {name: found for name, found in measurements["experiments"].items() if name.startswith(_WIDTH)}
    methods = list(next(iter(widths.values()))["arms"])
    look = styles(list(dict.fromkeys(label for found in problems for label in found["arms"])))
    by_width = styles(list(widths))
    with plain_style():
        figure = Figure(figsize=(3.6 * max(len(problems), len(methods)), 8.2), layout="constrained")
        figure.suptitle("Final training loss against the learning rate, of one seed; a circle is the best rate")
        above, below = cast("tuple[SubFigure, SubFigure]", figure.subfigures(2, 1))
        for ax, found in zip(above.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
            curves = {label: arm["losses"] for label, arm in found["arms"].items()}
            _draw_losses(ax, found["grid"], curves, look)
            ax.set_title(f"{found['title']}, {found['steps']} steps", fontsize=9)
        _legend(above, look)
        for ax, method in zip(below.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
            curves = {name: found["arms"][method]["losses"] for name, found in widths.items()}
            _draw_losses(ax, next(iter(widths.values()))["grid"], curves, by_width)
            ax.set_title(f"{method}, by width", fontsize=9)
        _legend(below, by_width)
        pictures = save(figure, Path(folder) / "norms")
    replace_file(Path(folder) / "norms.md", tables(measurements).encode())
    return pictures


def _draw_losses(
    ax: Axes, grid: Sequence[float], curves: Mapping[str, Sequence[float | None]], look: Mapping[str, Style]
) -> None:
    found = {
        label: [(lr, loss) for lr, loss in zip(grid, losses, strict=True) if loss is not None]
        for label, losses in curves.items()
    }
    found = {label: points for label, points in found.items() if points}
    high = max(points[0][1] for points in found.values())  # of the least rate: what ends above has diverged
    low = max(min(loss for points in found.values() for _, loss in points), high / 10**_DECADES)
    for label, unbounded in found.items():
        points = [(lr, max(loss, low)) for lr, loss in unbounded]
        (line,) = ax.plot(*zip(*points, strict=True), color=look[label].color, marker="o", markersize=3, linewidth=1.2)
        if DASH_LENGTHS[look[label].dash]:
            line.set_dashes(DASH_LENGTHS[look[label].dash])
        best, loss = min(unbounded, key=lambda point: point[1])
        ax.plot(best, max(loss, low), color=look[label].color, marker="o", markersize=9, fillstyle="none")
    ax.set(xscale="log", yscale="log", xlabel="learning rate α", ylabel="final training loss")
    ax.set_ylim(0.9 * low, 1.1 * high)
    plain_labels(ax.yaxis, low, high)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)


def _legend(part: SubFigure, look: Mapping[str, Style]) -> None:
    from matplotlib.lines import Line2D

    lines = []
    for color, dash in look.values():
        line = Line2D([], [], color=color)
        if DASH_LENGTHS[dash]:
            line.set_dashes(DASH_LENGTHS[dash])
        lines.append(line)
    part.legend(lines, list(look), loc="outside lower center", ncols=8, frameon=False, fontsize=9, handlelength=3)
