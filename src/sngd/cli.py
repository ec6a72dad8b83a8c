"""The command line: parses, calls, prints."""

import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
except ImportError as error:
    sys.exit(f"sngd: the command line needs the package {error.name}: pip install 'sngd[lab]'")

from sngd import training
from sngd.problems import PROBLEMS, load_problem
from sngd.training import METHODS, Interrupted, RunConfig
from sngd.training.planned import planned_settings, read_plan
from sngd.training.plans import SPELLING

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train with normalized gradients, and compare methods at equal cost.\n\n"
    "Try first: [bold]sngd compare digits-mlp[/bold] (no network, under a minute), then open the report it names.",
    rich_markup_mode="rich",
)
out = Console()
err = Console(stderr=True)

Problem = Annotated[str, typer.Argument(help="A name from 'sngd problems', or path/to/file.py:factory for your own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else, on standard output.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate α of the first stage. (default: the method's)")]
BatchSize = Annotated[int, typer.Option(help="Samples a step, b.")]
Epochs = Annotated[float, typer.Option(help="Budget: gradient evaluations over n. No method spends more.")]
WeightDecay = Annotated[float, typer.Option(help="λ: adds λw to every gradient.")]
Plan = Annotated[str | None, typer.Option(help=f"Stage plan: {SPELLING}. (default: the method's)".replace("[", r"\["))]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="A parameter of the method's own, as NAME=VALUE; repeatable."),
]
Sampling = Annotated[str, typer.Option(help="'shuffled' passes, or 'independent' draws as the theorems assume.")]
Output = Annotated[str, typer.Option(help="What the method returns: the 'last' iterate or a 'random' one.")]
EvalEvery = Annotated[float, typer.Option(help="Evaluate every so many epochs (gradient evaluations over n).")]
GradNorm = Annotated[bool, typer.Option(help="Measure ‖∇F(w)‖ at evaluations; takes about as long as an epoch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a run. (default: its share of the cores)")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="SNGD_DATA", help="Folder of data sets in their official files. (default: a download cache)"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what the output folder holds.")]


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods: what each is made of and where it comes from."""
    rows: list[dict[str, Any]] = [
        {
            "name": m.name,
            "summary": m.summary,
            "gradient": m.estimate.formula,
            "step": m.step_rule.formula,
            "plan": m.plan,
            "output": m.output,
            "cost": f"{m.estimate.cost} oracle calls a step",
            "lr": m.lr,
            "parameters": [
                {"name": p.name, "symbol": p.symbol, "default": p.shown_default, "what": p.what} for p in m.parameters
            ],
            "paper": m.paper,
        }
        for m in METHODS.values()
    ]
    if as_json:
        _print_json(rows)
        return
    out.print("α: --lr, b: --batch-size, n: training samples; g includes λw, λ: --weight-decay", highlight=False)
    for row in rows:
        described = [f"{p['name']} = {p['symbol']} ({p['default']}): {p['what']}" for p in row["parameters"]]
        row["parameters"] = "\n              ".join(described) or "none"
    _print_entries(rows, as_json)


@app.command()
def problems(as_json: Json = False) -> None:
    """List the built-in problems."""
    _print_entries([{"name": row.name, "summary": row.summary} for row in PROBLEMS.values()], as_json)


@app.command()
def train(
    context: typer.Context,
    problem: Problem,
    method: Annotated[str, typer.Option(help="A name from 'sngd methods'.")] = "sngd",
    lr: Lr = None,
    batch_size: BatchSize = 128,
    epochs: Epochs = 20.0,
    seed: Annotated[int, typer.Option(help="Draws initial weights and sample order.")] = 0,
    weight_decay: WeightDecay = 0.0,
    plan: Plan = None,
    param: Param = None,
    sampling: Sampling = "shuffled",
    output: Output = "last",
    eval_every: EvalEvery = 1.0,
    grad_norm: GradNorm = True,
    device: Device = "cpu",
    threads: Threads = None,
    data: Data = None,
    planned: Annotated[
        Path | None, typer.Option(help="A file that 'sngd plan METHOD … --json' printed: train as it says.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run's folder. (default: runs/PROBLEM/METHOD/seed-SEED)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one model with one method.

    Ctrl-C saves and stops; --resume goes on, also after a kill or a power cut, and ends with the same weights.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    loaded = None
    config = RunConfig(
        problem=problem,
        method=method,
        lr=lr,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        weight_decay=weight_decay,
        plan=plan,
        params=_params(param or []),
        sampling=sampling,
        output=output,
        eval_every=eval_every,
        grad_norm=grad_norm,
        device=device,
        threads=threads,
    )
    if planned:
        loaded = load_problem(problem, data)
        settings = planned_settings(read_plan(planned), loaded.n)
        _exclude(context, "--planned", settings)
        config = replace(config, **settings)
    folder = folder or Path("runs", _file_name(problem), config.method, f"seed-{seed}")
    with _stop_on_interrupt() as should_stop, _bars() as bars:
        bar = bars.add_task(f"{config.method}, seed {seed}", total=None, loss="")
        row = training.train(
            config,
            folder,
            data=data,
            problem=(lambda: loaded) if loaded else None,
            resume=resume,
            overwrite=overwrite,
            on_progress=lambda p: bars.update(bar, total=p.budget, completed=p.oracle_calls, loss=_loss(p)),
            should_stop=should_stop,
        )
    if as_json:
        _print_json({"folder": str(folder), **row})
        return
    shown = ("grads_over_n", "train_loss", "test_loss", "test_accuracy", "grad_norm")
    _print_row({key: row[key] for key in shown if row[key] is not None})
    if row["diverged"]:
        err.print("The training loss is no longer finite: the run stopped. Try a smaller --lr.", style="yellow")
    out.print(f"run folder: {folder}", soft_wrap=True, highlight=False)


@app.command()
def compare(
    problem: Problem,
    methods: Annotated[
        str, typer.Option(help="Methods, each with its own settings if need be: sgd,sngd@lr=0.5,s-sngd@plan=multistep")
    ] = "sgd,sngd,s-sngd",
    seeds: Annotated[str, typer.Option(help="How many seeds (3 is 0,1,2), or a list of them: 4,5,6")] = "3",
    lr: Lr = None,
    batch_size: BatchSize = 128,
    epochs: Epochs = 20.0,
    weight_decay: WeightDecay = 0.0,
    plan: Plan = None,
    sampling: Sampling = "shuffled",
    output: Output = "last",
    eval_every: EvalEvery = 1.0,
    grad_norm: GradNorm = True,
    device: Device = "cpu",
    threads: Threads = None,
    data: Data = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where runs, figures and report go. (default: runs/compare-PROBLEM)")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time. (default: the number of cores)")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First give every method the same grid of learning rates; keep its best.")
    ] = False,
    grid: Annotated[str | None, typer.Option(help="That grid, as 0.01,0.1,1 (implies --tune).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare methods over several seeds at the same budget of gradient evaluations.

    Ends with a table (mean ± standard deviation), whether the best one's lead is larger than seed noise, figures and
    a report. Finished runs are not repeated, so the same command goes on after any interruption.
    """
    from sngd.studies.compare import GRID, parse_arms
    from sngd.studies.compare import compare as run_comparison

    tuning = _numbers(grid, "grid") if grid else list(GRID) if tune else None
    if tuning and (lr is not None or "@lr=" in methods):
        raise ValueError("--tune chooses the learning rates: leave out --lr and @lr=")
    base = RunConfig(
        problem=problem,
        method="",
        lr=lr,
        batch_size=batch_size,
        epochs=epochs,
        weight_decay=weight_decay,
        plan=plan,
        sampling=sampling,
        output=output,
        eval_every=eval_every,
        grad_norm=grad_norm,
        device=device,
        threads=threads,
    )
    folder = folder or Path("runs", f"compare-{_file_name(problem)}")
    with _stop_on_interrupt() as should_stop, _bars() as bars:
        study = run_comparison(
            parse_arms(methods, base),
            _seeds(seeds),
            folder,
            grid=tuning,
            jobs=jobs,
            data=data,
            overwrite=overwrite,
            command=shlex.join(["sngd", *sys.argv[1:]]),
            begin=lambda title, tasks: _Overview(bars, title, tasks),
            should_stop=should_stop,
        )
    _print_study(study, folder, as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, as 'sngd compare' makes it.")],
    as_json: Json = False,
) -> None:
    """Write the report of a folder of runs: one HTML page that works offline; also figures and table.md."""
    from sngd.studies.publish import publish

    _print_study(publish(folder), folder, as_json)


@app.command()
def plan(
    methods: Annotated[
        str, typer.Argument(help="sngd, s-sngd:harmonic, s-sngd:geometric, sgd, spider-sfo; several joined by commas.")
    ],
    smoothness: Annotated[float | None, typer.Option("--L", help="F is L-smooth.")] = None,
    l0: Annotated[float | None, typer.Option("--L0", help="With --L1: F is (L0, L1)-smooth.")] = None,
    l1: Annotated[float | None, typer.Option("--L1", help="See --L0.")] = None,
    sigma: Annotated[float, typer.Option(help="σ: bound on the gradient noise of one sample.")] = 0.0,
    gap: Annotated[float, typer.Option(help="Δ: F(w_0) − inf F.")] = 1.0,
    epsilon: Annotated[
        float | None, typer.Option(help="ε: the theorem's own choice for the first method; others get its guarantee.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="τ: the guarantee wanted, at least cost.")] = None,
    as_json: Json = False,
) -> None:
    """From constants to a run: learning rate, batch size, steps or stages, cost, and the guaranteed E‖∇F(w̄)‖."""
    from sngd.theory import RelaxedSmooth, Smooth
    from sngd.theory import plan as plan_run

    if (smoothness is None) == (l0 is None) or (l0 is None) != (l1 is None):
        raise ValueError("give either --L, or --L0 and --L1")
    given = Smooth(smoothness) if smoothness is not None else RelaxedSmooth(l0 or 0.0, l1 or 0.0)
    names = [name.strip() for name in methods.split(",")]
    plans = [plan_run(names[0], given, sigma, gap, epsilon=epsilon, target=target)]
    plans += [plan_run(name, given, sigma, gap, target=plans[0].target) for name in names[1:]]
    if as_json:
        _print_json(plans[0].as_json() if len(plans) == 1 else [p.as_json() for p in plans])
        return
    table = Table()
    table.add_column("method", no_wrap=True)
    for name in ("lr", "batch size", "steps", "calls", "guarantee"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in plans:
        lr = f"{p.lr:.4g}" + (f" → {p.stages[-1].lr:.2g}" if p.stages else "")
        table.add_row(p.method, lr, f"{p.batch_size:,}", f"{p.steps:,}", f"{p.oracle_calls:,}", f"{p.guarantee:.4g}")
    out.print(table)
    for p in plans:
        terms = f"progress {p.bound.progress:.4g} + curvature {p.bound.curvature:.4g} + noise {p.bound.noise:.4g}"
        binding = f"; αL1 ≤ ½ binds: lr ≤ {given.max_lr:g}" if p.lr_limited else ""
        sum_of = f"√({terms})" if p.bound.squared else terms
        out.print(f"{p.method}, {p.theorem}: {sum_of}{binding}", soft_wrap=True, highlight=False)
    if any(p.stages for p in plans):
        out.print("The bound of a stage plan is no better than SNGD's: what stages gain is empirical.", soft_wrap=True)


@app.command()
def reproduce(
    figure: Annotated[str, typer.Argument(help="fig1: leaving saddles and sharp minima.")],
    profile: Annotated[str, typer.Option(help="quick (seconds) or small (minutes).")] = "quick",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where it goes. (default: runs/reproduce-FIGURE-PROFILE)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure and draw a figure of the paper."""
    from sngd.studies.reproduce import FIGURES
    from sngd.studies.reproduce import reproduce as measure_and_draw

    folder = folder or Path("runs", f"reproduce-{figure}-{profile}")
    with err.status(f"{figure}, profile {profile}"):
        pictures = measure_and_draw(figure, profile, folder, command=shlex.join(["sngd", *sys.argv[1:]]))
    if as_json:
        _print_json({"folder": str(folder), "pictures": [str(path) for path in pictures]})
        return
    out.print(f"{FIGURES[figure].claim}\nmeasurements: {folder / 'measurements.json'}", soft_wrap=True, highlight=False)
    for path in pictures:
        out.print(f"picture: {path}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line; a user's mistake is one clear line on standard error and exit code 2."""
    try:
        app(prog_name="sngd")
    except (ValueError, OSError) as error:
        err.print(f"sngd: {_reason(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except Interrupted as stopped:
        err.print(f"sngd: {stopped}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(130)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _exclude(context: typer.Context, option: str, settings: Collection[str]) -> None:
    """ValueError if the command line gives one of the settings that ``option`` decides."""
    sources = {p: context.get_parameter_source(p.name or "") for p in context.command.params}
    given = [p for p, source in sources.items() if source and source.name == "COMMANDLINE"]
    names = {"param" if name == "params" else name for name in settings}
    if both := [parameter.opts[0] for parameter in given if parameter.name in names]:
        raise ValueError(f"{option} decides {', '.join(both)} too: leave out one of them")


def _file_name(problem: str) -> str:
    """``digits-mlp`` as it is, ``path/to/file.py:factory`` as ``file-factory``."""
    path, _, factory = problem.rpartition(":")
    return f"{Path(path).stem}-{factory}" if path else problem


def _seeds(text: str) -> list[int]:
    if "," not in text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"seeds must be a whole number of at least 1 or a list such as 4,5,6, got {text!r}")
        return list(range(int(text)))
    seeds = [part.strip() for part in text.rstrip(",").split(",")]
    if not all(part.isdecimal() for part in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different whole numbers, got {text!r}")
    return [int(part) for part in seeds]


def _params(words: Sequence[str]) -> dict[str, float]:
    params: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            params[name] = float(value)
        except ValueError:
            raise ValueError(f"--param must be NAME=VALUE with a number, got {word!r}") from None
    return params


def _numbers(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers joined by commas, got {text!r}") from None


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM) asks the run to save and stop, the second one stops at once."""
    asked = threading.Event()

    def ask(_signal: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        err.print("stopping: saving checkpoints (once more: at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _loss(progress: training.Progress) -> str:
    return "" if progress.loss is None else f"loss {progress.loss:.4f}"


class _Overview:
    """Progress of many runs: a bar for all of them together, and one for each that is running."""

    def __init__(self, bars: Progress, title: str, tasks: Sequence[Any]) -> None:
        self.bars, self.tasks = bars, tasks
        self.all = bars.add_task(f"{title}: {len(tasks)}", total=len(tasks), loss="")
        self.running: dict[int, Any] = {}
        self.share = [0.0] * len(tasks)

    def __call__(self, index: int, progress: training.Progress) -> None:
        config = self.tasks[index].config
        if index not in self.running:
            self.running[index] = self.bars.add_task(f"  {config.label}, seed {config.seed}", total=1.0, loss="")
        self.share[index] = share = min(1.0, progress.oracle_calls / max(1, progress.budget))
        self.bars.update(self.running[index], completed=share, loss=_loss(progress), visible=share < 1)
        self.bars.update(self.all, completed=sum(self.share))


def _print_study(study: Any, folder: Path, as_json: bool) -> None:
    from sngd.studies.table import as_json as table_json
    from sngd.studies.table import cells, statements

    page = folder / "report.html"
    if as_json:
        _print_json({"folder": str(folder), "report": str(page), **table_json(study)})
        return
    header, rows = cells(study)
    shown = [i for i, name in enumerate(header) if name != "test loss"]  # a terminal's width; the report has it
    table = Table(title=study.problem)
    for i in shown:
        table.add_column(header[i], justify="right" if i else "left", no_wrap=i > 0, overflow="fold")  # labels fold
    for row in rows:
        texts = [(escape(row[i].text), row[i].best) for i in shown]
        table.add_row(*(f"[bold green]{text} *[/]" if best else text for text, best in texts))
    out.print(table)
    out.print("mean ± standard deviation over seeds; * best mean")
    if study.tuning:
        grid = ", ".join(f"{lr:g}" for lr in study.tuning["grid"])
        out.print(f"equal tuning: every method tried lr {grid} on a seed of its own and kept the lowest training loss")
    for statement in statements(study):
        out.print(f"{statement}.", soft_wrap=True, highlight=False)
    out.print(f"report: {page}", soft_wrap=True, highlight=False)


def _print_entries(entries: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(entries)
        return
    for entry in entries:
        (_, name), (_, summary), *others = entry.items()
        out.print(f"[bold]{name}[/]  {escape(summary)}", highlight=False, soft_wrap=True)
        for key, value in others:
            out.print(f"    {key:10} {escape(str(value))}", highlight=False, soft_wrap=True)


def _print_row(row: dict[str, Any]) -> None:
    table = Table()
    for key in row:
        table.add_column("#grad/n" if key == "grads_over_n" else key.replace("_", " "), no_wrap=True)
    table.add_row(*(f"{value:.5g}" for value in row.values()))
    out.print(table)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))
