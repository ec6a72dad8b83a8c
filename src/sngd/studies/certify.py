"""Certificates of runs: what the theorems guarantee for them, computed from config.json and metrics.jsonl."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple, NotRequired, TypedDict, cast

import torch

from sngd.checks import non_negative
from sngd.diagnose.certificate import (
    Assumption,
    Certificate,
    Curvature,
    Curve,
    Rule,
    Status,
    bound_of,
    find_theorem,
    judge_gap,
    judge_noise,
    judge_smoothness,
    mean_norm,
    played,
)
from sngd.diagnose.interval import Interval
from sngd.norms import Product
from sngd.problems import Problem, load_problem
from sngd.problems.analytic import Analytic
from sngd.problems.columns import materialized
from sngd.problems.eval_mode import in_eval_mode
from sngd.problems.registry import ANALYTIC
from sngd.stages import StagePlan
from sngd.studies.runs import Run, Study, read_study, value
from sngd.theory import Inexact, RelaxedSmooth, Smooth, Smoothness
from sngd.training.config import StoredConfig
from sngd.training.folder_lock import make_folder, turn_to_publish
from sngd.training.methods import (
    CAPPED,
    FULL,
    GRADIENT,
    IN_NORM,
    METHODS,
    MINIBATCH,
    MOMENTUM_THEN_NORMALIZED,
    NORMALIZED,
    SPIDER,
    Method,
    parameter_values,
)
from sngd.training.metrics import Row
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState
from sngd.training.schema import Count, Declared, NonNegative, read

_KNOWN = "known of the problem"
_FLOAT32 = 2.0**-23  # relative error of a rounded gradient
_DIFFERENCES = 0.02  # relative error granted to differences of float32 gradients over a short step


class Mean(TypedDict):
    """A mean with the ends of its interval."""

    value: float
    low: float
    high: float


class Terms(TypedDict):
    """The terms of a bound, which add up to it, or to its square."""

    progress: NonNegative
    curvature: NonNegative
    noise: NonNegative
    squared: bool


class Constants(TypedDict):
    """What the theorem was told, or None: nothing."""

    L: NotRequired[float]
    L0: NotRequired[float]
    L1: NotRequired[float]
    sigma: float | None
    gap: float | None


class AssumptionEntry(TypedDict):
    """An assumption and whether it holds."""

    name: str
    status: Annotated[str, Declared(one_of=("given", "measured", "violated", "unchecked"))]
    detail: str


class Entry(TypedDict):
    """A certificate, as ``Certificate.as_json`` writes it."""

    label: str
    theorem: str | None
    norm: NotRequired[str]
    kappa: NotRequired[NonNegative]
    verdict: Annotated[str, Declared(one_of=("holds", "inconclusive", "exceeded", "not certified"))]
    statement: str
    seeds: list[Count]
    steps: Count
    measured: Mean | None
    bound: float | None
    terms: Terms | None
    vacuous: bool
    first_grad_norm: float | None
    constants: Constants
    assumptions: list[AssumptionEntry]


class Certificates(TypedDict):
    """What certificate.json holds."""

    certificates: list[Entry]


def certify(
    folder: str | os.PathLike[str],
    *,
    smoothness: Smoothness | None = None,
    sigma: float | None = None,
    gap: float | None = None,
    data: Path | None = None,
) -> list[Certificate]:
    """Certify the runs in ``folder`` and write ``certificate.json`` there, which the report shows.

    A constant that is not given is taken from the problem if it is known there (analytic problems), and otherwise from
    measurements, if the runs have them (``--track``). The problem is loaded to check that steps and evaluations use the
    same function.

    Args:
        folder: a run or a study.
        smoothness: L, or L0 and L1; in mean square over the samples for spider-sfo.
        sigma: σ ≥ 0, E‖∇f(w; a) − ∇F(w)‖² ≤ σ².
        gap: Δ = F(w_0) − inf F ≥ 0; for stages, at the start of each.
        data: folder of data sets, see ``sngd.problems.load_problem``.

    Returns:
        One certificate for each method with a finished run, in the study's order.

    Raises:
        FileNotFoundError, ValueError: as ``read_study``; a constant is out of its range; no run has finished.
    """
    sigma = None if sigma is None else non_negative("sigma", sigma)
    gap = None if gap is None else non_negative("gap", gap)
    study = read_study(folder)
    constants = _constants(study.problem, smoothness, sigma, gap)
    found = _certificates(study, constants, lambda: load_problem(study.problem, data))
    if not found:
        raise ValueError(f"{folder}: no run has finished, there is nothing to certify")
    make_folder(Path(folder))  # that of a packed study may be deleted
    with turn_to_publish(Path(folder), ("certificate.json",)):
        write_json(
            Path(folder) / "certificate.json", {"certificates": [certificate.as_json() for certificate in found]}
        )
    return found


def shown_certificates(study: Study) -> list[Entry]:
    """What the report shows: ``certificate.json``, or else, for a problem with known constants, certificates made now.

    Raises:
        ValueError: the file is not what `certify` writes.
    """
    path = study.folder / "certificate.json"
    if not path.exists():
        if study.problem not in ANALYTIC:
            return []
        found = _certificates(study, _constants(study.problem), lambda: ANALYTIC[study.problem]().problem)
        return [cast(Entry, one.as_json()) for one in found] if any(one.bound for one in found) else []
    return read(path, Certificates)["certificates"]


def is_certified(entry: Entry, study: Study) -> bool:
    """Whether the certificate, in JSON, is about the finished runs that the study has under its label."""
    runs = [run for run in study.arms.get(entry["label"], []) if run.finished]
    return bool(runs) and entry["seeds"] == [run.seed for run in runs] and entry["steps"] == runs[0].answer.get("step")


class _Constants(NamedTuple):
    """The constants known before anything is measured (None: unknown), and their source, for the text."""

    smoothness: Smoothness | None
    sigma: float | None
    gap: float | None
    infimum: float | None
    sources: tuple[str, ...]


def _constants(
    problem: str, smoothness: Smoothness | None = None, sigma: float | None = None, gap: float | None = None
) -> _Constants:
    if problem not in ANALYTIC:
        return _Constants(smoothness, sigma, gap, None, ("as given",) * 3)
    exact = ANALYTIC[problem]()
    return _Constants(
        smoothness or _smoothness(exact),
        exact.sigma if sigma is None else sigma,
        exact.gap if gap is None else gap,
        0.0,
        tuple(_KNOWN if given is None else "as given" for given in (smoothness, sigma, gap)),
    )


def _smoothness(exact: Analytic) -> Smoothness | None:
    if exact.L is not None:
        return Smooth(exact.L)
    return None if exact.L0 is None or exact.L1 is None else RelaxedSmooth(exact.L0, exact.L1)


def _certificates(study: Study, constants: _Constants, load: Callable[[], Problem]) -> list[Certificate]:
    finished = {label: [run for run in runs if run.finished] for label, runs in study.arms.items()}
    if not any(finished.values()):
        return []
    load_once = cache(load)
    same_function = _same_function(load_once)
    return [_certificate(label, runs, constants, same_function, load_once) for label, runs in finished.items() if runs]


def _certificate(
    label: str, runs: list[Run], constants: _Constants, same_function: Assumption, load: Callable[[], Problem]
) -> Certificate:
    """The certificate of one arm's finished runs, step by step: theorem, constants, bound, measured mean."""
    config, steps = runs[0].config, int(value(runs[0].answer, "step") or 0)
    seeds = tuple(run.seed for run in runs)
    method = METHODS.get(str(config.get("method")))
    rule = _rule(method, runs[0])
    if diverged := [str(run.seed) for run in runs if run.diverged]:
        return _not_certified(
            label, seeds, steps, "runs", "violated", f"the run of seed {', '.join(diverged)} diverged"
        )
    if method is None or rule is None:
        return _not_certified(label, seeds, steps, "method", "unchecked", f"no theorem covers {config.get('method')}")
    plan = played(runs[0].settings.stage_plan(_samples(runs[0])), steps)
    norm = None
    if method.step_rule in IN_NORM:
        try:
            norm = _norm(runs[0], load)
        except (ValueError, OSError, ImportError) as error:
            reason = f"the norm of the steps cannot be known ({' '.join(str(error).split())})"
            return _not_certified(label, seeds, steps, "norm", "unchecked", reason)
        constants = _in_norm(constants, norm)
    source = constants.sources
    # SPIDER's theorem needs L in mean square over the samples. F's own L is no larger, so it can only refute it.
    usable = rule != "spider" or constants.smoothness is not None
    smoothness, smooth = judge_smoothness(constants.smoothness, _curvatures(runs, norm) if usable else [], source[0])
    theorem = find_theorem(rule, smoothness, plan)
    if theorem is None:
        reason = f"the theorem for {method.name} is for a constant learning rate"
        return _not_certified(label, seeds, steps, "method", "unchecked", reason)
    exact = method.estimate is FULL
    sigma, noise = _no_noise() if exact else judge_noise(constants.sigma, _variances(runs), source[1])
    losses = _curves(runs, "train_loss")
    gap, bounded = judge_gap(constants.gap, losses, plan, infimum=constants.infimum, source=source[2])
    bound, condition = None, None
    if smoothness is not None and sigma is not None and gap is not None:
        batch_size = 1 if exact else runs[0].settings.batch_size_or_default
        bound, condition = bound_of(
            rule,
            smoothness,
            sigma=sigma,
            gap=gap,
            plan=plan,
            batch_size=batch_size,
            options=_options(method, runs[0]),
            kappa=norm.kappa if norm else 1.0,
            step=Inexact(*norm.inexactness) if norm else Inexact(),
        )
    norms, measurements = _measurements(runs, plan, "dual_grad_norm" if norm else "grad_norm")
    return Certificate(
        label=label,
        seeds=seeds,
        steps=steps,
        theorem=theorem,
        smoothness=smoothness,
        sigma=sigma,
        gap=gap,
        bound=bound,
        measured=mean_norm(norms, plan) if norms else None,
        first=fmean(curve[0][1] for curve in norms) if norms else None,
        assumptions=(
            smooth,
            noise,
            bounded,
            *([condition] if condition else []),
            *([_norm_of_steps(norm, config)] if norm else []),
            _batches(config, exact),
            _objective(config, same_function, decoupled=norm is not None),
            _steps(runs),
            measurements,
        ),
        norm=str(norm) if norm else None,
        kappa=norm.kappa if norm else 1.0,
    )


