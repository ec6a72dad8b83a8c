"""Constants measured on a real model: at a problem's initial weights, or at the end of a run and along it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from sngd.diagnose import (
    Curvature,
    Eigenvalue,
    Fit,
    Interval,
    LocalSmoothness,
    Noise,
    Objective,
    extreme_eigenvalues,
    fit_relaxed_smooth,
    gradient_noise,
    local_smoothness,
)
from sngd.norms import Product
from sngd.problems import load_problem
from sngd.problems.registry import default_batch_size
from sngd.studies.figures import plain_style, save
from sngd.studies.runs import Run, read_run, value
from sngd.studies.spelled_norm import norm_of_model
from sngd.training import RunConfig
from sngd.training.environment import environment
from sngd.training.folder_lock import make_folder, turn_to_publish
from sngd.training.metrics import Row
from sngd.training.run_folder import RunFolder, write_json
from sngd.training.run_state import RunState, part
from sngd.training.tracking import DISTANCES, TRACKED, noise_batch_size, training_objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENVELOPE = 0.95  # quantile of the fit that is meant for plans

JSON = str | int | float | None | list["JSON"] | dict[str, "JSON"]
OnMeasured = Callable[[str, int, int], object]  # what is measured, steps done, steps at most


class Diagnosis(NamedTuple):
    """The measurements; a field is None if it was not asked for, or cannot be measured there.

    ``noise``, ``smoothness`` and ``curvature`` are at one point, described by ``where``; ``rows`` are a run's tracked
    rows, and ``fits`` the L0 and L1 fitted to them: through the middle of the points, and above most of them.
    Smoothness and fits are in ``norm``, gradients in its dual norm; ``noise`` is in both this and the Euclidean norm.
    """

    target: str
    where: str
    n: int
    dim: int
    batch_size: int
    noise: Noise | None
    smoothness: LocalSmoothness | None
    curvature: Curvature | None
    rows: list[Row]
    fits: dict[str, Fit]
    norm: Product

    @property
    def oracle_calls(self) -> int:
        """∇f(w; a) evaluated for the measurements at the point."""
        return sum(part.oracle_calls for part in (self.noise, self.smoothness, self.curvature) if part)

    def table(self) -> list[tuple[str, Interval, str]]:
        """Quantity, interval and oracle calls of everything measured; costs stand beside the first of a group."""
        rows: list[tuple[str, Interval, str]] = []
        if self.noise:
            rows += [
                ("σ² of one sample's gradient", self.noise.variance, f"{self.noise.oracle_calls:,}"),
                ("‖∇F‖²", self.noise.grad_norm_squared, ""),
                ("noise scale σ²/‖∇F‖², samples", self.noise.scale, ""),
            ]
        if self.noise and self.noise.batch_error and self.noise.error_bound:
            b = f"b = {self.noise.batch_size}"
            rows += [
                (f"E‖∇f_b − ∇F‖* of a batch, {b}", self.noise.batch_error, ""),
                (f"κσ/√b, which bounds it, {b}", self.noise.error_bound, ""),
            ]
        if self.smoothness:
            calls = f"{self.smoothness.oracle_calls:,}"
            if not self.norm.is_euclidean:
                rows.append(("‖∇F‖*", self.smoothness.grad_norm, calls))
                calls = ""
            for s, along in zip(self.smoothness.lengths, self.smoothness.along, strict=True):
                rows.append((f"L̂ along the step, s = {s:.3g}", along, calls))
                calls = ""
            rows += [
                (f"L̂ off the step, s = {s:.3g}", off, "")
                for s, off in zip(self.smoothness.lengths, self.smoothness.off, strict=False)
            ]
        if self.curvature:
            calls = f"{self.curvature.oracle_calls:,}"
            rows += [
                ("λ_max of ∇²F, the sharpness", self.curvature.largest.interval, calls),
                ("λ_min of ∇²F", self.curvature.smallest.interval, ""),
            ]
        for name, fit in self.fits.items():
            rows += [(f"L0, {name} of the run", fit.L0, ""), (f"L1, {name} of the run", fit.L1, "")]
        return rows

    def as_json(self) -> dict[str, JSON]:
        """Plain numbers; an interval is {value, low, high}, with null for an end that is infinite."""
        return {
            "target": self.target,
            "where": self.where,
            "n": self.n,
            "dim": self.dim,
            "norm": str(self.norm),
            "kappa": self.norm.kappa,
            "oracle_calls": self.oracle_calls,
            "noise": _to_json(self.noise),
            "smoothness": _to_json(self.smoothness),
            "curvature": _curvature_json(self.curvature),
            "tracked_points": len(self.rows),
            "fits": _to_json(self.fits),
        }


def diagnose(
    target: str,
    *,
    only: Sequence[str] = tuple(TRACKED),
    norm: str | None = None,
    samples: int = 2048,
    seed: int = 0,
    device: str = "cpu",
    data: Path | None = None,
    on_progress: OnMeasured = lambda *_: None,
) -> Diagnosis:
    """Measure ``target``.

    Args:
        target: a run's folder (measured at its last weights, as its checkpoint has them), or a problem (at the initial
            weights that ``seed`` draws).
        only: some of ``TRACKED``.
        norm: in which smoothness and noise are measured, as ``sngd.studies.spelled_norm`` spells it; None: that of the
            run's steps, and l2 for a problem. In another norm than the run's its tracked rows are left out.
        samples: of the training set, drawn for each quantity, ≥ 3; at most n are used.
        seed: of all that is drawn.
        device: where to measure.
        data: folder of data sets.
        on_progress: told of each quantity, and of each step of the search for eigenvalues.

    Raises:
        FileNotFoundError, ValueError: no such run or problem, or an argument out of its range.
    """
    if samples < 3:
        raise ValueError(f"samples must be at least 3, got {samples}")
    run, where, rows = _point(target, seed, device, data)
    objective = training_objective(run.problem, run.model, run.loss_of, run.config.batch_size_or_default)(
        _generator(seed)
    )
    size = min(samples, objective.n)
    measured_in = run.norm if norm is None else norm_of_model(norm, run.model)
    if measured_in != run.norm:
        rows = []  # they are in the norm of the run's steps

    noise = smoothness = curvature = None
    if "noise" in only:
        on_progress("noise", 0, 1)
        noise = _noise(objective, size, _generator(seed + 1), measured_in)
        on_progress("noise", 1, 1)
    if "smoothness" in only:
        on_progress("smoothness", 0, 1)
        smoothness = _smoothness(objective, run.loop.lr, size, _generator(seed + 2), measured_in)
        on_progress("smoothness", 1, 1)
    if "curvature" in only:
        generator = _generator(seed + 3)
        curvature = extreme_eigenvalues(
            objective,
            batch=objective.draw(size, generator),
            generator=generator,
            on_progress=lambda done, most: on_progress("curvature", done, most),
        )
    return Diagnosis(
        target,
        where,
        objective.n,
        objective.dim,
        run.config.batch_size_or_default,
        noise,
        smoothness,
        curvature,
        rows,
        _fits(rows, seed),
        measured_in,
    )


def _point(target: str, seed: int, device: str, data: Path | None) -> tuple[RunState, str, list[Row]]:
    """The model in its run, what to call the point, and the tracked rows up to it."""
    if not Path(target).is_dir():
        problem = load_problem(target, data)
        batch_size = min(default_batch_size(target), problem.n)
        config = RunConfig(target, "sngd", seed=seed, batch_size=batch_size, device=device)
        return RunState(config.resolved(problem.n), problem), f"initial weights, seed {seed}", []
    found = read_run(target)
    run = run_at_its_end(found, device, data)
    cost = run.loop.oracle_calls / run.problem.n
    return run, f"{found.label}, seed {found.seed}, after {cost:.4g} #grad/n", found.curve


def run_at_its_end(run: Run, device: str, data: Path | None) -> RunState:
    """The run as its checkpoint has it, with the last weights.

    Raises:
        FileNotFoundError: its folder holds no checkpoint.
        ValueError: the checkpoint is broken, or of another run.
    """
    files = RunFolder(run.path)
    checkpoint = files.load_checkpoint()
    if checkpoint is None:
        raise FileNotFoundError(f"{run.path}: has no checkpoint.pt, the weights to measure are not there")
    config = replace(run.settings, device=device, track=None, precision="float32")
    problem = load_problem(config.problem, data)
    state = RunState(config.resolved(problem.n), problem)
    with files.naming_checkpoint(), part("model"):
        state.model.load_state_dict(checkpoint["model"])
    with files.naming_checkpoint(), part("loop"):
        state.loop.load_state_dict(checkpoint["loop"])
    return state


def _noise(objective: Objective, samples: int, generator: torch.Generator, norm: Product) -> Noise:
    if norm.is_euclidean:
        return gradient_noise(objective, samples=samples, generator=generator)
    batch_size = noise_batch_size(objective, samples, norm)
    return gradient_noise(objective, samples=samples, batch_size=batch_size, generator=generator, norm=norm)


def _smoothness(
    objective: Objective, lr: float, samples: int, generator: torch.Generator, norm: Product
) -> LocalSmoothness:
    return local_smoothness(
        objective,
        lengths=[lr * distance for distance in DISTANCES],
        directions=4 if objective.dim > 4 else 0,
        batch=objective.draw(samples, generator),
        generator=generator,
        norm=norm,
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _fits(rows: Sequence[Row], seed: int) -> dict[str, Fit]:
    """L0 and L1 from the tracked rows, as far as there are enough of them."""
    points = [point for row in rows if (point := _smoothness_point(row))]
    if len({x for x, _ in points}) < 3:
        return {}
    norms, measured = zip(*points, strict=True)
    return {
        name: fit_relaxed_smooth(norms, measured, quantile=quantile, generator=_generator(seed))
        for name, quantile in (("middle", 0.5), ("envelope", ENVELOPE))
    }


def _smoothness_point(row: Row) -> tuple[float, float] | None:
    """‖∇F‖ and the larger L̂, along the step or off it."""
    norm = value(row, "smoothness_grad_norm")
    found = [number for key in ("smoothness_along", "smoothness_off") if (number := value(row, key)) is not None]
    return (norm, max(found)) if norm is not None and found else None


# ---- files and pictures --------------------------------------------------------------------------------------


def write_diagnosis(diagnosis: Diagnosis, folder: Path, command: str = "") -> list[Path]:
    """Write diagnosis.json, diagnosis.png and diagnosis.svg into ``folder``; returns the three paths."""
    content = {"command": command, "environment": environment(), **diagnosis.as_json()}
    make_folder(folder)
    with turn_to_publish(folder, ("diagnosis.json", "diagnosis.png", "diagnosis.svg")):
        write_json(folder / "diagnosis.json", content)
        return [folder / "diagnosis.json", *draw(diagnosis, folder)]


def _to_json(content: object) -> JSON:
    """Named tuples as dicts, numbers that are not finite as None."""
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None  # neither infinite nor NaN
    if hasattr(content, "_asdict"):
        content = content._asdict()
    if isinstance(content, Mapping):
        return {str(key): _to_json(part) for key, part in content.items()}
    if isinstance(content, list | tuple):
        return [_to_json(part) for part in content]
    assert content is None or isinstance(content, str | int)
    return content


def _curvature_json(curvature: Curvature | None) -> dict[str, JSON] | None:
    if curvature is None:
        return None

    def end(eigenvalue: Eigenvalue) -> JSON:
        return _to_json({**eigenvalue.interval._asdict(), "residual": eigenvalue.residual})

    return {
        "largest": end(curvature.largest),
        "smallest": end(curvature.smallest),
        "kind": curvature.kind,
        "steps": curvature.steps,
        "oracle_calls": curvature.oracle_calls,
    }


def draw(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Draw what there is: L̂ against distance, and along a tracked run L̂ against ‖∇F‖ with the fits, the spectrum's
    ends, and the noise scale. Returns the pictures' paths; none if there is nothing to draw."""
    panels: list[Callable[[Axes], None]] = []
    if diagnosis.smoothness:
        smoothness = diagnosis.smoothness
        panels.append(lambda ax: _draw_distances(ax, smoothness))
    if any(_smoothness_point(row) for row in diagnosis.rows):
        panels.append(lambda ax: _draw_fit(ax, diagnosis))
    if _column(diagnosis.rows, "hessian_max"):
        panels.append(lambda ax: _draw_spectrum(ax, diagnosis.rows))
    if _column(diagnosis.rows, "noise_scale"):
        panels.append(lambda ax: _draw_noise(ax, diagnosis))
    if not panels:
        return []
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    columns = 2 if len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    with plain_style():
        figure = Figure(figsize=(6 * columns, 4.2 * rows), layout="constrained")
        for ax, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
            panel(ax)
            ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        norm = "" if diagnosis.norm.is_euclidean else f"\nin the norm {diagnosis.norm}"
        figure.suptitle(f"{diagnosis.target}\n{diagnosis.where}{norm}".replace("$", r"\$"), fontsize=10)
        return save(figure, folder / "diagnosis")


