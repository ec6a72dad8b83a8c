"""The settings of a run: everything needed to repeat it."""

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Required, TypedDict, cast, get_type_hints

import torch

from sngd.checks import shown
from sngd.problems.registry import BATCH_SIZE, default_batch_size
from sngd.stages import StagePlan
from sngd.training.methods import METHODS, check_parameters, find_method, parameter_values
from sngd.training.plan_words import build_plan, inline
from sngd.training.sampler import SAMPLERS
from sngd.training.schema import ONE_LINE, Declared, check, check_value, declared, read
from sngd.training.tracking import tracked_names, tracking_cost

PRECISIONS = ("float32", "bfloat16")
CURVE_SAMPLES, MANY_SAMPLES = 2000, 10_000  # of MNIST the former are about 3 % of the arithmetic of a pass


@dataclass(frozen=True)
class RunConfig:
    """Settings of one run; None stands for a default that ``resolved`` fills in.

    Each setting is declared here and nowhere else: its type, range, default, and in ``help`` its meaning. The checks of
    values and of config.json, the options of ``sngd train`` and ``sngd compare``, ``command``, and the list of
    settings in the documentation are made from these declarations.
    """

    problem: Annotated[
        str,
        replace(ONE_LINE, help="A name from 'sngd problems', or path/to/file.py:factory for your own.", options=()),
    ]
    method: Annotated[str, replace(ONE_LINE, help="A name from 'sngd methods'.")]
    label: Annotated[
        str | None,
        replace(
            ONE_LINE,
            help="What tables call the arm; its runs differ in their seed only. (default: the method's name)",
            options=(),
        ),
    ] = None
    lr: Annotated[float | None, Declared(gt=0, help="Learning rate α of the first stage. (default: the method's)")] = (
        None
    )
    batch_size: Annotated[
        int | None,
        Declared(ge=1, help=f"Samples a step, b. (default: the problem's own, else {BATCH_SIZE})"),
    ] = None
    epochs: Annotated[
        float, Declared(gt=0, le=1e9, help="Budget: gradient evaluations over n. No method spends more.")
    ] = 20.0
    # Methods that share a seed share these two; the random output is drawn by it, too.
    seed: Annotated[int, Declared(ge=0, help="Draws initial weights and sample order.")] = 0
    weight_decay: Annotated[float, Declared(ge=0, help="λ: adds λw to every gradient.")] = 0.0
    plan: Annotated[
        str | None,
        Declared(help="Stage plan, in the words that 'sngd train --help' ends with. (default: the method's)"),
    ] = None
    params: Annotated[
        Mapping[str, float],
        Declared(help="A parameter of the method's own, as NAME=VALUE; repeatable.", options=("--param", "-p")),
    ] = field(default_factory=dict)
    sampling: Annotated[
        str,
        Declared(one_of=tuple(SAMPLERS), help="'shuffled' passes, or 'independent' draws as the theorems assume."),
    ] = "shuffled"
    output: Annotated[
        str,
        Declared(one_of=("last", "random"), help="What the method returns: the 'last' iterate or a 'random' one."),
    ] = "last"
    eval_every: Annotated[
        float, Declared(gt=0, help="Evaluate every so many epochs (gradient evaluations over n).")
    ] = 1.0
    eval_samples: Annotated[
        int | None,
        Declared(
            ge=1,
            help="Measure F on so many training samples, evenly spaced in their order, not on all. (default: all)",
        ),
    ] = None
    # Evaluations of all samples can take as long as the steps. What tables and verdicts need is the last one.
    curve_samples: Annotated[
        int | None,
        Declared(
            ge=0,
            help="Evaluations before the last one use so many training and as many test samples, drawn once for all "
            "runs. The last one uses all. 0, or as many as there are for training: every one uses all. (default: "
            f"{CURVE_SAMPLES}; 0 of fewer than {MANY_SAMPLES}, and with --grad-norm, --track, --output random or "
            "--sampling independent)",
        ),
    ] = None
    grad_norm: Annotated[
        bool | None,
        Declared(
            help="Measure ‖∇F(w)‖ at evaluations; on all samples it takes about as long as an epoch. (default: yes, "
            "unless evaluations use some of the samples)"
        ),
    ] = None
    # The oracle calls of tracking are counted separately, as ``tracking_calls``.
    track: Annotated[
        str | None,
        replace(
            ONE_LINE,
            help="Measure at each evaluation, beside the budget, some of smoothness, noise, curvature, "
            f"joined by commas ({tracking_cost()} gradient evaluations).",
        ),
    ] = None
    # With several processes, "cuda" means a different device for each.
    device: Annotated[str, replace(ONE_LINE, help="cpu, cuda, cuda:1, …")] = "cpu"
    # Threads of all processes on a machine together. It is a setting because the last bits of sums depend on it.
    threads: Annotated[int | None, Declared(ge=1, help="CPU threads of a run. (default: its share of the cores)")] = (
        None
    )
    precision: Annotated[
        str,
        Declared(
            one_of=PRECISIONS,
            help="Of the products in training steps: 'float32', or 'bfloat16', which is quicker on a GPU. Weights, "
            "gradients and evaluations are float32 all the same.",
        ),
    ] = "float32"
    # A setting because sums are rounded in another order.
    compile: Annotated[
        bool | None,
        Declared(
            help="Train through torch.compile, or do not. (default: if it pays, in long runs of convolutional networks "
            "on the CPU)"
        ),
    ] = None

    def resolved(self, n: int | None = None) -> "RunConfig":
        """The same settings, checked, with every default filled in.

        Those of the method's parameters and of what rows measure need ``n``, the number of training samples.

        Raises:
            ValueError: a value is out of its range, or a name unknown.
        """
        method = find_method(self.method)
        config = replace(
            self,
            label=self.label or self.method,
            lr=method.lr if self.lr is None else self.lr,
            batch_size=self.batch_size_or_default,
            plan=inline(self.plan or method.plan),
            params=dict(self.params)
            if n is None
            else parameter_values(method, self.params, self.batch_size_or_default, n),
            curve_samples=self.curve_samples if n is None else self._curve_samples(n),
            grad_norm=self.grad_norm if n is None else self._measures_grad_norm(n),
            threads=self.threads or torch.get_num_threads(),
        )
        config._check()
        return config

    def _curve_samples(self, n: int) -> int:
        """By default evaluations that may be held against a theorem use all samples, as theorems are about F."""
        if self.curve_samples is not None:
            return self.curve_samples
        for_theorems = self.grad_norm or self.track or self.output == "random" or self.sampling == "independent"
        return 0 if for_theorems or (self.eval_samples or n) < MANY_SAMPLES else CURVE_SAMPLES

    def _measures_grad_norm(self, n: int) -> bool:
        if self.grad_norm is not None:
            return self.grad_norm
        return not 0 < self._curve_samples(n) < (self.eval_samples or n)

    @property
    def batch_size_or_default(self) -> int:
        return default_batch_size(self.problem) if self.batch_size is None else self.batch_size

    def stage_plan(self, n: int) -> StagePlan:
        """The stage plan of the run on ``n`` samples. Its length is the budget over the method's mean cost of a step.

        Raises:
            ValueError: a value is out of its range.
        """
        method = find_method(self.method)
        values = parameter_values(method, self.params, self.batch_size_or_default, n)
        steps_per_epoch = n / method.estimate.cost(self.batch_size_or_default, n, values).mean
        return build_plan(self.plan or method.plan, self.lr or method.lr, self.epochs, steps_per_epoch)

    def _check(self) -> None:
        for setting in SETTINGS.values():
            check_value(setting.name, getattr(self, setting.name), setting.type)
        if self.track is not None:
            tracked_names("track", self.track)
        check_parameters(find_method(self.method), self.params)
        _check_device(self.device)
        build_plan(str(self.plan), self.lr or 0.0, self.epochs, 1e3)  # a misspelt plan is found before data is loaded

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["sngd", "train", self.problem]
        for setting in SETTINGS.values():
            words += _spelled(setting, getattr(self, setting.name))
        return shlex.join(words)