def _not_certified(
    label: str, seeds: tuple[int, ...], steps: int, name: str, status: Status, detail: str
) -> Certificate:
    assumption = Assumption(name, status, detail)
    return Certificate(label, seeds, steps, None, None, None, None, None, None, None, (assumption,))


# ---- what the runs did ---------------------------------------------------------------------------------------


def _rule(method: Method | None, run: Run) -> Rule | None:
    """The kind of steps that the method takes; None if no theorem of `sngd.theory` is about them."""
    if method is None:
        return None
    if method.estimate is MINIBATCH and method.step_rule in (MOMENTUM_THEN_NORMALIZED, *IN_NORM):
        sets_momentum = run.settings.stage_plan(_samples(run)).sets_momentum
        return "momentum" if sets_momentum or _options(method, run)["momentum"] else "normalized"
    if method.estimate in (MINIBATCH, FULL) and method.step_rule is NORMALIZED:
        return "normalized"
    if method.estimate in (MINIBATCH, FULL) and method.step_rule is GRADIENT:
        return "gradient"
    return "spider" if method.estimate is SPIDER and method.step_rule is CAPPED else None


def _norm(run: Run, load: Callable[[], Problem]) -> Product:
    """The norm of the run's steps, which depends on its problem's weights."""
    problem = load()
    config = replace(run.settings, device="cpu", track=None)
    with torch.random.fork_rng(devices=[]):
        return RunState(config.resolved(problem.n), problem).norm