def _column(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    """(#grad/n, value) of the rows that have it."""
    return [(row["grads_over_n"], number) for row in rows if (number := value(row, key)) is not None]


def _draw_distances(ax: Axes, smoothness: LocalSmoothness) -> None:
    series = (("along the step", smoothness.along, "#0072B2"), ("off it, random directions", smoothness.off, "#D55E00"))
    for label, intervals, color in series:
        if intervals:
            _errorbars(ax, smoothness.lengths, intervals, color, label)
    ax.plot(smoothness.lengths, smoothness.rounding, color="#999999", linewidth=1, linestyle=":", label="rounding")
    ax.set(xscale="log", yscale="log", xlabel="distance s", ylabel="local smoothness L̂(s)")
    ax.set_title("how fast the gradient changes, 95 % intervals", fontsize=10)
    ax.legend(fontsize=8)


def _errorbars(ax: Axes, xs: Sequence[float], intervals: Sequence[Interval], color: str, label: str) -> None:
    below = [i.value - i.low for i in intervals]
    above = [i.high - i.value if i.high < float("inf") else 0.0 for i in intervals]
    ax.errorbar(
        xs, [i.value for i in intervals], yerr=[below, above], color=color, label=label, marker="o", markersize=4,
        linewidth=1.4, capsize=3,
    )  # fmt: skip


def _draw_fit(ax: Axes, diagnosis: Diagnosis) -> None:
    norms, measured = zip(*(point for row in diagnosis.rows if (point := _smoothness_point(row))), strict=True)
    points = ax.scatter(norms, measured, c=range(len(norms)), cmap="viridis", s=22, zorder=3, clip_on=False)
    ax.figure.colorbar(points, ax=ax, label="evaluation")
    ends = [0.0, max(norms)]
    looks = {"middle": ("#0072B2", "-"), "envelope": ("#D55E00", "--")}
    for name, fit in diagnosis.fits.items():
        color, style = looks[name]
        ys = [fit.L0.value + fit.L1.value * x for x in ends]
        label = f"{name} (q = {fit.quantile:g}): L0 = {fit.L0.value:.3g}, L1 = {fit.L1.value:.3g}"
        ax.plot(ends, ys, color=color, linestyle=style, label=label)
    star = "" if diagnosis.norm.is_euclidean else "*"
    ax.set(xlabel=f"‖∇F(w)‖{star}", ylabel="local smoothness L̂", xlim=(0, None), ylim=(0, None))
    ax.set_title(f"L̂ against ‖∇F‖{star} along the run", fontsize=10)
    if diagnosis.fits:
        ax.legend(fontsize=8)


def _draw_spectrum(ax: Axes, rows: Sequence[Row]) -> None:
    for key, label, color in (("hessian_max", "largest", "#D55E00"), ("hessian_min", "smallest", "#0072B2")):
        points = [(row["grads_over_n"], value(row, key), value(row, f"{key}_error")) for row in rows]
        found = [(x, y, error or 0.0) for x, y, error in points if y is not None]
        xs, ys, errors = zip(*found, strict=True)
        ax.errorbar(xs, ys, yerr=errors, color=color, marker=".", label=label, linewidth=1.4, capsize=2)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.margins(y=0.15)
    ax.set_yscale("symlog", linthresh=1e-2)
    ax.set(xlabel="#grad/n", ylabel="eigenvalue of ∇²F")
    ax.set_title("ends of the Hessian's spectrum, with error bounds", fontsize=10)
    ax.legend(fontsize=8)


def _draw_noise(ax: Axes, diagnosis: Diagnosis) -> None:
    rows = [row for row in diagnosis.rows if value(row, "noise_scale") is not None]
    xs = [row["grads_over_n"] for row in rows]
    intervals = []
    for row in rows:
        high = value(row, "noise_scale_high")
        low, middle = (value(row, key) or 0.0 for key in ("noise_scale_low", "noise_scale"))
        intervals.append(Interval(middle, low, float("inf") if high is None else high))
    _errorbars(ax, xs, intervals, "#009E73", "simple noise scale σ²/‖∇F‖²")
    hidden = [row for row in diagnosis.rows if value(row, "noise_scale") is None and value(row, "noise_scale_low")]
    if hidden:
        ends = [value(row, "noise_scale_low") or 0.0 for row in hidden]
        label = "at least: ‖∇F‖ is lost in noise"
        ax.plot([row["grads_over_n"] for row in hidden], ends, "^", color="#009E73", markersize=6, label=label)
    ax.axhline(diagnosis.batch_size, color="black", linewidth=0.8, linestyle=":", label="batch size")
    ax.set(yscale="log", xlabel="#grad/n", ylabel="samples")
    ax.set_title("noise scale along the run, 95 % intervals", fontsize=10)
    ax.legend(fontsize=8)
