"""The table: which runs each figure is made of, in the paper's own setting and scaled down to less time.

A profile's experiment is the paper's with changes. Its list of departures is made from the changes, so it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import torch

from sngd.training import RunConfig

PROFILES = ("quick", "small", "paper")  # how much is measured; Figures 3 and 4 have "medium" too


FRESH = 100  # the first seed of what was written down before it was run; earlier figures had the seeds from 0 on


@dataclass(frozen=True)
class Arm:
    """A curve: its label, and how it is trained. ``lr`` None: it is tuned. ``beyond``: the paper does not have it."""

    label: str
    method: str
    lr: float | None = None
    plan: str = "constant"
    beyond: bool = False
    params: tuple[tuple[str, float], ...] = ()  # of the method's own parameters, those that have not their default
    epochs: float | None = None  # the budget, if it is not the experiment's


@dataclass(frozen=True)
class Experiment:
    """The curves of one column of a figure: methods × seeds on one problem at one batch size.

    ``name`` is its folder's, ``epochs`` the budget in #grad/n, ``grid`` the learning rates that each arm is tuned with,
    at a budget of ``tuning_epochs`` (None: the whole one). The seeds are ``first_seed`` and the numbers that follow it.
    """

    name: str
    problem: str
    batch_size: int
    epochs: float
    arms: tuple[Arm, ...]
    seeds: int
    weight_decay: float = RunConfig.weight_decay
    eval_every: float = RunConfig.eval_every
    eval_samples: int | None = None
    grid: tuple[float, ...] = ()
    tuning_epochs: float | None = None
    first_seed: int = 0
    grad_norm: bool = False  # measured at evaluations: it takes as long as a pass of training
    departures: tuple[str, ...] = field(default=(), compare=False)

    @property
    def title(self) -> str:
        return f"{self.problem}, b = {self.batch_size}"

    @property
    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def configs(self, device: str) -> list[RunConfig]:
        """A configuration an arm; one thread each, so that the cores of a machine do not change the sums."""
        return [
            RunConfig(
                problem=self.problem,
                method=arm.method,
                label=arm.label,
                lr=arm.lr,
                batch_size=self.batch_size,
                epochs=arm.epochs or self.epochs,
                weight_decay=self.weight_decay,
                plan=arm.plan,
                eval_every=self.eval_every,
                eval_samples=self.eval_samples,
                params=dict(arm.params),
                curve_samples=0,  # curves are compared, too
                grad_norm=self.grad_norm,
                device=device,
                threads=1,
            ).resolved()
            for arm in self.arms
        ]


def scaled(paper: Experiment, **changes: object) -> Experiment:
    """The paper's experiment with changes, which its departures state."""
    experiment = replace(paper, **changes)  # type: ignore[arg-type]
    stated = [f"{experiment.problem} in place of {paper.problem}"] if experiment.problem != paper.problem else []
    if experiment.batch_size != paper.batch_size:
        stated.append(f"batch size {experiment.batch_size}, not {paper.batch_size}")
    if experiment.epochs != paper.epochs:
        scheduled = any(arm.plan != "constant" for arm in paper.arms)
        note = ", milestones and stages scaled with it" if scheduled else ""
        stated.append(f"{experiment.epochs:g} #grad/n, not {paper.epochs:g}{note}")
    if experiment.tuning_epochs != paper.tuning_epochs:
        stated.append(f"learning rates tuned with {experiment.tuning_epochs:g} #grad/n")
    if experiment.weight_decay != paper.weight_decay:
        stated.append(f"weight decay {experiment.weight_decay:g}, not {paper.weight_decay:g}")
    inherited = [phrase for phrase in paper.departures if phrase != _NORMALIZED or "cifar10" in experiment.problem]
    if experiment.seeds == 1:
        inherited = [_ONE_SEED if phrase == _SEEDS_UNSTATED else phrase for phrase in inherited]
    return replace(experiment, departures=(*stated, *inherited))


