"""The command that does one run."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sngd import training
from sngd.cli.console import DIVERGED, loss, out, print_json, print_table, progress_bars, stop_on_interrupt
from sngd.cli.many import warn
from sngd.cli.options import Data, Json, Overwrite, TensorBoard, completing, file_name
from sngd.cli.settings import made_from_options, run_config
from sngd.problems import load_problem
from sngd.problems.problem import initial_loss_not_finite
from sngd.slug import slug
from sngd.training import RunConfig
from sngd.training.observers import OBSERVERS
from sngd.training.planned import planned_settings, read_plan
from sngd.training.ranks import joined


@made_from_options(config=run_config(method="sngd"))
def train(
    context: typer.Context,
    config: RunConfig,
    data: Data = None,
    planned: Annotated[
        Path | None, typer.Option(help="A file that 'sngd plan METHOD … --json' printed: train as it says.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run's folder. (default: in runs, by problem, method and seed)")
    ] = None,
    tensorboard: TensorBoard = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="Send the rows to Weights & Biases (wandb) or MLflow (mlflow) too; repeatable.",
            autocompletion=completing(OBSERVERS),
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or with more --epochs.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one model with one method.

    Ctrl-C saves and stops; --resume goes on, also after a kill or a power cut, and ends with the same weights.

    With more --epochs, --resume extends a run of the plan 'constant'; other plans depend on the number of epochs.

    A run whose training loss is no longer finite has diverged: it stops, with exit code 3. --resume says so again.

    Several processes: torchrun --nproc-per-node N -m sngd train …
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    loaded = None
    if planned:
        loaded = load_problem(config.problem, data)
        settings = planned_settings(read_plan(planned), loaded.n)
        _exclude(context, "--planned", settings)
        config = replace(config, **settings)
    folder = folder or Path("runs", file_name(config.problem), slug(config.method), f"seed-{config.seed}")
    with joined() as ranks, stop_on_interrupt() as should_stop, progress_bars() as bars:
        bar = bars.add_task(f"{config.method}, seed {config.seed}", total=None, loss="")
        row = training.train(
            config,
            folder,
            data=data,
            problem=(lambda: loaded) if loaded else None,
            resume=resume,
            extend=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            log=log or (),
            ranks=ranks,
            on_progress=lambda p: bars.update(bar, total=p.budget, completed=p.oracle_calls, loss=loss(p)),
            on_warning=warn,
            should_stop=should_stop,
        )
    if as_json:
        print_json({"folder": str(folder), **row})
    else:
        shown = ("grads_over_n", "train_loss", "test_loss", "test_accuracy", "grad_norm")
        _print_row({key: number for key in shown if isinstance(number := row.get(key), int | float)})
        out.print(f"run folder: {folder}", soft_wrap=True, highlight=False)
    if row["diverged"]:
        untrained = row["step"] == 0 and initial_loss_not_finite(loaded or load_problem(config.problem, data))
        warn(
            untrained or "The run diverged: its training loss is no longer finite, and it stopped. Try a smaller --lr."
        )
        raise typer.Exit(DIVERGED)


def _exclude(context: typer.Context, option: str, settings: Collection[str]) -> None:
    """ValueError if the command line gives one of the settings that ``option`` decides."""
    sources = {p: context.get_parameter_source(p.name or "") for p in context.command.params}
    given = [p for p, source in sources.items() if source and source.name == "COMMANDLINE"]
    if both := [parameter.opts[0] for parameter in given if parameter.name in settings]:
        raise ValueError(f"{option} decides {', '.join(both)} too: leave out one of them")


def _print_row(row: dict[str, Any]) -> None:
    """Accuracy in percent, as in all tables; in files and JSON it is in [0, 1]."""
    shown = {"#grad/n" if key == "grads_over_n" else key.replace("_", " "): f"{v:.5g}" for key, v in row.items()}
    if "test_accuracy" in row:
        del shown["test accuracy"]
        shown["test accuracy (%)"] = f"{100 * row['test_accuracy']:.2f}"
    print_table(list(shown), [list(shown.values())], drop=("grad norm", "test loss", "train loss"))
