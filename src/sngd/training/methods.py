"""The methods, one readable row each: estimator × step rule × stage plan × output rule."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sngd.checks import cut, shown, suggestion
from sngd.cost import Cost, differences, differences_of_random_periods, same_every_step
from sngd.estimators import SCSG, SVRG, Estimator, Full, MiniBatch, Spider
from sngd.norms import Norm, Sign
from sngd.optim import SNGD, Perturbed
from sngd.param_groups import groups
from sngd.stages import StagePlan
from sngd.training.loop import Composed, Loop
from sngd.training.muon_adamw import MuonWithAdamW
from sngd.training.natasha2 import Natasha2, epoch_cost
from sngd.training.schema import is_finite


@dataclass(frozen=True)
class Setting:
    """Everything a method is built from; ``setting["period"]`` is the value of the method's parameter ``period``."""

    model: nn.Module
    n: int
    batch_size: int
    lr: float
    weight_decay: float
    generator: Callable[[str], torch.Generator]  # a separate CPU generator for each purpose
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def count(self, name: str) -> int:
        """A parameter that counts something, as an int; ValueError if it is not whole."""
        if self[name] != int(self[name]):
            raise ValueError(f"{name} must be a whole number, got {self[name]}")
        return int(self[name])

    @property
    def params(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]


class Parameter(NamedTuple):
    """A parameter of an estimator or step rule; ``default`` is a number or a function of (b, n, earlier parameters)."""

    name: str
    symbol: str
    what: str
    default: float | Callable[[int, int, Mapping[str, float]], float]
    default_text: str = ""

    @property
    def shown_default(self) -> str:
        return self.default_text or f"{self.default:g}"


class Estimate(NamedTuple):
    """An estimator: its formula, its oracle calls a step in words and in numbers, and how it is built.

    ``cost`` maps (b, n, values of the parameters by name) to the oracle calls of its steps.
    """

    formula: str
    cost_text: str
    cost: Callable[[int, int, Mapping[str, float]], Cost]
    build: Callable[[Setting], Estimator]
    parameters: tuple[Parameter, ...] = ()


class StepRule(NamedTuple):
    """A step rule: its formula (g stands for the estimate plus λw), and how its optimizer is built."""

    formula: str
    build: Callable[[Setting], Optimizer]
    parameters: tuple[Parameter, ...] = ()