def default_device(profile: str, gpus: float | None = None) -> str:
    """Where a profile's runs are: the paper's own on a GPU if there is one, or if a share of a cluster's is named."""
    there = torch.cuda.is_available() if gpus is None else gpus > 0
    return "cuda" if profile == "paper" and there else "cpu"


def papers_own(experiment: Experiment) -> tuple[Arm, ...]:
    """The experiment's arms without those that the paper does not have."""
    return tuple(arm for arm in experiment.arms if not arm.beyond)


# ---- Figure 2: a small model ---------------------------------------------------------------------------------

_SEEDS_UNSTATED = "several seeds; the paper does not say how many it has"
_ONE_SEED = _SEEDS_UNSTATED.replace("several seeds", "one seed")
BATCH_SIZES = (32, 128)


def fig2(batch_size: int) -> Experiment:
    """MNIST as in §6.1; β = 1, B = 1024 and M = B/(2b) are the method's defaults."""
    arms = tuple(
        Arm(f"{label}, α={lr:g}", method, lr)
        for (label, method), lr in product((("SPIDER-SFO", "spider-sfo"), ("SNGD", "sngd")), (0.001, 0.1))
    )
    return Experiment(f"batch-{batch_size}", "mnist-mlp", batch_size, 20, arms, seeds=5, departures=(_SEEDS_UNSTATED,))


FIG2 = [replace(fig2(batch_size), first_seed=FRESH) for batch_size in BATCH_SIZES]


# ---- Figure 3: large models ----------------------------------------------------------------------------------

POLY = "poly:stages=160"  # the paper's T = 160 epochs, whatever the budget
WARM_UP = 0.05  # of the budget
_NORMALIZED = "normalized inputs, as in the repository that §6.2 names; its text says pixels in [0, 1]"


def resnet_arms(epochs: float, poly: str = POLY) -> tuple[Arm, ...]:
    return (
        *(Arm(f"SPIDER-SFO, α={lr:g}", "spider-sfo", lr) for lr in (0.1, 0.5)),
        *(Arm(f"SNGD, α={lr:g}", "sngd", lr) for lr in (0.1, 0.5)),
        Arm("S-SNGD(v1), α=0.5", "s-sngd", 0.5, poly),
        Arm("S-SNGD(v2), α=0.5", "s-sngd", 0.5, "multistep"),  # at ½ and ¾: epochs 80 and 120 of 160
        Arm("S-SNGD(v1, warm-up), α=0.5", "s-sngd", 0.5, f"{poly}:warmup={WARM_UP * epochs:g}", beyond=True),
        Arm("SNGM, α=0.05", "sngm", 0.05, poly, beyond=True),  # 0.05/(1 − 0.9): in the long run S-SNGD's steps
        Arm("S-SGD with momentum, α=0.1", "sgd-momentum", 0.1, poly, beyond=True),  # He et al.'s rate
    )


def fig3(depth: int) -> Experiment:
    """CIFAR-10 as in §6.2."""
    return Experiment(
        f"resnet{depth}",
        f"cifar10-resnet{depth}",
        128,
        160,
        resnet_arms(160),
        seeds=3,
        weight_decay=1e-4,
        departures=(_SEEDS_UNSTATED, _NORMALIZED),
    )


def fig3_scaled(problem: str, batch_size: int, epochs: float, **changes: object) -> Experiment:
    """Figure 3's first experiment with a smaller model."""
    name = problem.partition(":")[0].removeprefix("cifar10-")
    return scaled(
        fig3(20),
        name=name,
        problem=problem,
        batch_size=batch_size,
        epochs=epochs,
        **{"arms": resnet_arms(epochs), **changes},
    )


def _small_fig3(seeds: int, *, beyond: bool) -> Experiment:
    """The paper's arms or the others, evaluated once a pass, because an evaluation costs as much as half a pass."""
    arms = tuple(arm for arm in resnet_arms(2) if arm.beyond == beyond)
    return fig3_scaled("cifar10-resnet8", 128, 2, arms=arms, seeds=seeds, first_seed=FRESH)