def _in_norm(constants: _Constants, norm: Product) -> _Constants:
    """What is known of an analytic problem is Euclidean: as ‖v‖* ≤ κ‖v‖₂ and ‖s‖₂ ≤ κ‖s‖, L is at most κ² times it."""
    source, known = constants.sources[0], constants.smoothness
    if source != _KNOWN or known is None:
        return constants
    L = Smooth(norm.kappa**2 * known.L) if isinstance(known, Smooth) else None
    return constants._replace(
        smoothness=L, sources=("from the problem's Euclidean L, times κ²", *constants.sources[1:])
    )


def _samples(run: Run) -> int:
    """n, the number of training samples."""
    calls, passes = value(run.answer, "oracle_calls"), value(run.answer, "grads_over_n")
    if not calls or not passes:
        raise ValueError(f"{run.path / 'metrics.jsonl'}: the last row has no oracle_calls and grads_over_n")
    return round(calls / passes)


def _options(method: Method, run: Run) -> dict[str, float]:
    config = run.settings
    return parameter_values(method, config.params, config.batch_size_or_default, _samples(run))


def _curves(runs: Sequence[Run], key: str) -> list[Curve]:
    """(step, value) of every evaluation of F that has a value, run by run; none of a run whose rows sample F."""
    return [
        []
        if run.curve_samples
        else [(int(row["step"]), number) for row in run.curve if (number := value(row, key)) is not None]
        for run in runs
    ]


