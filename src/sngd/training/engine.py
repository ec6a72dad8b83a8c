"""One run of a method on a problem: it counts oracle calls, evaluates on a schedule, and resumes bit for bit.

An oracle call is the gradient ∇f(w; a) of one sample a at one point w. The budget of a run is a number of these.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, cast

from sngd.checks import cut
from sngd.problems import Problem, load_problem
from sngd.training.config import RunConfig, as_trained
from sngd.training.extend import check_extension, extended
from sngd.training.methods import recorded_parameters
from sngd.training.metrics import Row
from sngd.training.observers import Observers
from sngd.training.ranks import ALONE, Ranks, on_all_ranks
from sngd.training.repeatable import repeatable, without_tf32
from sngd.training.run_folder import Checkpoint, RunFolder
from sngd.training.run_state import Progress, RunState

CHECKPOINT_SECONDS = 30.0  # between checkpoints, at most; an evaluation saves one too, but not more than one a second
PROGRESS_SECONDS = 0.1
GRAPHS = "SNGD_CUDA_GRAPHS"  # in the environment, 0 leaves steps as they are


class Interrupted(Exception):
    """The run was asked to stop and has saved a checkpoint."""


def train(
    config: RunConfig,
    folder: Path,
    *,
    data: Path | None = None,
    problem: Callable[[], Problem] | None = None,
    resume: bool = False,
    extend: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    log: Sequence[str] = (),
    ranks: Ranks = ALONE,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_warning: Callable[[str], None] = warnings.warn,
    should_stop: Callable[[], bool] = lambda: False,
) -> Row:
    """Train in ``folder`` until the budget is spent or the training loss is no longer finite.

    A run that is killed at any moment and called again with ``resume`` ends with the weights and rows (except
    ``seconds``) of the uninterrupted run, bit for bit, on the same machine and versions.

    Several processes can train together: each calls this function with its own ``ranks`` and otherwise the same
    arguments. Only rank 0 reads and writes ``folder``. Until the first step, a ValueError or OSError on one rank is
    raised on all. All ranks are interrupted together. The run resumes with any number of processes.

    Args:
        config: the settings. Those that are None get defaults; a resumed run takes them from its folder.
        folder: folder for the run's files; it is made if it does not exist.
        data: folder of data sets, see ``sngd.problems.load_problem``.
        problem: loads the problem; default: ``load_problem(config.problem, data)``. A finished run does not load it.
        resume: go on with the run in the folder; start it if there is none.
        extend: with ``resume``, a run of a constant plan may go on to more epochs than it was begun with. It ends as a
            run that was begun with so many, bit for bit, if that is compiled as this one was from its beginning.
        overwrite: delete the run in the folder and start again.
        tensorboard: write the rows as TensorBoard event files too, in the folder's ``tensorboard``.
        log: send the rows to these too, some of ``sngd.training.observers.OBSERVERS``.
        ranks: this process among those of the run.
        on_progress: called before the first step and then about ten times a second.
        on_warning: told, in a line, why steps are not compiled although ``config`` says so or it would pay, and why on
            a GPU they are not CUDA graphs.
        should_stop: called after each step; once it is true, a checkpoint is saved and Interrupted raised.

    Returns:
        The last row of metrics, which measures the iterate that the method returns.

    Raises:
        ValueError: bad settings, a run already in the folder, or one with other settings.
        BrokenRun: (a ValueError) the folder's files are damaged.
        Interrupted: ``should_stop`` said so, on any rank.
        ConnectionError: another process of the run has ended.
    """
    how = {"resume": resume, "extend": extend, "overwrite": overwrite}
    observers = ["tensorboard"] * tensorboard + list(log)
    load = problem or partial(load_problem, config.problem, data)
    with opened(config, folder, load, ranks, observers, **how) as found:
        if not isinstance(found, OpenRun):
            return found
        on_progress(found.state.progress)
        if found.state.config.compile:
            _compile(found, on_warning, should_stop)
        else:
            found.state.write_out()
        if _records(found.state):
            _record(found, on_warning)
        return _loop(found, on_progress, on_warning, should_stop)


class OpenRun(NamedTuple):
    """A run that has not ended, and its folder, which is locked. On other ranks than the first, nothing is written."""

    state: RunState
    files: RunFolder
    events: Observers | None

    def record(self, rows: Sequence[Row], saved: float) -> float:
        """Write the rows, which are all that is due; the last one, and one in a second, with a checkpoint.

        A row counts once a checkpoint knows it. A run that is killed before repeats less than a second.

        Args:
            rows: of one evaluation.
            saved: when the latest checkpoint was saved, by ``time.monotonic``.

        Returns:
            The same, after this call.
        """
        for row in rows:
            if self.state.ranks.first:
                self.files.append(row)
            if self.events:
                self.events.add(row)
        final = rows[-1]["final"]
        if not final and time.monotonic() - saved < min(1.0, CHECKPOINT_SECONDS):
            return saved
        return self.save(final)

    def save(self, finished: bool = False) -> float:
        """Save a checkpoint; returns when."""
        if self.state.ranks.first:
            self.files.save_checkpoint(self.state.state_dict(finished))
        return time.monotonic()

    @property
    def interrupted(self) -> Interrupted:
        return Interrupted(f"{self.files.path}: stopped after {self.state.steps} steps; --resume goes on")


@contextmanager
def opened(
    config: RunConfig,
    folder: Path,
    problem: Callable[[], Problem],
    ranks: Ranks = ALONE,
    observers: Sequence[str] = (),
    *,
    resume: bool = False,
    extend: bool = False,
    overwrite: bool = False,
) -> Iterator[OpenRun | Row]:
    """Inside, the run in ``folder`` is begun or taken up again, or this is the last row of a run that has ended.

    Arguments and errors as for ``train``; the rows are sent to ``observers`` too.
    """
    files = RunFolder(folder)
    with ExitStack() as kept:
        with ranks.agreed():
            events = kept.enter_context(Observers(folder, observers)) if observers and ranks.first else None
            if ranks.first:
                kept.enter_context(files.locked())
            found = _find(files, config, resume, extend, overwrite) if ranks.first else None
        settings, checkpoint, rows = _Found(*ranks.from_first(found and tuple(found)))
        config = RunConfig(**settings)
        if rows is not None:
            yield _last_row(files, events, rows, ranks)
            return
        kept.enter_context(repeatable(ranks.threads(config.threads or 1)))
        with ranks.agreed():
            device = ranks.device(config.device)  # an error if the device is absent, before data are loaded
            if device.type == "cuda":
                kept.enter_context(without_tf32())
        loaded = ranks.one_a_machine_first(problem)
        with ranks.agreed():
            with files.naming_config() if resume else nullcontext():
                run = RunState(config.resolved(loaded.n), loaded, ranks)
                if run.config.compile is None:
                    run.config = replace(run.config, compile=run.compiling_pays())
                config = run.config
            if checkpoint is not None:
                with files.naming_checkpoint():
                    run.load_state_dict(checkpoint)
            if ranks.first:
                if checkpoint is None:
                    files.begin(config.to_json())
                elif files.read_config().get("epochs") != config.epochs:
                    files.save_checkpoint(run.state_dict(finished=False))  # before: one that ended would stay so
                    files.write_config(config.to_json())
                files.truncate(run.rows)
                if events:
                    events.begin(files.rows())
        ranks.copy_first([*run.model.parameters(), *run.model.buffers()])  # machines may draw different initial ones
        yield OpenRun(run, files, events)


class _Found(NamedTuple):
    """The settings to train with, and how far the folder's run is."""

    settings: dict[str, Any]
    checkpoint: Checkpoint | None  # to go on from
    rows: int | None  # of metrics, if the run has ended