FIG3_SMALL = _small_fig3(20, beyond=False)
FIG3_SMALL_BEYOND = replace(_small_fig3(5, beyond=True), name="resnet8-beyond")

# ---- Figure 4: large batches ---------------------------------------------------------------------------------

FIG4 = Experiment(
    "large-batch",
    "cifar10-resnet20",
    4096,
    160,
    (
        Arm("S-SGD", "s-sgd", plan=POLY),
        Arm("S-SNGD", "s-sngd", plan=POLY),
        Arm("SNGM", "sngm", plan=POLY, beyond=True),
        Arm("S-SGD with momentum", "sgd-momentum", plan=POLY, beyond=True),
    ),
    seeds=3,
    weight_decay=1e-4,
    grid=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    departures=(_SEEDS_UNSTATED, _NORMALIZED, "the grid of learning rates is not the paper's, which gives none"),
)

FIG4_SMALL = scaled(
    FIG4,
    problem="cifar10-resnet8:10000",
    batch_size=256,
    epochs=5,
    eval_every=2.5,
    grid=FIG4.grid[:-1],
    seeds=8,
    first_seed=FRESH,
)

# ---- the paper's own networks ---------------------------------------------------------------------------------

FIG3_PAPER = [replace(fig3(depth), arms=papers_own(fig3(depth)), first_seed=FRESH) for depth in (20, 56)]
# A pass has 12 steps, which take a GPU less time than to evaluate all samples.
FIG4_PAPER = scaled(
    FIG4,
    arms=papers_own(FIG4),
    eval_every=20,
    first_seed=FRESH,
    grid=(0.1, 0.3, 1, 3, 10),
    tuning_epochs=20,
)

# For hours on two cores. One seed decides nothing: these are pictures, and nothing is judged by them.
MEDIUM_FIG3 = scaled(
    fig3(20),
    epochs=12,
    arms=papers_own(fig3(20)),
    seeds=1,
    first_seed=FRESH,
)
MEDIUM_FIG4 = scaled(
    FIG4,
    batch_size=1024,
    epochs=12,
    arms=papers_own(FIG4),
    seeds=1,
    first_seed=FRESH,
    grid=FIG4_PAPER.grid,
    tuning_epochs=3,
)

# ---- beyond the paper: how much the learning rate matters ----------------------------------------------------

_RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Of each method's rates; the best one on MNIST is inside.
_LOWEST_RATE = {"sgd": 0.01, "sngd": 0.003, "s-sngd": 0.01, "sngm": 0.001, "adamw": 0.0001}


def learning_rates(method: str) -> tuple[float, ...]:
    """Three decades about the method's best."""
    start = _RATES.index(_LOWEST_RATE[method])
    return _RATES[start : start + 7]


def sensitivity(problem: str, batch_size: int, epochs: float, seeds: int) -> Experiment:
    """Each method with each of its learning rates, evaluated at the end."""
    arms = tuple(
        Arm(f"{method}, α={lr:g}", method, lr, POLY if method == "s-sngd" else "constant", beyond=True)
        for method in _LOWEST_RATE
        for lr in learning_rates(method)
    )
    return Experiment("learning-rates", problem, batch_size, epochs, arms, seeds, eval_every=epochs)


# ---- beyond the paper: steps in other norms ------------------------------------------------------------------

HALF_DECADES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_PEERS = ("sgd-momentum", "adamw")
_NORMS = ("nsgd-momentum", "sngd-layer", "signum", "scion")
_MUONS = ("muon", "muon-adamw")  # they need hidden matrices; for the first convolutions do
_PARAMS = {"adamw": (("beta2", 0.99),)}  # nanoGPT's choice for short runs on small batches
WIDTHS = (32, 64, 128, 256)  # of shakespeare-gpt


