"""Make a command's arguments from options, such as a run's settings from the options that ``RunConfig`` declares."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_origin

import typer

from sngd.cli.options import completing
from sngd.problems import PROBLEMS
from sngd.training import METHODS, RunConfig
from sngd.training.config import SETTINGS, Setting
from sngd.training.plan_words import PLANS, SPELLINGS
from sngd.training.schema import declared

_NAMES: dict[str, Iterable[str]] = {"problem": PROBLEMS, "method": METHODS, "plan": PLANS}  # that a shell can complete

PLANS_HELP = "\n".join(["A stage plan (--plan) is one of", *SPELLINGS]).replace("[", r"\[")

Command = Callable[..., None]
Maker = Callable[..., Any]


def made_from_options(**makers: Maker) -> Callable[[Command], Command]:
    """Decorate a command so that each named parameter is made by a function, whose parameters become options.

    ::

        @made_from_options(config=run_config())
        def train(config: RunConfig, resume: bool = False) -> None: ...  # --lr, --batch-size, …, --resume
    """

    def decorate(command: Command) -> Command:
        taken = {name: signature(maker, eval_str=True).parameters for name, maker in makers.items()}
        options: list[Parameter] = []
        for parameter in signature(command, eval_str=True).parameters.values():
            options += taken[parameter.name].values() if parameter.name in makers else [parameter]

        @wraps(command)
        def with_options(**given: Any) -> None:
            for name, maker in makers.items():
                given[name] = maker(**{option: given.pop(option) for option in taken[name]})
            command(**given)

        _show(with_options, options)
        return with_options

    return decorate


def run_config(*, without: Collection[str] = (), **defaults: Any) -> Callable[..., RunConfig]:
    """A function that makes a run's settings from their options, except ``without``; ``defaults`` replace their own.

    A setting without a default is an argument.
    """

    def make(**given: Any) -> RunConfig:
        if "params" in given:
            given["params"] = _params(given["params"] or [])
        return RunConfig(**(defaults | given))

    chosen = [setting for name, setting in SETTINGS.items() if name not in without]
    chosen = [setting._replace(default=defaults.get(setting.name, setting.default)) for setting in chosen]
    _show(make, [_option(s) for s in chosen if s.options or s.default is MISSING])
    return make


def _show(function: Callable[..., Any], options: Sequence[Parameter]) -> None:
    """To Typer, which reads both."""
    named = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
    vars(function)["__signature__"] = Signature(named)
    function.__annotations__ = {option.name: option.annotation for option in named}


def _option(setting: Setting) -> Parameter:
    kind, about = declared(setting.type)
    words, default = setting.help.replace("[", r"\["), setting.default
    names = completing(_NAMES.get(setting.name, about.one_of))
    if default is MISSING:
        shown: Any = typer.Argument(help=words, autocompletion=names)
        default = Parameter.empty
    else:
        shown = typer.Option(*(about.options or ()), help=words, autocompletion=names)
    if get_origin(kind) is Mapping:  # NAME=VALUE, again and again
        kind, default = list[str] | None, None
    return Parameter(setting.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


def _params(words: Sequence[str]) -> dict[str, float]:
    params: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            params[name] = float(value)
        except ValueError:
            raise ValueError(f"--param must be NAME=VALUE with a number, got {word!r}") from None
    return params
