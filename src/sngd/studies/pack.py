"""Pack a finished study into few files, and make its run folders from them again.

A kill at any moment loses nothing: the packed files are written and read back before the first folder is deleted, and
the folders are complete before the packed files are deleted. Calling the function again then finishes its work.
"""

from pathlib import Path
from typing import Any

from sngd.studies.packed import (
    ROWS,
    STUDY,
    Packed,
    PackedRun,
    ascii_place,
    is_packed,
    read_packed,
    same,
    write_packed,
)
from sngd.studies.runs import Run, all_runs, comparison_of, read_run, study_folders
from sngd.training.folder_lock import FolderLock, locked, make_folder, turn_to_publish
from sngd.training.metrics import as_lines
from sngd.training.run_folder import replace_file, write_json

_WRITES = (STUDY, ROWS, "compare.json")
_OF_A_RUN = ("config.json", "environment.json", "metrics.jsonl")  # a folder is no run any more without the first
_WEIGHTS = "checkpoint.pt"
_NAMED = 3  # of unfinished runs


def pack(folder: Path, *, drop_weights: bool = False) -> list[Path]:
    """Pack every finished study at or below ``folder``; without a compare.json there, ``folder`` itself is the study.

    The packed files hold a run's settings, environment and rows. Its weights (checkpoint.pt) and all other files stay
    in the run's folder. Names of folders become plain ASCII. A study has its picture as PNG and SVG; the PNG is kept.
    If runs were added to a packed study, they are packed too.

    Args:
        folder: a study's, or one above several.
        drop_weights: delete the runs' checkpoint.pt too. They are needed by ``sngd diagnose`` alone.

    Returns:
        The folders of the studies, all packed now.

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: a study has runs that have not finished, or are absent: that study is as it was, the others are
            packed. Or a broken file; or another process is working in a study.
    """
    studies = _studies(folder)
    refused = []
    for study in studies:
        with locked(study, _WRITES, "working") as lock, turn_to_publish(study, ()):
            if missing := unfinished(study):
                shown = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
                refused.append(f"{study}: {len(missing)} runs have not finished ({shown}), it is not packed")
            else:
                pack_files(study, lock, drop_weights=drop_weights)
    if refused:
        raise ValueError("; ".join(refused))
    return studies


def unpack(folder: Path) -> list[Path]:
    """Make the run folders of every packed study at or below ``folder`` again, byte for byte, without their weights.

    Returns:
        The folders of the studies that were unpacked.

    Raises:
        FileNotFoundError: there is no packed study.
        ValueError: a broken file; or another process is working in a study.
    """
    studies = [study for study in study_folders(folder) if is_packed(study)]
    if not studies:
        raise FileNotFoundError(f"{folder}: no packed study in it, no folder has a {STUDY}")
    for study in studies:
        with locked(study, _WRITES, "working") as lock, turn_to_publish(study, ()):
            unpack_files(study, lock)
    return studies


def _studies(folder: Path) -> list[Path]:
    if studies := study_folders(folder):
        return studies
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not all_runs(folder):
        raise FileNotFoundError(f"{folder}: no runs in it, no folder has a config.json")
    return [folder]


def _runs(study: Path) -> list[Run]:
    """The study's own runs, without those of studies below it."""
    others = [other for other in study_folders(study) if other != study]
    return [run for run in all_runs(study) if not any(run.path.is_relative_to(other) for other in others)]


def unfinished(study: Path) -> list[str]:
    """The places of runs that have not finished, and of those that compare.json lists and that are absent."""
    comparison, finished = comparison_of(study), {_place(run, study): run.finished for run in _runs(study)}
    listed = comparison.get("runs", []) if comparison else []
    absent = [place for place in map(ascii_place, listed) if place not in finished]
    return [place for place, ended in finished.items() if not ended] + absent


def _place(run: Run, study: Path) -> str:
    return ascii_place(run.path.relative_to(study).as_posix())


# ---- the files of one study, under its lock ------------------------------------------------------------------