def _find(files: RunFolder, config: RunConfig, resume: bool, extend: bool, overwrite: bool) -> _Found:
    begun = files.exists() and not overwrite
    if begun and not resume:
        raise ValueError(f"{files.path}: holds a run already; --resume goes on with it, --overwrite throws it away")
    if not begun:
        return _Found(config.resolved().to_json(), None, None)
    known, checkpoint = _agree(config, files, extend), files.load_checkpoint()
    settings = known.to_json()
    if files.read_config().get("epochs") != known.epochs:
        return _Found(settings, _extended(files, checkpoint, known), None)
    if checkpoint is None:  # if there is a final row the run has ended, and its weights were not kept
        return _Found(settings, None, files.final_rows() or None)
    return _Found(settings, None, checkpoint["rows"]) if checkpoint["finished"] else _Found(settings, checkpoint, None)


def _extended(files: RunFolder, checkpoint: Checkpoint | None, config: RunConfig) -> Checkpoint | None:
    """The checkpoint to go on from to more epochs; None if the run was killed before the first one."""
    try:
        if checkpoint is None:
            if files.final_rows():
                raise ValueError("it has ended, and its weights were not kept")
            return None
        return extended(checkpoint, files.rows()[: checkpoint["rows"]], config.eval_every)
    except ValueError as error:
        raise ValueError(f"{files.path}: cannot go on to {config.epochs:g} epochs: {error}") from None