def in_norms(
    name: str, problem: str, batch_size: int, epochs: float, seeds: int, methods: Sequence[str], **settings: object
) -> Experiment:
    """Methods that differ in the norm of their step, on one grid; rates rise for a tenth, then fall linearly to 0."""
    plan = f"poly:power=1:stages=50:warmup={0.1 * epochs:g}"
    arms = tuple(Arm(method, method, None, plan, beyond=True, params=_PARAMS.get(method, ())) for method in methods)
    experiment = Experiment(name, problem, batch_size, epochs, arms, seeds, eval_every=epochs, grid=HALF_DECADES[1:-1])
    return replace(experiment, **settings)  # type: ignore[arg-type]


def gpt_in_norms(name: str, steps: int, seeds: int, methods: Sequence[str], variant: str = "") -> Experiment:
    """nanoGPT's setting for a CPU: batches of 12 windows of 64 characters; 15 685 windows are a pass."""
    return in_norms(name, f"shakespeare-gpt{variant}", 12, steps * 12 / 15685, seeds, methods, eval_samples=512)


def by_width(steps: int, widths: Sequence[int], methods: Sequence[str]) -> list[Experiment]:
    """One seed each, because the tuning runs are what is wanted."""
    return [gpt_in_norms(f"width-{width}", steps, 1, methods, f":width-{width}") for width in widths]


_ALL_NORMS = (*_PEERS, *_NORMS, *_MUONS)
NORM_EXPERIMENTS = {
    "quick": [
        in_norms("digits-mlp", "digits-mlp", 32, 4, 2, _ALL_NORMS, grid=(0.003, 0.03, 0.3)),
        *(replace(e, grid=(0.003, 0.03)) for e in by_width(60, WIDTHS[:2], ("adamw", "scion"))),
    ],
    "small": [
        gpt_in_norms("shakespeare-gpt", 1000, 3, _ALL_NORMS),
        gpt_in_norms("shakespeare-gpt-half", 500, 3, ("scion", *_MUONS)),
        in_norms("imbalanced", "imbalanced", 128, 40, 3, (*_PEERS, *_NORMS), grid=HALF_DECADES),
        in_norms("mnist-mlp", "mnist-mlp", 128, 5, 3, _ALL_NORMS),
        in_norms("cifar10-resnet8", "cifar10-resnet8:10000", 128, 4, 3, (*_PEERS, *_NORMS, "muon")),
        *by_width(300, WIDTHS, (*_PEERS, "signum", "scion", "muon")),
    ],
    "paper": [
        gpt_in_norms("shakespeare-gpt", 5000, 5, _ALL_NORMS),
        gpt_in_norms("shakespeare-gpt-half", 2500, 5, ("scion", *_MUONS)),
        in_norms("imbalanced", "imbalanced", 128, 200, 5, (*_PEERS, *_NORMS), grid=HALF_DECADES),
        in_norms("mnist-mlp", "mnist-mlp", 128, 20, 5, _ALL_NORMS),
        in_norms("cifar10-resnet8", "cifar10-resnet8", 128, 20, 5, (*_PEERS, *_NORMS, "muon")),
        *by_width(2000, WIDTHS, _ALL_NORMS),
    ],
}
"""The experiments of ``reproduce norms``; those whose names start with "width-" are about the best rate alone."""

# ---- where the paper is ambiguous ----------------------------------------------------------------------------


class Reading(NamedTuple):
    """A reading of the paper: what it changes in an experiment of a figure (None: nothing, it is not run)."""

    what: str
    change: Callable[[Experiment], Experiment | None]


def _other_scaling(experiment: Experiment) -> Experiment:
    word = "normalized" if "mlp" in experiment.problem else "unnormalized"
    return replace(experiment, problem=f"{experiment.problem}:{word}")


def _by_step(experiment: Experiment) -> Experiment | None:
    steps = round(experiment.epochs * _samples(experiment.problem) / experiment.batch_size)
    staged = [arm for arm in experiment.arms if arm.plan.startswith(POLY)]
    arms = tuple(replace(arm, plan=arm.plan.replace(POLY, f"poly:stages={steps}")) for arm in staged)
    return replace(experiment, arms=arms) if arms else None