def pack_files(study: Path, lock: FolderLock, *, drop_weights: bool = False) -> None:
    """Pack one study, all of whose runs have finished; its lock is held.

    Raises:
        RuntimeError: the packed files do not hold what the folders hold; nothing has been deleted then.
    """
    wanted = _content(study)
    if not (is_packed(study) and _equal(read_packed(study), wanted)):
        unpack_files(study, lock)
        lock.check()
        write_packed(study, wanted)
        if not _equal(read_packed(study), wanted):
            (study / STUDY).unlink()
            raise RuntimeError(f"{study / STUDY}: reads back as something else than the runs; they are kept")
    _remove_folders(study, wanted, lock, drop_weights)
    (study / "compare.json").unlink(missing_ok=True)
    if (study / "figures" / "curves.png").exists():
        (study / "figures" / "curves.svg").unlink(missing_ok=True)


def _content(study: Path) -> Packed:
    comparison: dict[str, Any] | None = comparison_of(study)  # type: ignore[assignment]  # Any: as packed
    if comparison and "runs" in comparison:
        comparison = {**comparison, "runs": [ascii_place(run) for run in comparison["runs"]]}
    runs = [PackedRun(_place(run, study), run.config, run.environment, run.rows) for run in _runs(study)]
    return Packed(comparison, runs)


def _equal(one: Packed, other: Packed) -> bool:
    """Whether they hold the same, whatever the order of the runs and of their settings."""

    def by_place(study: Packed) -> dict[str, object]:
        return {run.place: [dict(sorted(run.config.items())), run.environment, run.rows] for run in sorted(study.runs)}

    return same([one.comparison, by_place(one)], [other.comparison, by_place(other)])


def _remove_folders(study: Path, packed: Packed, lock: FolderLock, drop_weights: bool) -> None:
    """Delete what is packed of the runs' folders, and those that are empty then."""
    runs = {run.place: run for run in packed.runs}
    for folder in [*_folders_below(study), study]:
        place = ascii_place(folder.relative_to(study).as_posix())
        if place not in runs:
            continue
        if folder == study:
            _remove_files(folder, runs[place], drop_weights)
            continue
        with locked(folder, _OF_A_RUN, "training"):  # no other process goes on with the run, or overwrites it
            lock.check()
            _remove_files(folder, runs[place], drop_weights)
        (folder / ".lock").unlink(missing_ok=True)
        _remove_empty(folder, study)


def _remove_files(folder: Path, run: PackedRun, drop_weights: bool) -> None:
    if (folder / "config.json").exists():
        there = read_run(folder)
        if not same([there.environment, there.rows], [run.environment, run.rows]) or there.config != run.config:
            return  # written anew meanwhile: it is another run
    for name in (*_OF_A_RUN, *([_WEIGHTS] if drop_weights else [])):
        (folder / name).unlink(missing_ok=True)


def _folders_below(study: Path) -> list[Path]:
    """Innermost first."""
    return sorted((path for path in study.rglob("*") if path.is_dir()), reverse=True)


def _remove_empty(folder: Path, study: Path) -> None:
    while folder != study and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def unpack_files(study: Path, lock: FolderLock) -> None:
    """Make one study's run folders again, if it is packed; its lock is held. A run that has a folder keeps it."""
    if not is_packed(study):
        return
    packed = read_packed(study)
    _remove_folders(study, packed, lock, drop_weights=False)  # of a packing that was interrupted
    for run in packed.runs:
        lock.check()
        if not (study / run.place / "config.json").exists():
            _write_run(study / run.place, run)
    if packed.comparison is not None:
        write_json(study / "compare.json", packed.comparison)
    (study / STUDY).unlink()
    (study / ROWS).unlink(missing_ok=True)


def _write_run(folder: Path, run: PackedRun) -> None:
    make_folder(folder)
    replace_file(folder / "metrics.jsonl", as_lines(run.rows))
    if run.environment:
        write_json(folder / "environment.json", run.environment)
    write_json(folder / "config.json", run.config)