ANCHOR = Parameter(
    "anchor_batch_size", "B", "samples of an anchor", lambda b, n, _: max(b, min(1024, n)), "min(1024, n)"
)
PERIOD = Parameter(
    "period", "M", "steps between anchors", lambda b, _n, v: max(1, v["anchor_batch_size"] // (2 * b)), "B/(2b)"
)
PASS = Parameter("period", "M", "steps between anchors", lambda b, n, _: max(1, n // b), "n/b")
CHUNK = Parameter(
    "chunk_size",
    "C",
    "samples of a full or anchor batch at a time; BatchNorm normalizes each such chunk by itself",
    512,
)
CAP = Parameter("max_scale", "β", "cap on α/‖g‖", 1.0)
MOMENTUM = Parameter("momentum", "β", "momentum", 0.9)
STD = Parameter("std", "σ_ξ", "standard deviation of the noise's entries", 0.01)
EVERY = Parameter("every", "q", "steps between perturbations", 10)

MINIBATCH = Estimate(
    "g = (1/b) Σ ∇f(w; a)",
    "b",
    lambda b, _n, _v: same_every_step(b),
    lambda s: MiniBatch(s.model, s.batch_size),
)
FULL = Estimate(
    "g = ∇F(w)",
    "n",
    lambda _b, n, _v: same_every_step(n),
    lambda s: Full(s.model, s.n, s.count("chunk_size")),
    (CHUNK,),
)
SPIDER = Estimate(
    "g ← (1/b) Σ [∇f(w; a) − ∇f(w_prev; a)] + g, anew every M steps from B samples",
    "B at an anchor, else 2b",
    lambda b, _n, v: differences(v["anchor_batch_size"], b, v["period"]),
    lambda s: Spider(
        s.model,
        anchor_batch_size=s.count("anchor_batch_size"),
        batch_size=s.batch_size,
        period=s.count("period"),
        chunk_size=s.count("chunk_size"),
    ),
    (ANCHOR, PERIOD, CHUNK),
)
ANCHORED = Estimate(
    "g = (1/b) Σ [∇f(w; a) − ∇f(w̃; a)] + ∇F(w̃), w̃ anew every M steps",
    "n at an anchor, else 2b",
    lambda b, n, v: differences(n, b, v["period"]),
    lambda s: SVRG(s.model, n=s.n, batch_size=s.batch_size, period=s.count("period"), chunk_size=s.count("chunk_size")),
    (PASS, CHUNK),
)
ANCHORED_BATCH = Estimate(
    "g = (1/b) Σ [∇f(w; a) − ∇f(w̃; a)] + ∇f_B(w̃), w̃ anew after N steps, N geometric with mean B/b",
    "B at an anchor, else 2b",
    lambda b, _n, v: differences_of_random_periods(v["anchor_batch_size"], b),
    lambda s: SCSG(
        s.model,
        anchor_batch_size=s.count("anchor_batch_size"),
        batch_size=s.batch_size,
        generator=s.generator("periods"),
        chunk_size=s.count("chunk_size"),
    ),
    (ANCHOR, CHUNK),
)

GRADIENT = StepRule("w ← w − αg", lambda s: torch.optim.SGD(s.params, s.lr, weight_decay=s.weight_decay))
NORMALIZED = StepRule("w ← w − α g/‖g‖", lambda s: SNGD(s.params, s.lr, weight_decay=s.weight_decay))
CAPPED = StepRule(
    "w ← w − min{α/‖g‖, β} g",
    lambda s: SNGD(s.params, s.lr, weight_decay=s.weight_decay, max_scale=s["max_scale"]),
    (CAP,),
)
HEAVY_BALL = StepRule(
    "u ← βu + g, w ← w − αu",
    lambda s: torch.optim.SGD(s.params, s.lr, momentum=s["momentum"], weight_decay=s.weight_decay),
    (MOMENTUM,),
)
ADAMW = StepRule(
    "w ← (1 − αλ)w − α m̂/(√v̂ + ε), m̂ and v̂ running means of g and g² without λw",
    lambda s: torch.optim.AdamW(s.params, s.lr, (s["beta1"], s["beta2"]), weight_decay=s.weight_decay),
    (
        Parameter("beta1", "β₁", "decay of the mean of g", 0.9),
        Parameter("beta2", "β₂", "decay of the mean of g²", 0.999),
    ),
)
NORMALIZED_THEN_MOMENTUM = StepRule(
    "u ← βu + g/‖g‖, w ← w − αu",
    lambda s: SNGD(s.params, s.lr, weight_decay=s.weight_decay, momentum=s["momentum"]),
    (MOMENTUM,),
)
MOMENTUM_THEN_NORMALIZED = StepRule(
    "m ← βm + (1−β)g, w ← w − α m/‖m‖",
    lambda s: SNGD(s.params, s.lr, weight_decay=s.weight_decay, momentum=s["momentum"], normalize="momentum"),
    (MOMENTUM,),
)


def _in_norm(setting: Setting, params: Iterable[Any], norm: Norm | str = "l2") -> SNGD:
    """Momentum, then a step in a norm, with decoupled weight decay."""
    return SNGD(
        params,
        setting.lr,
        norm=norm,
        momentum=setting["momentum"],
        normalize="momentum",
        weight_decay=setting.weight_decay,
        decoupled_weight_decay=True,
    )


_ELSEWHERE = ("embedding", "vector", "output", "token")  # kinds of weights that Muon is not meant for
_MUON = dict.fromkeys(("hidden", "input", "convolution"), "spectral(scaled=max)")
_SIGN = dict.fromkeys(_ELSEWHERE, "sign(scaled=False)")


def _muon(s: Setting) -> SNGD:
    ratios = dict.fromkeys(_ELSEWHERE, s["others_lr"] / s.lr)
    kinds = groups(s.model, s.lr, norms=_MUON | _SIGN, ratios=ratios)
    if not any(group["kind"] in _MUON for group in kinds):
        raise ValueError("muon needs a hidden matrix or a convolution, and this model has none: signum is its rest")
    return _in_norm(s, kinds)


def _muon_adamw(s: Setting) -> MuonWithAdamW:
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for group in groups(s.model, s.lr):
        (matrices if group["kind"] in ("hidden", "input") else others).extend(group["params"])
    return MuonWithAdamW(matrices, others, s.lr, s["others_lr"], s.weight_decay)


_AFTER_MEAN = "m ← βm + (1−β)g without λw, w ← (1 − αλ)w − α "
OTHERS = Parameter("others_lr", "α'", "learning rate of the first stage of all weights but hidden ones", 0.001)
SIGN_OF_MOMENTUM = StepRule(f"{_AFTER_MEAN}sign(m)", lambda s: _in_norm(s, s.params, Sign(scaled=False)), (MOMENTUM,))
LAYERS_NORMALIZED = StepRule(
    f"{_AFTER_MEAN}f m/‖m‖ for each tensor, f its RMS factor", lambda s: _in_norm(s, s.params, "layer"), (MOMENTUM,)
)
NORM_BY_KIND = StepRule(
    f"{_AFTER_MEAN}unit(m), the norm by kind of weight: spectral, row, sign, layer",
    lambda s: _in_norm(s, groups(s.model, s.lr)),
    (MOMENTUM,),
)
ORTHOGONALIZED = StepRule(
    f"{_AFTER_MEAN}√max(1, d_out/d_in) URᵀ with m = UΣRᵀ; other weights than hidden matrices and convolutions: sign(m)",
    _muon,
    (Parameter("momentum", "β", "momentum", 0.95), OTHERS),
)
TORCH_MUON = StepRule("torch.optim.Muon for hidden matrices, torch.optim.AdamW for the rest", _muon_adamw, (OTHERS,))
IN_NORM = (SIGN_OF_MOMENTUM, LAYERS_NORMALIZED, NORM_BY_KIND, ORTHOGONALIZED)
"""Rules of normalized momentum in another norm than ‖·‖₂. Their weight decay is decoupled."""

NORMALIZED_PERTURBED = StepRule(
    "w ← w − α g/‖g‖, plus ξ ~ N(0, σ_ξ² I) when mod(t, q) = 0",
    lambda s: Perturbed(NORMALIZED.build(s), s["std"], s.count("every"), s.generator("noise")),
    (STD, EVERY),
)
GRADIENT_PERTURBED = StepRule(
    "w ← w − α(g + ξ), ξ ~ N(0, σ_ξ² I)",
    lambda s: Perturbed(GRADIENT.build(s), s.lr * s["std"], generator=s.generator("noise")),
    (STD,),
)


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    ``plan`` is the default stage plan, as ``sngd train --plan`` spells it, ``lr`` the default learning rate α of its
    first stage. ``output`` is the iterate that the method's theory is about, the last or a random one. A run returns
    the last one unless ``--output`` says otherwise.
    ``paper`` says where the method is defined.
    """

    name: str
    estimate: Estimate
    step_rule: StepRule
    plan: str
    output: str
    lr: float
    summary: str
    paper: str

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its own parameters, beside learning rate, batch size, weight decay and plan."""
        return self.estimate.parameters + self.step_rule.parameters

    def build(self, setting: Setting, plan: StagePlan) -> Loop:
        """The method at work, with the learning rates of ``plan``."""
        return Composed(self.estimate.build(setting), self.step_rule.build(setting), plan)


class Natasha2Method(Method):
    """The one method that is no combination of estimator, step rule and plan, and has its own loop."""

    def build(self, setting: Setting, plan: StagePlan) -> Loop:
        if len(plan) > 1 or setting.weight_decay:
            raise ValueError(
                "natasha2 has a constant learning rate and no weight decay: leave out plan and weight_decay"
            )
        return Natasha2(
            setting.model,
            setting.lr,
            batch_size=setting.batch_size,
            anchor_batch_size=setting.count("anchor_batch_size"),
            sub_epochs=setting.count("sub_epochs"),
            delta=setting["delta"],
            hessian_lipschitz=setting["hessian_lipschitz"],
            oja_steps=setting.count("oja_steps"),
            generator=setting.generator("natasha2"),
        )


NATASHA_ESTIMATE = Estimate(
    "SCSG's, of f(w) + L max{0, ‖w − y‖ − δ/L₂}² with a retraction to the sub-epoch's start",
    "2b; 2B when curvature is measured (a Hessian-vector product counts as two)",
    lambda b, _n, v: epoch_cost(b, v["anchor_batch_size"], v["sub_epochs"], v["oja_steps"]),
    ANCHORED_BATCH.build,
    (
        ANCHOR,
        Parameter("sub_epochs", "p", "sub-epochs of an epoch", 4),
        Parameter("delta", "δ", "curvature below −δ/2 is followed", 0.1),
        Parameter("hessian_lipschitz", "L₂", "Lipschitz constant of ∇²f", 0.1),
        Parameter("oja_steps", "T", "iterations of Oja's search", 20),
    ),
)
NATASHA_STEP = StepRule(
    "w ← w − αg, or w ← w ± (δ/L₂)v along negative curvature v found by Oja's search", GRADIENT.build
)

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("gd", FULL, GRADIENT, "constant", "last", 0.1, "gradient descent", "eq. 2"),
        Method("ngd", FULL, NORMALIZED, "constant", "last", 0.1, "normalized gradient descent", "eq. 3"),
        Method("sgd", MINIBATCH, GRADIENT, "constant", "last", 0.1, "stochastic gradient descent", "eq. 2"),
        Method("s-sgd", MINIBATCH, GRADIENT, "poly", "last", 0.5, "stagewise SGD", "§6, Figure 4"),
        Method("sngd", MINIBATCH, NORMALIZED, "constant", "random", 0.1, "stochastic NGD", "Algorithm 1"),
        Method("s-sngd", MINIBATCH, NORMALIZED, "poly", "random", 0.5, "stagewise SNGD", "Algorithm 2"),
        Method("capped-sngd", MINIBATCH, CAPPED, "constant", "random", 0.1, "SNGD far away, SGD near by", "eq. 5"),
        Method(
            "spider-sfo",
            SPIDER,
            CAPPED,
            "constant",
            "random",
            0.1,
            "capped steps on SPIDER",
            "Algorithm 3; Fang et al. 2018",
        ),
        Method("svrg", ANCHORED, GRADIENT, "constant", "last", 0.1, "variance-reduced SGD", "Johnson and Zhang 2013"),
        Method("scsg", ANCHORED_BATCH, GRADIENT, "constant", "last", 0.1, "SVRG with batch anchors", "Lei et al. 2017"),
        Natasha2Method(
            "natasha2", NATASHA_ESTIMATE, NATASHA_STEP, "constant", "random", 0.1, "SCSG and Oja", "Allen-Zhu 2018"
        ),
        Method(
            "saddle-ngd",
            FULL,
            NORMALIZED_PERTURBED,
            "constant",
            "last",
            0.1,
            "NGD, kicked now and then",
            "eq. 4; Levy 2016",
        ),
        Method(
            "noisy-gd",
            FULL,
            GRADIENT_PERTURBED,
            "constant",
            "last",
            0.1,
            "GD with noise at every step",
            "Ge et al. 2015",
        ),
        Method("sgd-momentum", MINIBATCH, HEAVY_BALL, "constant", "last", 0.01, "SGD with momentum", "Polyak 1964"),
        Method(
            "adamw",
            MINIBATCH,
            ADAMW,
            "constant",
            "last",
            0.001,
            "Adam with decoupled weight decay",
            "Loshchilov and Hutter 2019",
        ),
        Method(
            "sngm",
            MINIBATCH,
            NORMALIZED_THEN_MOMENTUM,
            "constant",
            "last",
            0.02,
            "SNGD with momentum",
            "arXiv 2007.13985",
        ),
        Method(
            "nsgd-momentum",
            MINIBATCH,
            MOMENTUM_THEN_NORMALIZED,
            "constant",
            "last",
            0.1,
            "normalized momentum",
            "Cutkosky and Mehta 2020",
        ),
        Method(
            "sngd-layer",
            MINIBATCH,
            LAYERS_NORMALIZED,
            "constant",
            "last",
            0.01,
            "normalized momentum, layer by layer",
            "as LARS without its trust ratio; You et al. 2017",
        ),
        Method(
            "signum",
            MINIBATCH,
            SIGN_OF_MOMENTUM,
            "constant",
            "last",
            0.001,
            "sign of momentum",
            "Bernstein et al. 2018",
        ),
        Method(
            "muon", MINIBATCH, ORTHOGONALIZED, "constant", "last", 0.02, "orthogonalized momentum", "Jordan et al. 2024"
        ),
        Method(
            "scion",
            MINIBATCH,
            NORM_BY_KIND,
            "constant",
            "last",
            0.02,
            "a norm by kind of weight",
            "Pethick et al. 2025",
        ),
        Method(
            "muon-adamw",
            MINIBATCH,
            TORCH_MUON,
            "constant",
            "last",
            0.02,
            "torch's Muon with AdamW",
            "Jordan et al. 2024",
        ),
    )
}


BUILT_IN = tuple(METHODS.values())  # METHODS may get more


def find_method(name: str) -> Method:
    """The row called ``name``; ValueError with the nearest name if there is none."""
    if name not in METHODS:
        meant = suggestion(name, METHODS) or ";"
        raise ValueError(f"unknown method {shown(name)}{meant} must be one of {', '.join(METHODS)}")
    return METHODS[name]


def check_parameters(method: Method, given: Mapping[str, float]) -> None:
    """ValueError for a name that is no parameter of the method, or a value that is no finite number."""
    known = [parameter.name for parameter in method.parameters]
    for name, value in given.items():
        if name not in known:
            takes = f"which takes {', '.join(known)}" if known else "which takes none"
            raise ValueError(f"{shown(name)} is no parameter of {method.name}, {takes}")
        if not is_finite(value):
            raise ValueError(f"{cut(name)} must be a finite number, got {shown(value)}")


_EARLIER = {"chunk_size": 512}  # values of runs that are older than the parameter in config.json


def recorded_parameters(method: str, params: Mapping[str, float]) -> dict[str, float]:
    """The ``params`` of a run's config.json, which may be older than some parameters: those get the value they had."""
    known = {parameter.name for parameter in METHODS[method].parameters} if method in METHODS else set()
    return {**{name: value for name, value in _EARLIER.items() if name in known}, **params}


def parameter_values(method: Method, given: Mapping[str, float], batch_size: int, n: int) -> dict[str, float]:
    """Every parameter of the method: the given value, else its default for b = ``batch_size`` and ``n`` samples."""
    values: dict[str, float] = {}
    for name, _, _, default, _ in method.parameters:
        values[name] = (
            given[name] if name in given else default(batch_size, n, values) if callable(default) else default
        )
    return values