def _unaugmented(experiment: Experiment) -> Experiment | None:
    augmented = experiment.problem.startswith("cifar10")
    return replace(experiment, problem=f"{experiment.problem}:unaugmented") if augmented else None


def _samples(problem: str) -> int:
    return next((int(word) for word in problem.split(":") if word.isdecimal()), 50_000)  # CIFAR-10's


BASE = "as in the figures"
READINGS = {
    BASE: Reading("the figures' own reading, at this study's size", lambda experiment: experiment),
    "inputs scaled otherwise": Reading(
        "MNIST's pixels of mean 0 and variance 1, not in [0, 1]; CIFAR-10's in [0, 1], not normalized", _other_scaling
    ),
    "poly by step": Reading("in α(1 − t/T)^r, t counts steps, not the 160ths of the budget", _by_step),
    "no augmentation": Reading("CIFAR-10 without random crops and flips", _unaugmented),
}


def _reduced(**by_figure: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """The paper's own arms of some experiments, by figure."""
    return {figure: [replace(e, arms=papers_own(e)) for e in experiments] for figure, experiments in by_figure.items()}


_REDUCED = {
    "quick": _reduced(
        fig2=[scaled(fig2(b), problem="mnist-mlp:3000", epochs=10, seeds=2) for b in BATCH_SIZES],
        fig3=[fig3_scaled("cifar10-resnet8:320", 16, 2, seeds=2)],
    ),
    "small": _reduced(
        fig2=FIG2,
        fig3=[replace(FIG3_SMALL, seeds=5)],
        fig4=[replace(FIG4_SMALL, seeds=5)],
    ),
    "paper": _reduced(
        fig2=FIG2,
        fig3=[fig3_scaled("cifar10-resnet20", 128, 40, seeds=2, first_seed=FRESH)],
        fig4=[scaled(FIG4, epochs=40, seeds=2, first_seed=FRESH, grid=FIG4_PAPER.grid)],
    ),
}


def experiments_by_reading(profile: str) -> dict[str, dict[str, list[Experiment]]]:
    """The experiments of each reading by figure; their names are READING/FIGURE/EXPERIMENT."""
    return {
        reading: {
            figure: [
                replace(changed, name=f"{reading.replace(' ', '-')}/{figure}/{experiment.name}")
                for experiment in experiments
                if (changed := change(experiment))
            ]
            for figure, experiments in _REDUCED[profile].items()
        }
        for reading, (_, change) in READINGS.items()
    }


# ---- all of them ---------------------------------------------------------------------------------------------

EXPERIMENTS: Mapping[str, Mapping[str, Sequence[Experiment]]] = {
    "fig2": {
        "quick": [scaled(fig2(b), problem="mnist-mlp:6000", epochs=10, seeds=3) for b in BATCH_SIZES],
        "small": FIG2,
        "paper": FIG2,
    },
    "fig3": {
        "quick": [fig3_scaled("cifar10-resnet8:1024", 32, 4, seeds=2)],
        "small": [FIG3_SMALL, FIG3_SMALL_BEYOND],
        "medium": [MEDIUM_FIG3],
        "paper": FIG3_PAPER,
    },
    "fig4": {
        "quick": [scaled(FIG4, problem="digits-mlp", batch_size=256, epochs=20, eval_every=2)],
        "small": [FIG4_SMALL],
        "medium": [MEDIUM_FIG4],
        "paper": [FIG4_PAPER],
    },
    "sensitivity": {
        "quick": [sensitivity("digits-mlp", 32, 10, seeds=2)],
        "small": [sensitivity("mnist-mlp", 128, 3, seeds=3)],
        "paper": [sensitivity("mnist-mlp", 128, 20, seeds=5)],
    },
    "norms": NORM_EXPERIMENTS,
    "alternatives": {
        profile: [e for figures in experiments_by_reading(profile).values() for part in figures.values() for e in part]
        for profile in PROFILES
    },
}
"""By figure and profile."""
