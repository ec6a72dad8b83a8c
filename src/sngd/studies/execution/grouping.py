"""Which runs of a study are trained as one in a process, and what is said of it."""

from collections.abc import Collection, Hashable, Mapping, Sequence

import torch

from sngd.studies.execution.task import Task
from sngd.training.replicas.alike import Limit, kind


def alike(tasks: Sequence[Task]) -> dict[Hashable, list[int]]:
    """The indices of the tasks by kind."""
    kinds: dict[Hashable, list[int]] = {}
    for index, task in enumerate(tasks):
        kinds.setdefault(kind(task.config), []).append(index)
    return kinds


def in_groups(tasks: Sequence[Task], limits: Mapping[Hashable, Limit], jobs: int) -> list[list[int]]:
    """The indices of the tasks that are trained as one, of equal sizes up to one; larger groups come first.

    On the CPU there are enough groups for all processes. On an accelerator, which the processes share, they are as
    large as they may be. The answer depends on the list of tasks alone and not on which of them have ended: after an
    interruption the same runs are trained together.

    Args:
        limits: the sizes of groups by kind; a kind that is not there has none. Runs too few for the least size are
            trained one by one.
        jobs: number of processes.
    """
    found = []
    for key, indices in alike(tasks).items():
        limit = limits.get(key, Limit(1))
        number = -(-len(indices) // limit.most)
        if torch.device(tasks[indices[0]].config.device).type == "cpu":
            number = -(-number // jobs) * jobs
        if -(-len(indices) // number) < limit.least:
            number = len(indices)
        found += [indices[start::number] for start in range(number)]
    return sorted(found, key=len, reverse=True)


def plan_in_words(
    tasks: Sequence[Task],
    groups: Sequence[Sequence[int]],
    limits: Mapping[Hashable, Limit],
    jobs: int,
    threads: Collection[int],
    ended: Collection[int] = (),
) -> list[str]:
    """A line on how many runs are done at a time, and one for each reason why runs are not trained as one.

    Args:
        tasks, groups: see ``in_groups``.
        limits: by kind.
        jobs: number of processes.
        threads: numbers of CPU threads that runs take.
        ended: the tasks that have ended, by index, of which nothing is said.
    """
    left = [rest for group in groups if (rest := [index for index in group if index not in ended])]
    sizes = {len(group) for group in left}
    runs = f"{len(tasks) - len(ended)} of {len(tasks)} runs" if ended else _count(len(tasks), "run")
    lines = [
        f"{runs}: {_count(min(jobs, len(left)), 'process', 'processes')}, each training "
        f"{_either(sizes)} at a time with {_either(threads)} {'thread' if max(threads) == 1 else 'threads'}"
    ]
    arms: dict[str, list[str]] = {}
    for key, indices in alike(tasks).items():
        if key in limits and not set(indices) <= set(ended) and (reason := limits[key].reason):
            arms.setdefault(reason, []).append(str(tasks[indices[0]].config.label or tasks[indices[0]].config.method))
    if any(len(group) > 1 and tasks[group[0]].config.compile for group in left):
        lines.append("steps of runs that are trained as one are not compiled; --replicas 1 trains each by itself")
    return lines + [f"{', '.join(labels)}: runs are trained one by one, because {why}" for why, labels in arms.items()]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _either(numbers: Collection[int]) -> str:
    return " or ".join(map(str, sorted(numbers, reverse=True)))
