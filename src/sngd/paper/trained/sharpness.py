"""The sharpness where training ends: λ_max of the training loss's Hessian at the last weights of every run of a study.

On 8,192 training samples (all, if there are fewer), the same for all runs of a problem, without augmentation. BatchNorm
normalizes each batch by itself, as in training. For convolutional networks products with the Hessian are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sngd.diagnose import Objective
from sngd.diagnose.compiled_hessian import CompiledHessian
from sngd.diagnose.curvature import lanczos
from sngd.paper.trained.experiments import Experiment
from sngd.paper.trained.runs import finished_runs
from sngd.problems.problem import Samples
from sngd.studies.diagnosis import run_at_its_end
from sngd.studies.execution.execution import Execution
from sngd.studies.execution.task import finished
from sngd.studies.runs import Run, read_study
from sngd.training import Interrupted
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState
from sngd.training.schema import read

SAMPLES = 8192
TOLERANCE = 0.01  # of λ_max
FILE = "sharpness.json"

Sharpness = dict[str, dict[str, dict[str, float | None]]]  # λ_max by experiment, label and seed; None: it diverged


def measure_sharpness(experiments: Sequence[Experiment], out: Path, execution: Execution) -> None:
    """Measure every run of the experiments in ``out`` that ``out``/sharpness.json lacks, and add it there.

    Runs whose weights are gone, since packing can drop them, are left out, with a warning.

    Raises:
        ValueError: a run has not finished, or a file is broken.
        Interrupted: ``execution.should_stop`` said so; what was measured is kept.
    """
    known = stored_sharpness(out)
    missing = [(e, run) for e in experiments for run in _runs(e, out) if not _has(known, e, run)]
    if without := [run.path for _, run in missing if not _has_weights(run)]:
        count = f"{len(without)} of {len(missing)} runs"
        execution.on_warning(f"the sharpness of {count} is not measured: no weights, as in {without[0]}")
    missing = [(e, run) for e, run in missing if _has_weights(run)]
    on_progress = execution.begin("sharpness", [run.settings for _, run in missing])
    hessians = _Hessians(execution.on_warning)
    for index, (experiment, run) in enumerate(missing):
        if execution.should_stop():
            measured = f"{index} of {len(missing)}"
            raise Interrupted(f"stopped with the sharpness of {measured} runs measured; the same command goes on")
        arm = known.setdefault(experiment.name, {}).setdefault(run.label, {})
        arm[str(run.seed)] = None if run.diverged else _sharpness(run, execution.data, hessians)
        write_json(out / FILE, known)
        on_progress(index, finished(run.answer))


def stored_sharpness(out: Path) -> Sharpness:
    path = out / FILE
    return read(path, Sharpness) if path.exists() else {}


def _runs(experiment: Experiment, out: Path) -> Iterator[Run]:
    study = read_study(out / experiment.name)
    for arm in experiment.arms:
        yield from finished_runs(arm, experiment, study)


def _has_weights(run: Run) -> bool:
    return run.diverged or (run.path / "checkpoint.pt").exists()


def _has(known: Sharpness, experiment: Experiment, run: Run) -> bool:
    return str(run.seed) in known.get(experiment.name, {}).get(run.label, {})


def _sharpness(run: Run, data: Path | None, hessians: _Hessians) -> float:
    device = run.settings.device if torch.cuda.is_available() else "cpu"  # the weights may come from another machine
    state = run_at_its_end(run, device, data)
    batch_size = state.config.batch_size_or_default
    objective = Objective(state.model, state.loss_of, state.problem.train, chunk_size=batch_size)
    generator = torch.Generator().manual_seed(0)  # the same samples for all runs
    batch = objective.draw(min(SAMPLES, objective.n), generator)
    largest, _, _ = lanczos(
        hessians.product(state, objective, batch),
        objective.dim,
        tolerance=TOLERANCE,
        ends="largest",
        generator=generator,
        device=objective.device,
    )
    return largest.value


class _Hessians:
    """Products with Hessians; what is compiled for a problem serves all runs on it."""

    def __init__(self, on_warning: Callable[[str], object]) -> None:
        self._on_warning = on_warning
        self._compiled: dict[str, CompiledHessian | None] = {}

    def product(self, state: RunState, objective: Objective, batch: Samples) -> Callable[[Tensor], Tensor]:
        """v ↦ ∇²F(w)v over the batch, F being the objective at the state's weights."""
        problem = state.problem.name
        if problem not in self._compiled:
            self._compiled[problem] = self._compile(state, objective, batch)
        if compiled := self._compiled[problem]:
            return partial(compiled, objective, batch)
        return partial(objective.hessian_vector, batch=batch)

    def _compile(self, state: RunState, objective: Objective, batch: Samples) -> CompiledHessian | None:
        if not any(isinstance(module, nn.Conv2d) for module in state.model.modules()):
            return None  # products take less time than compiling
        compiled = CompiledHessian(state.model, state.problem.mean_loss)
        if reason := compiled.reason_against(objective, batch):
            self._on_warning(f"{state.problem.name}: products with the Hessian are slow, because {reason}")
            return None
        return compiled
