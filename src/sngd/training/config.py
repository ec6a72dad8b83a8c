"""What a run is: everything needed to repeat it."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import torch

from sngd.checks import shown
from sngd.training.methods import METHODS, check_parameters, find_method, parameter_values
from sngd.training.plan_words import build_plan, inline
from sngd.training.sampler import SAMPLERS
from sngd.training.schema import ONE_LINE, Declared, Line, check_value, read
from sngd.training.tracking import tracked_names


@dataclass(frozen=True)
class RunConfig:
    """Settings of one run; None stands for a default that ``resolved`` fills in.

    Args:
        problem: name of a problem, or ``path/to/file.py:factory``.
        method: name of a row of ``METHODS``.
        label: what tables call the arm; runs that differ in their seed only share it. Default: the method's name.
        lr: α > 0, of the first stage. Default: the method's.
        batch_size: b ≥ 1, at most n.
        epochs: budget, in oracle calls over n, > 0 and at most 1e9. No run spends more.
        seed: ≥ 0; draws the initial weights, the order of the samples and the random output. Methods that share a
            seed share the first two.
        weight_decay: λ ≥ 0.
        params: the method's own parameters by name, see ``sngd methods``. Default: the method's.
        plan: stage plan, see ``sngd.training.plan_words``. Default: the method's.
        sampling: "shuffled" passes through the data, as in practice, or "independent" draws, as the theorems assume.
        output: "last" iterate, or "random": drawn with the plan's weights (Algorithms 1 and 2).
        eval_every: epochs between evaluations, > 0.
        grad_norm: whether an evaluation measures ‖∇F(w)‖, which takes a backward pass through all training samples.
        track: constants to measure at each evaluation, some of "smoothness,noise,curvature"; their oracle calls are
            counted apart, as ``tracking_calls``. Default: none.
        device: "cpu", "cuda", "cuda:1", …; with several processes "cuda" is another one for each.
        threads: CPU threads, ≥ 1, of all processes on a machine together; part of the configuration because sums depend
            on it in their last bits. Default: torch's.
    """

    problem: Line
    method: Line
    label: Annotated[str | None, ONE_LINE] = None
    lr: Annotated[float | None, Declared(gt=0)] = None
    batch_size: Annotated[int, Declared(ge=1)] = 128
    epochs: Annotated[float, Declared(gt=0, le=1e9)] = 20.0
    seed: Annotated[int, Declared(ge=0)] = 0
    weight_decay: Annotated[float, Declared(ge=0)] = 0.0
    plan: str | None = None
    params: Mapping[str, float] = field(default_factory=dict)
    sampling: Annotated[str, Declared(one_of=tuple(SAMPLERS))] = "shuffled"
    output: Annotated[str, Declared(one_of=("last", "random"))] = "last"
    eval_every: Annotated[float, Declared(gt=0)] = 1.0
    grad_norm: bool = True
    track: Annotated[str | None, ONE_LINE] = None
    device: Line = "cpu"
    threads: Annotated[int | None, Declared(ge=1)] = None

    def resolved(self, n: int | None = None) -> "RunConfig":
        """The same with every default written out, checked; the method's own parameters if ``n`` samples are known.

        Raises:
            ValueError: a value is out of its range, or a name unknown.
        """
        method = find_method(self.method)
        config = replace(
            self,
            label=self.label or self.method,
            lr=method.lr if self.lr is None else self.lr,
            plan=inline(self.plan or method.plan),
            params=dict(self.params) if n is None else parameter_values(method, self.params, self.batch_size, n),
            threads=self.threads or torch.get_num_threads(),
        )
        config._check()
        return config

    def _check(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            check_value(name, getattr(self, name), hint)
        if self.track is not None:
            tracked_names("track", self.track)
        check_parameters(find_method(self.method), self.params)
        _check_device(self.device)
        build_plan(str(self.plan), self.lr or 0.0, self.epochs, 1e3)  # a misspelt plan is found before data is loaded

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["sngd", "train", self.problem, "--method", self.method]
        for setting in fields(self)[3:]:
            value = getattr(self, setting.name)
            if setting.name == "params":
                words += [word for name, number in value.items() for word in ("--param", f"{name}={number!r}")]
            elif isinstance(value, bool):
                words += [] if value else ["--no-" + setting.name.replace("_", "-")]
            elif value is not None:
                words += ["--" + setting.name.replace("_", "-"), str(value)]
        return shlex.join(words)


def read_config(path: Path) -> dict[str, Any]:
    """The settings that config.json in ``path`` holds; one of an earlier version lacks those that came later.

    Raises:
        FileNotFoundError: no such file.
        Malformed: (a ValueError) the file is damaged, or holds no settings of a run.
        ValueError: it has a setting, or a parameter of its method, that is unknown.
    """
    content = cast(dict[str, Any], read(path, RunConfig))
    if method := METHODS.get(content["method"]):
        try:
            check_parameters(method, content.get("params", {}))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return content


def _check_device(name: str) -> None:
    """Its name; whether it is there matters on the machine that does the run, which may be another one."""
    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {shown(name)}") from None