def _curvatures(runs: Sequence[Run], norm: Product | None) -> list[Curvature]:
    """What ``--track smoothness,curvature`` measured at evaluations, as far as it is in the norm of the steps."""
    of_row = _curvatures_of if norm is None else _curvatures_in_norm
    return [curvature for run in runs for row in run.curve if "samples" not in row for curvature in of_row(row)]


def _curvatures_in_norm(row: Row) -> Iterator[Curvature]:
    dual, lr = value(row, "dual_grad_norm"), value(row, "lr")
    if dual is not None and lr is not None:
        yield from _differences(row, dual, lr)


def _curvatures_of(row: Row) -> Iterator[Curvature]:
    step, norm, lr = int(row["step"]), value(row, "grad_norm"), value(row, "lr")
    if norm is None or lr is None:
        return
    yield from _differences(row, norm, lr)
    for key in ("hessian_max", "hessian_min"):
        number, error = value(row, key), value(row, f"{key}_error")
        if number is not None and error is not None:
            yield Curvature(step, number, error, norm)


def _differences(row: Row, norm: float, lr: float) -> Iterator[Curvature]:
    for key in ("smoothness_along", "smoothness_off"):  # at distances up to the learning rate
        if (number := value(row, key)) is not None:
            yield Curvature(int(row["step"]), number, _DIFFERENCES * number, norm, reach=lr)


def _variances(runs: Sequence[Run]) -> list[Interval]:
    """σ² as ``--track noise`` measured it at evaluations, with an allowance for the rounding of gradients."""
    return [interval for run in runs for row in run.curve if (interval := _variance_of(row)) is not None]


def _variance_of(row: Row) -> Interval | None:
    variance, low, high = (value(row, f"noise_variance{end}") for end in ("", "_low", "_high"))
    if variance is None or low is None or high is None:
        return None
    rounding = _FLOAT32 * (value(row, "grad_norm") or 0.0)
    return Interval(variance, max(0.0, max(0.0, low) ** 0.5 - rounding) ** 2, (high**0.5 + rounding) ** 2)


# ---- what can be checked without constants -------------------------------------------------------------------


def _no_noise() -> tuple[float, Assumption]:
    return 0.0, Assumption("noise", "given", "σ = 0: the method takes full gradients")


def _batches(config: StoredConfig, exact: bool) -> Assumption:
    if exact:
        return Assumption("batches", "given", "every step sees all samples")
    if config.get("sampling", "shuffled") == "independent":
        return Assumption("batches", "given", "every sample is drawn uniformly and independently of all others")
    detail = "cut from shuffled passes: given the batches before, what is left of a pass is a biased sample"
    return Assumption("batches", "violated", detail)