def _spelled(setting: "Setting", value: Any) -> list[str]:
    """The words that give a setting this value."""
    if value is None or not setting.options:
        return []
    option = setting.options[0]
    if isinstance(value, bool):
        return [] if value == setting.default else [option if value else option.replace("--", "--no-", 1)]
    if isinstance(value, Mapping):
        return [word for name, number in value.items() for word in (option, f"{name}={number!r}")]
    return [option, str(value)]


class Setting(NamedTuple):
    """A setting of a run as ``RunConfig`` declares it; its ``default`` is ``MISSING`` if it must be given."""

    name: str
    type: Any  # with its ``Declared``
    default: Any

    @property
    def declared(self) -> Declared:
        return declared(self.type)[1]

    @property
    def options(self) -> tuple[str, ...]:
        """Its spellings as an option of the command line."""
        spelled = self.declared.options
        return ("--" + self.name.replace("_", "-"),) if spelled is None else spelled

    @property
    def help(self) -> str:
        """What it is, and its range."""
        allowed = self.declared.range()
        return f"{self.declared.help} [{allowed}]" if allowed else self.declared.help


def _settings() -> dict[str, Setting]:
    hints = get_type_hints(RunConfig, include_extras=True)
    return {
        f.name: Setting(f.name, hints[f.name], f.default if f.default_factory is MISSING else f.default_factory())
        for f in fields(RunConfig)
    }