def _last_row(files: RunFolder, events: Observers | None, count: int, ranks: Ranks) -> Row:
    """The last row of a run that has ended."""
    rows: list[Row] = []
    with ranks.agreed():
        if ranks.first:
            files.truncate(count)
            rows = files.rows()
        if events:
            events.begin(rows)
    return cast(Row, ranks.from_first(rows)[-1])


def _agree(config: RunConfig, files: RunFolder, extend: bool) -> RunConfig:
    """The folder's settings, with the epochs of ``config`` if it may ``extend`` them. ValueError for other settings."""
    stored = as_trained(files.read_config())
    try:
        known = RunConfig(**stored)
        known.resolved()
    except ValueError as error:
        raise ValueError(f"{files.path / 'config.json'}: {error}") from None
    known = replace(known, params=recorded_parameters(known.method, known.params))
    if extend and config.epochs > known.epochs:
        try:
            check_extension(known, config.epochs)
        except ValueError as error:
            raise ValueError(f"{files.path}: cannot go on to {config.epochs:g} epochs: {error}") from None
        known = replace(known, epochs=config.epochs)
    given = {key: value for key, value in config.to_json().items() if key in stored and value is not None}
    given["params"] = {**known.params, **config.params}
    try:
        wanted, settings = replace(known, **given).resolved().to_json(), known.to_json()
    except ValueError as error:
        raise ValueError(f"{files.path}: cannot resume with other settings: {error}") from None
    differing = [
        f"{key} is {cut(str(settings[key]))}, not {cut(str(wanted[key]))}"
        for key in stored
        if settings[key] != wanted[key]
    ]
    if differing:
        raise ValueError(f"{files.path}: cannot resume with other settings: {'; '.join(differing)}")
    return known


def _compile(opened_run: OpenRun, on_warning: Callable[[str], None], should_stop: Callable[[], bool]) -> None:
    run = opened_run.state
    reason = run.compile()
    if reason is None:
        return
    if run.ranks.any(should_stop()):  # Ctrl-C ends a compiler, too; the run that goes on may compile
        opened_run.save()
        run.ranks.any(True)  # rank 0 has saved
        raise on_all_ranks(opened_run.interrupted)
    if run.ranks.first:
        on_warning(f"{run.config.problem}: steps are not compiled, because {reason}")


def _records(run: RunState) -> bool:
    return run.device.type == "cuda" and os.environ.get(GRAPHS, "1") != "0"


def _record(opened_run: OpenRun, on_warning: Callable[[str], None]) -> None:
    run = opened_run.state
    if (reason := run.record()) and run.ranks.first:
        on_warning(f"{run.config.problem}: steps are not CUDA graphs, because {reason}")


def _record_whole_step(opened_run: OpenRun, on_warning: Callable[[str], None]) -> None:
    run = opened_run.state
    if reason := run.record_whole_step():
        what = "steps are more than one CUDA graph each" if run.graphed else "steps are no longer CUDA graphs"
        on_warning(f"{run.config.problem}: {what}, because {reason}")


def _loop(
    opened_run: OpenRun,
    on_progress: Callable[[Progress], None],
    on_warning: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Row:
    run = opened_run.state
    shown, saved = time.monotonic(), -inf
    while True:
        if run.finished or run.evaluation_due:
            rows = run.evaluate()
            saved = opened_run.record(rows, saved)
            if rows[-1]["final"]:
                on_progress(run.last_progress)
                return rows[-1]
        if run.whole is not None and run.whole.due:
            _record_whole_step(opened_run, on_warning)
        run.step()
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            on_progress(run.progress)
        stop = run.ranks.any(should_stop())
        if stop or now - saved >= CHECKPOINT_SECONDS:
            saved = opened_run.save()
        if stop:
            run.ranks.any(stop)  # rank 0 has saved
            raise on_all_ranks(opened_run.interrupted)
