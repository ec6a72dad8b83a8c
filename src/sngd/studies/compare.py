"""Methods × seeds on one problem, at the same budget of oracle calls and, if asked, with equal tuning."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, cast

from sngd.problems import load_problem
from sngd.slug import slug
from sngd.studies import figures
from sngd.studies.execution.execution import Execution
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task
from sngd.studies.pack import unpacked
from sngd.studies.publish import publish
from sngd.studies.runs import Comparison, Study, Trial, Tuning
from sngd.training import RunConfig
from sngd.training.config import CURVE_SAMPLES, SETTINGS, as_trained
from sngd.training.folder_lock import FolderLock, locked, make_folder
from sngd.training.methods import find_method
from sngd.training.ranks import ALONE
from sngd.training.run_folder import RunFolder, write_json
from sngd.training.schema import parse, read

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # learning rates of --tune
TUNING_SEED = 1_000_000  # no comparison uses this seed, so that learning rates are not tuned to a compared seed


def parse_arms(methods: str, base: RunConfig) -> list[RunConfig]:
    """The arms (methods with their settings) in ``methods``: ``sgd,sngd@lr=0.5,s-sngd@plan=multistep`` change ``base``.

    Each is a method's name, then ``@setting=value`` for any setting of RunConfig but problem, method and seed, or any
    of the method's own parameters. The arm's label is ``label``, if set, else the name and its own settings.

    Raises:
        ValueError: a name, setting or value is wrong, or two arms have the same label.
    """
    arms = [_parse_arm(spec.strip(), base) for spec in methods.split(",")]
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"methods {methods!r}: {label!r} is there twice; tell them apart by @label=…")
    return arms


def _parse_arm(spec: str, base: RunConfig) -> RunConfig:
    method, *words = spec.split("@")
    own = [parameter.name for parameter in find_method(method).parameters]
    common = [name for name in SETTINGS if name not in ("problem", "method", "seed", "params")]
    settings: dict[str, object] = {}
    params: dict[str, float] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in (*common, *own):
            known = ", ".join((*common, *own))
            raise ValueError(f"method {spec!r}: {word!r} is no setting=value, settings are {known}")
        try:
            if key in own:
                params[key] = cast(float, parse(key, value, float))
            else:
                settings[key] = parse(key, value, SETTINGS[key].type)
        except ValueError as error:
            raise ValueError(f"method {spec!r}: {error}") from None
    label = " ".join([method, *words])
    arm = replace(base, method=method, **{"label": label, **settings, "params": params})  # type: ignore[arg-type]
    return replace(arm.resolved(), threads=arm.threads)  # each process has its own share of the cores


def compare(
    arms: Sequence[RunConfig],
    seeds: Sequence[int],
    out: Path,
    execution: Execution = Execution(),
    *,
    grid: Sequence[float] | None = None,
    tuning_epochs: float | None = None,
    command: str = "",
) -> Study:
    """Run every arm with every seed, in ``out/runs/LABEL/seed-K``, and write compare.json, table, figures and report.

    LABEL is the label's ``sngd.slug.slug``. One comparison at a time can be in ``out``. A packed study is unpacked
    first, and packed again at the end.

    Args:
        arms: resolved configurations of one problem that differ in their labels.
        seeds: seeds of the runs; the same seed gives all arms the same initial weights and sample order.
        execution: how the runs are done.
        grid: learning rates that each arm is first tried with, on a separate seed. The one with the lowest final
            training loss is kept. None: no tuning.
        tuning_epochs: the budget of these trial runs, in #grad/n. None: that of the runs.
        command: the command line, for the report.

    Raises:
        ValueError: bad settings; all of an arm's trial runs diverged; another process is working in ``out``; the study
            is packed together with others in a folder above.
        FileNotFoundError: ``out``, or a run's folder in it, was deleted, moved or replaced meanwhile.
        Interrupted: ``execution.should_stop`` said so.
    """
    if not seeds:
        raise ValueError("seeds must hold at least one seed, got none")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different, got {list(seeds)}")
    if grid and len(set(grid)) < len(grid):
        raise ValueError(f"grid must hold different learning rates, got {list(grid)}")

    def do(title: str, tasks: Sequence[Task], lock: FolderLock) -> list[float | None]:
        lock.check()
        if execution.overwrite or not all(RunFolder(task.folder).final_rows() for task in tasks):
            _check_before_starting(arms, execution)
            figures.prepare()
        try:
            rows = run_all(tasks, execution.also_stopping(lock.lost), title)
        finally:
            lock.check()  # runs that stopped because the folder is lost are not told so
        return [None if row["diverged"] else row["train_loss"] for row in rows]

    make_folder(out)
    with locked(out, ("compare.json",)) as lock, unpacked(out, lock):
        names = _arm_folders(arms, out)
        tuning = None
        if grid:
            places = [(arm, lr, out / "tuning" / names[str(arm.label)] / _lr_folder(lr)) for arm in arms for lr in grid]
            measured = _MEASURED | ({} if execution.overwrite else _measured_before([folder for *_, folder in places]))
            tasks = [
                Task(replace(arm, lr=lr, seed=TUNING_SEED, epochs=tuning_epochs or arm.epochs, **measured), folder)
                for arm, lr, folder in places
            ]
            losses, trials = do("tuning", tasks, lock), [task.config for task in tasks]
            chosen = _choose(trials, losses)
            arms = [replace(arm, lr=chosen[str(arm.label)]) for arm in arms]
            outcomes = [
                Trial(label=str(t.label), lr=t.lr or 0.0, train_loss=loss)
                for t, loss in zip(trials, losses, strict=True)
            ]
            tuning = Tuning(grid=list(grid), seed=TUNING_SEED, outcomes=outcomes, chosen=chosen)
            if tuning_epochs is not None:
                tuning["epochs"] = tuning_epochs
        if not execution.overwrite:
            arms = [_as_begun(arm, sorted((out / "runs" / names[str(arm.label)]).glob("seed-*"))) for arm in arms]
        runs = [replace(arm, seed=seed) for seed in seeds for arm in arms]
        folders = [Path("runs", names[str(run.label)], f"seed-{run.seed}") for run in runs]
        comparison = Comparison(
            command=command,
            problem=arms[0].problem,
            methods=[str(arm.label) for arm in arms],
            seeds=list(seeds),
            epochs=arms[0].epochs,
            runs=[folder.as_posix() for folder in folders],
            tuning=tuning,
        )
        write_json(out / "compare.json", comparison)
        do("runs", [Task(run, out / folder) for run, folder in zip(runs, folders, strict=True)], lock)
        return publish(out)


def _check_before_starting(arms: Sequence[RunConfig], execution: Execution) -> None:
    """Check the arms once, before any process starts; data are also downloaded now."""
    load_problem(arms[0].problem, execution.data)
    if execution.ray is None:  # this machine does the runs
        for device in {arm.device for arm in arms}:
            ALONE.device(device)


# Of a trial of a learning rate the last loss is wanted, and the others say whether it diverged.
# Any: settings of several types
_MEASURED: dict[str, Any] = {"curve_samples": CURVE_SAMPLES, "grad_norm": False, "track": None}


def _measured_before(folders: Sequence[Path]) -> dict[str, Any]:  # Any: settings of several types
    """What the first of these runs that has begun measures; others then do too, to be compared and trained as one."""
    for folder in folders:
        try:
            begun = as_trained(RunFolder(folder).read_config())
        except (OSError, ValueError):  # there is none, or one that the run itself complains of
            continue
        return {name: value for name, value in begun.items() if name in _MEASURED}
    return {}


def _as_begun(arm: RunConfig, folders: Sequence[Path]) -> RunConfig:
    """The arm, which measures what its runs that have begun do, where it does not say otherwise."""
    begun = _measured_before(folders)
    return replace(arm, **{name: value for name, value in begun.items() if getattr(arm, name) is None})


def _choose(trials: Sequence[RunConfig], losses: Sequence[float | None]) -> dict[str, float]:
    """The learning rate of lowest final training loss, by label."""
    best: dict[str, tuple[float, float]] = {}
    for trial, loss in zip(trials, losses, strict=True):
        label, lr = str(trial.label), trial.lr or 0.0
        best[label] = min(best.get(label, (inf, lr)), (inf if loss is None else loss, lr))
    for label, (loss, _) in best.items():
        if loss == inf:
            raise ValueError(f"every learning rate of the grid made {label} diverge; give a smaller one with --grid")
    return {label: lr for label, (_, lr) in best.items()}


def _lr_folder(lr: float | None) -> str:
    """The folder's name of a learning rate, in few digits unless another one has the same digits."""
    assert lr is not None
    return f"lr-{lr:g}" if float(f"{lr:g}") == lr else f"lr-{lr!r}"


def _arm_folders(arms: Sequence[RunConfig], out: Path) -> dict[str, str]:
    """The folder's name of each arm, by label: the one that the comparison in ``out`` gave it, otherwise its slug.

    Earlier versions did not use slugs; the runs of such a study must still be found.
    """
    labels = [str(arm.label) for arm in arms]
    kept = {label: name for label, name in _listed_folders(out).items() if label in labels}
    names = {label: kept.get(label, slug(label)) for label in labels}
    distinct = len({name.casefold() for name in names.values()}) == len(labels)
    return names if distinct else {label: slug(label) for label in labels}


def _listed_folders(out: Path) -> dict[str, str]:
    """The folder's name of each arm by ``out``'s compare.json, as far as that is readable."""
    try:
        comparison: Comparison = read(out / "compare.json", Comparison)
    except (OSError, ValueError):
        return {}
    pairs = zip(cycle(comparison["methods"]), comparison["runs"], strict=False)
    folders = {label: PurePosixPath(run).parts for label, run in pairs}
    return {
        label: parts[1]
        for label, parts in folders.items()
        if len(parts) == 3 and parts[0] == "runs" and parts[1] != ".."
    }