def _norm_of_steps(norm: Product, config: StoredConfig) -> Assumption:
    """That the steps are unit steps of this norm, up to its inexactness."""
    detail = f"steps are normalized in {norm}, with κ = {norm.kappa:.4g}"
    if " × " in str(norm):
        detail += "; learning rates of their own count as radii of balls"
    shortfall, overshoot = norm.inexactness
    if not shortfall and not overshoot:
        return Assumption("norm", "given", detail)
    detail += f"; Newton–Schulz steps attain {1 - shortfall:.4g} of ‖m‖* at least, and are {1 + overshoot:.4g} α long"
    if str(config.get("device", "cpu")).startswith("cpu"):
        return Assumption("norm", "given", f"{detail} at most")
    return Assumption("norm", "unchecked", f"{detail} at most, but for the rounding of bfloat16 on {config['device']}")


def _objective(config: StoredConfig, same_function: Assumption, decoupled: bool) -> Assumption:
    decay = config.get("weight_decay") or 0.0
    if decay and decoupled:
        detail = f"decoupled weight decay {decay:g} moves the weights beside the normalized step: no theorem covers it"
        return Assumption("objective", "violated", detail)
    if decay:
        detail = f"weight decay {decay:g} makes the steps about F + {decay:g}/2 ‖w‖², while F is what is evaluated"
        return Assumption("objective", "violated", detail)
    return same_function


def _same_function(load: Callable[[], Problem]) -> Assumption:
    """Whether the steps' loss is the one that is evaluated: no augmentation, nothing that differs in eval mode."""
    try:
        problem = load()
    except (ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        return Assumption("objective", "unchecked", f"the problem cannot be loaded ({reason})")
    if problem.augment is not None:
        detail = "steps see samples with random augmentation, F is evaluated without"
        return Assumption("objective", "violated", detail)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = problem.build_model()
        batch = materialized((problem.train[0][:64], problem.train[1][:64]))
        training = problem.mean_loss(model, batch)
        with in_eval_mode(model):
            evaluation = problem.mean_loss(model, batch)
    if not torch.equal(training, evaluation):
        detail = "the model differs between training and evaluation (dropout, BatchNorm): steps are about another F"
        return Assumption("objective", "violated", detail)
    detail = "the loss of a batch is the same in training and in evaluation; no weight decay, no augmentation"
    return Assumption("objective", "measured", detail)


def _steps(runs: Sequence[Run]) -> Assumption:
    skipped = [value(run.answer, "skipped_steps") for run in runs]
    if None in skipped:
        return Assumption("steps", "unchecked", "the runs did not count skipped steps")
    total = int(sum(count or 0 for count in skipped))
    if total:
        return Assumption("steps", "violated", f"{total} skipped, the gradient having been zero or not finite")
    return Assumption("steps", "measured", "none was skipped")


def _measurements(runs: Sequence[Run], plan: StagePlan, key: str) -> tuple[list[Curve], Assumption]:
    """The curves of ‖∇F(w_t)‖, or ‖∇F(w_t)‖*, from w_0 to w_N, or none if a run has gaps."""
    curves = _curves(runs, key)
    size = "‖∇F‖" if key == "grad_norm" else "‖∇F‖*"
    if some := runs[0].config.get("eval_samples"):
        detail = f"rows have the mean over {some} samples, not F: train again without --eval-samples"
        return [], Assumption("measurements", "unchecked", detail)
    if some := next(filter(None, (run.curve_samples for run in runs)), None):
        detail = f"rows before the last have the mean over {some} samples, not F: train again with --curve-samples 0"
        return [], Assumption("measurements", "unchecked", detail)
    for run, curve in zip(runs, curves, strict=True):
        ends = [curve[0][0], curve[-1][0]] if len(curve) > 1 else []
        if ends != [0, plan.steps] or len(curve) < len(run.curve):
            detail = f"not every row of seed {run.seed}, from step 0 to {plan.steps}, has a {key}"
            return [], Assumption("measurements", "unchecked", detail)
    rows = min(map(len, curves))
    if rows == plan.steps + 1:
        return curves, Assumption("measurements", "measured", f"{size} at every iterate")
    detail = f"{size} at {rows} of {plan.steps + 1} iterates of a run, interpolated in between"
    return curves, Assumption("measurements", "measured", detail)
