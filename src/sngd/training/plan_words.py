"""Stage plans spelled in a word, such as ``multistep:milestones=80/120``, for the command line and config files."""

import json
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Annotated

from sngd import stages
from sngd.checks import shown, suggestion
from sngd.stages import StagePlan
from sngd.training.schema import Declared, Positive, read

SPELLINGS = (
    "constant",
    "poly[:power=1.1][:stages=T]",
    "multistep[:milestones=80/120][:factor=0.1]",
    "harmonic[:stages=10][:distance=S]",
    "harmonic-even[:stages=10][:distance=S]",
    "geometric[:stages=3][:distance=S]",
    "agnostic, any of them with [:warmup=EPOCHS]",
    "FILE.json",
    "[[lr, steps, weight?, momentum?], …]",
)
SPELLING = " | ".join(SPELLINGS)


def build_plan(spec: str, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    """The plan that ``spec`` spells for a run of ``epochs`` passes of ``steps_per_epoch`` steps (may be a fraction).

    Args:
        spec: ``[[lr, steps, weight?, momentum?], …]`` in JSON, or ``NAME[:option=value]…``:

            * ``constant``;
            * ``poly``, options ``power`` (1.1) and ``stages`` (one an epoch);
            * ``multistep``, options ``milestones`` (epochs joined by ``/``; half and three quarters of the run) and
              ``factor`` (0.1);
            * ``harmonic``, options ``stages`` (10) and ``distance`` (what makes the plan as long as the run);
            * ``harmonic-even``, the same, but a random output is drawn as Remark 1 says;
            * ``geometric``, the same as ``harmonic`` (3); its lr must be below ½;
            * ``agnostic``, which sets the momentum too: for methods with momentum;

            and for each of them ``warmup``, the epochs in which the learning rate rises from a sixth to its height.
        lr: α of the first stage (ρ of ``harmonic``; for ``geometric`` too, α_0 = ρ). A list has its own.

    Raises:
        ValueError: the spelling is wrong, or a value is out of its range.
    """
    if spec.startswith("["):
        return _from_json(spec)
    name, *words = spec.split(":")
    if name not in PLANS:
        meant = suggestion(name, PLANS) or ";"
        raise ValueError(f"unknown plan {shown(name)}{meant} must be {SPELLING}")
    defaults, build = PLANS[name]
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in (*defaults, "warmup"):
            raise ValueError(f"plan {shown(spec)}: {shown(word)} is no option of {name}, {_allowed(defaults)}")
        options[key] = value
    try:
        plan = build({**defaults, **options}, lr, epochs, steps_per_epoch)
        if "warmup" in options:
            plan = stages.warmed_up(plan, round(_number(options, "warmup") * steps_per_epoch))
        return plan
    except ValueError as error:
        raise ValueError(f"plan {shown(spec)}: {error}") from None


Options = dict[str, str]
Build = Callable[[Options, float, float, float], StagePlan]


def _constant(_options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    return stages.constant(lr, _steps(epochs, steps_per_epoch))


def _poly(options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    if options["stages"]:
        count = _count(options, "stages")
        epochs, steps_per_epoch = count, epochs * steps_per_epoch / count
    return stages.poly(lr, epochs, steps_per_epoch, _number(options, "power"))


def _multistep(options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    spelled = options["milestones"]
    milestones = [_number({"milestones": part}, "milestones") for part in spelled.split("/")] if spelled else None
    return stages.multistep(
        lr, epochs, milestones or (0.5 * epochs, 0.75 * epochs), steps_per_epoch, _number(options, "factor")
    )


def _harmonic(options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    return stages.harmonic(lr, *_harmonic_size(options, lr, epochs, steps_per_epoch))


def _harmonic_even(options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    return stages.harmonic_even(lr, *_harmonic_size(options, lr, epochs, steps_per_epoch))


def _harmonic_size(options: Options, lr: float, epochs: float, steps_per_epoch: float) -> tuple[int, float]:
    """Stages and distance."""
    count = _count(options, "stages")
    filling = _steps(epochs, steps_per_epoch) / sum(t / lr for t in range(1, count + 1))
    return count, _number(options, "distance") if options["distance"] else filling


def _geometric(options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    count = _count(options, "stages")
    filling = _steps(epochs, steps_per_epoch) / sum(lr**-t for t in range(1, count + 1))
    return stages.geometric(lr, count, _number(options, "distance") if options["distance"] else filling)


def _agnostic(_options: Options, lr: float, epochs: float, steps_per_epoch: float) -> StagePlan:
    return stages.agnostic(lr, _steps(epochs, steps_per_epoch))


PLANS: dict[str, tuple[Options, Build]] = {
    "constant": ({}, _constant),
    "poly": ({"power": "1.1", "stages": ""}, _poly),
    "multistep": ({"milestones": "", "factor": "0.1"}, _multistep),
    "harmonic": ({"stages": "10", "distance": ""}, _harmonic),
    "harmonic-even": ({"stages": "10", "distance": ""}, _harmonic_even),
    "geometric": ({"stages": "3", "distance": ""}, _geometric),
    "agnostic": ({}, _agnostic),
}


def _steps(epochs: float, steps_per_epoch: float) -> int:
    return max(1, ceil(epochs * steps_per_epoch))


def _number(options: Options, key: str) -> float:
    try:
        return float(options[key])
    except ValueError:
        raise ValueError(f"{key} must be a number, got {shown(options[key])}") from None


def _count(options: Options, key: str) -> int:
    if not options[key].isdecimal() or int(options[key]) < 1:
        raise ValueError(f"{key} must be a whole number of at least 1, got {shown(options[key])}")
    return int(options[key])


def _allowed(defaults: Options) -> str:
    return f"which takes {', '.join(f'{key}=…' for key in (*defaults, 'warmup'))}"


def _from_json(spec: str) -> StagePlan:
    try:
        return StagePlan.from_list(json.loads(spec))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"plan {shown(spec)}: must be [[lr, steps, weight?, momentum?], …] in JSON: {error}") from None


def list_plan(plan: StagePlan) -> str:
    """The spelling of any plan: ``[[lr, steps, weight], …]``, with a momentum last if it has one."""
    return json.dumps(plan.as_list())


Stages = Annotated[list[Annotated[list[Positive], Declared(length=(2, 4))]], Declared(length=(1, 2**31))]


def inline(spec: str) -> str:
    """``spec``, or the content of the ``.json`` file that it names, so that the file is not needed later."""
    if not spec.endswith(".json"):
        return spec
    try:
        stages = read(Path(spec), Stages)
    except OSError as error:
        raise ValueError(f"plan {spec}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"plan {error}") from None
    try:
        StagePlan.from_list(stages)
    except ValueError as error:
        raise ValueError(f"plan {spec}: {error}") from None
    return json.dumps(stages)
