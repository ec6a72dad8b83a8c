"""Train several runs as one, each in its own folder."""

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf
from pathlib import Path

from sngd.problems import Problem
from sngd.training import engine
from sngd.training.config import RunConfig
from sngd.training.engine import OpenRun, opened
from sngd.training.metrics import Row
from sngd.training.ranks import ALONE
from sngd.training.replicas.alike import kind
from sngd.training.replicas.stack import Stack
from sngd.training.run_folder import naming_runs
from sngd.training.run_state import Progress, RunState


def train_together(
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    problem: Callable[[], Problem],
    *,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    on_progress: Callable[[int, Progress], None] = lambda _index, _progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """Train each run until its budget is spent, or its training loss is no longer finite; the others go on then.

    Killed at any moment and called again with ``resume``, all runs end with the weights and rows (except ``seconds``)
    of the call that was left alone, bit for bit, on the same machine and versions. A run can also go on by itself, and
    one that was begun by itself can go on here; it then ends with numbers equal up to rounding.

    Args:
        configs: settings of runs that can be replicas, of one kind: see ``sngd.training.replicas.alike``.
        folders: one for each run, as for ``sngd.training.train``.
        problem: loads the problem, the same for all; called if a run has not ended.
        resume, overwrite, tensorboard: as for ``sngd.training.train``.
        on_progress: called with a run's index and how far it is, as for ``sngd.training.train``.
        should_stop: called after each step; once it is true, checkpoints are saved and Interrupted is raised.

    Returns:
        The last row of each run.

    Raises:
        ValueError: the runs are not of one kind.
        ValueError, BrokenRun, Interrupted: as ``sngd.training.train``, of the first run that raises.
    """
    if len(set(map(kind, configs))) > 1:
        raise ValueError("runs trained as one must differ in seed, lr, params other than chunk_size, and label alone")
    how = {"resume": resume, "overwrite": overwrite}
    observers = ["tensorboard"] * tensorboard
    with ExitStack() as kept:
        found = []
        for config, folder in zip(configs, folders, strict=True):
            with naming_runs([folder]):
                found.append(kept.enter_context(opened(config, folder, problem, ALONE, observers, **how)))
            if isinstance(run := found[-1], OpenRun):  # which draws nothing more from what the next one seeds anew
                run.state.chance = run.state.global_chance()
        return _Together(found, partial(_stand_in, configs, problem)).train(on_progress, should_stop)


def _stand_in(configs: Sequence[RunConfig], problem: Callable[[], Problem], index: int) -> RunState:
    """A run in the place of one that has ended, where those behind it need a stack of the same size."""
    loaded = problem()
    return RunState(configs[index].resolved(loaded.n), loaded)


class _Together:
    """Runs side by side. Those that have taken the fewest steps take the next one, so that all are soon level.

    A kill may come when some runs have saved a checkpoint and others have not. Those behind catch up in a stack of the
    same rows as before: of all runs that had not ended at that step.
    """

    def __init__(self, found: Sequence[OpenRun | Row], stand_in: Callable[[int], RunState]) -> None:
        self.open = {index: run for index, run in enumerate(found) if isinstance(run, OpenRun)}
        self.rows = {index: row for index, row in enumerate(found) if not isinstance(row, OpenRun)}
        self.saved = dict.fromkeys(self.open, -inf)
        self.stand_in = stand_in
        self.members: list[int] = []
        self.stack: Stack | None = None

    def train(self, on_progress: Callable[[int, Progress], None], should_stop: Callable[[], bool]) -> list[Row]:
        shown = time.monotonic()
        self._show(on_progress)
        while self.open:
            steps = min(run.state.steps for run in self.open.values())
            turn = [index for index, run in self.open.items() if run.state.steps == steps]
            if due := [index for index in turn if self._is_due(self.open[index].state)]:
                self._evaluate(due, turn, steps)
                for index in [index for index in due if index in self.rows]:
                    on_progress(index, self.open.pop(index).state.last_progress)
                turn = [index for index in turn if index in self.open]
            if turn:
                stack = self._stack_after(steps)
                stack.step([self.members.index(index) for index in turn])
            now = time.monotonic()
            if now - shown >= engine.PROGRESS_SECONDS:
                shown = now
                self._show(on_progress)
            if not self.open:
                break
            stop = should_stop()
            if stop or now - min(self.saved[index] for index in self.open) >= engine.CHECKPOINT_SECONDS:
                self._save()
            if stop:
                raise next(iter(self.open.values())).interrupted
        return [self.rows[index] for index in sorted(self.rows)]

    def _is_due(self, run: RunState) -> bool:
        return run.finished or run.evaluation_due

    def _evaluate(self, due: Sequence[int], turn: Sequence[int], steps: int) -> None:
        """Write the rows that are due; runs that have ended get their last one in ``rows``.

        Runs in step with each other are all due after the same steps. They are measured together, also if a kill left
        only some of them due, so that rows do not depend on it.
        """
        stack = self._stack_after(steps - 1)
        self._settle()
        level = len({self.open[index].state.loop.oracle_calls for index in turn}) == 1
        if stack.in_step and level and stack.gains_in_evaluation:
            parts = [self._measured(stack, part) for part in self._measured_alike(due)]
            rows = {index: own for part in parts for index, own in part.items()}
        else:
            rows = {index: self.open[index].state.evaluate() for index in due}
        for index, own in rows.items():
            self.saved[index] = self.open[index].record(own, self.saved[index])
            if own[-1]["final"]:
                self.rows[index] = own[-1]

    def _measured_alike(self, due: Sequence[int]) -> list[list[int]]:
        """Runs whose rows are of the same samples, with gradients or without. An early version had other defaults."""
        found: dict[Hashable, list[int]] = {}
        for index in due:
            run = self.open[index].state
            measured = run.finished, run.config.eval_samples, run.config.curve_samples, run.config.grad_norm
            found.setdefault(measured, []).append(index)
        return list(found.values())

    def _measured(self, stack: Stack, due: Sequence[int]) -> dict[int, list[Row]]:
        """``RunState.evaluate`` of runs that are measured alike."""
        first = self.open[due[0]].state
        measure = partial(stack.measure, first.row_samples, grad_norm=bool(first.config.grad_norm))
        measured = measure()
        rows = {index: [self.open[index].state.row(measured[self.members.index(index)])] for index in due}
        random = [index for index in due if self.open[index].state.returns_random(rows[index][0])]
        if random:
            with ExitStack() as swapped:
                for index in random:
                    iterate = self.open[index].state.iterate
                    assert iterate is not None
                    swapped.enter_context(iterate.swapped())
                measured = measure()
            for index in random:
                rows[index].append(self.open[index].state.random_row(measured[self.members.index(index)]))
        return rows

    def _stack_after(self, steps: int) -> Stack:
        """The stack of all runs that took more than so many steps, or have not ended."""
        ended = [index for index, row in self.rows.items() if index not in self.open and row["step"] > steps]
        members = sorted([*self.open, *ended])
        if self.stack is None or members != self.members:
            self._settle()
            runs = [self.open[index].state if index in self.open else self.stand_in(index) for index in members]
            self.members, self.stack = members, Stack(runs)
        return self.stack

    def _settle(self) -> None:
        if self.stack is not None:
            self.stack.settle()

    def _show(self, on_progress: Callable[[int, Progress], None]) -> None:
        self._settle()
        for index, run in self.open.items():
            on_progress(index, run.state.progress)

    def _save(self) -> None:
        self._settle()
        for index, run in self.open.items():
            self.saved[index] = run.save()