SETTINGS = _settings()


def _arguments() -> str:
    """The list of arguments, for ``RunConfig``'s docstring."""
    return "\n".join(f"        {s.name}: {s.help}{_default(s)}" for s in SETTINGS.values())


def _default(setting: Setting) -> str:
    return "" if setting.default is MISSING or setting.default is None else f" Default: {setting.default!r}."


RunConfig.__doc__ = f"{RunConfig.__doc__}\n    Args:\n{_arguments()}\n    "


class StoredConfig(TypedDict, total=False):
    """The settings of a ``RunConfig`` in config.json; one of an earlier version lacks those that came later."""

    problem: Required[str]
    method: Required[str]
    label: str | None
    lr: float | None
    batch_size: int | None
    epochs: float
    seed: int
    weight_decay: float
    plan: str | None
    params: Mapping[str, float]
    sampling: str
    output: str
    eval_every: float
    eval_samples: int | None
    curve_samples: int | None
    grad_norm: bool | None
    track: str | None
    device: str
    threads: int | None
    precision: str
    compile: bool | None


def read_config(path: Path) -> StoredConfig:
    """The settings that config.json in ``path`` holds; one of an earlier version lacks those that came later.

    Raises:
        FileNotFoundError: no such file.
        Malformed: (a ValueError) the file is damaged, or holds no settings of a run.
        ValueError: it has a setting, or a parameter of its method, that is unknown.
    """
    content = cast(StoredConfig, read(path, RunConfig))  # a dict that RunConfig's fields have checked
    _check_known_parameters(content, str(path))
    return content


def as_trained(stored: StoredConfig) -> StoredConfig:
    """The settings with those added that came later, as runs were trained before."""
    return {
        **stored,
        "curve_samples": stored.get("curve_samples", 0),
        "precision": stored.get("precision", "float32"),
        "compile": bool(stored.get("compile")),
    }


def check_config(content: object, where: str, place: str) -> StoredConfig:
    """As ``read_config``, of settings that were at ``place`` in another file, ``where``."""
    check(content, RunConfig, where, place)
    config = cast(StoredConfig, content)
    _check_known_parameters(config, where)
    return config


def _check_known_parameters(content: StoredConfig, where: str) -> None:
    if method := METHODS.get(content["method"]):
        try:
            check_parameters(method, content.get("params", {}))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _check_device(name: str) -> None:
    """Its name; whether it is there matters on the machine that does the run, which may be another one."""
    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {shown(name)}") from None
