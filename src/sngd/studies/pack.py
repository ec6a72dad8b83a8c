"""Pack finished studies into few files, and make their run folders from them again.

A kill at any moment loses nothing: the packed files are written and read back before the first folder is deleted, and
the folders are complete before the packed files are deleted. Calling the function again then finishes its work.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from sngd.studies.packed import (
    EARLIER_ROWS,
    ROWS,
    STUDY,
    Packed,
    PackedRun,
    ascii_place,
    holds_packed,
    is_below,
    pack_folders,
    pack_of,
    read_comparisons,
    read_packed,
    same,
    write_packed,
)
from sngd.studies.publish import FILES as PUBLISHED
from sngd.studies.runs import Run, all_runs, comparison_of, read_run, study_folders
from sngd.training.folder_lock import FolderLock, locked, make_folder, turn_to_publish
from sngd.training.metrics import as_lines
from sngd.training.run_folder import replace_file, write_json

_WRITES = (STUDY, ROWS, "compare.json")
_LOCKS = (".lock", ".publish.lock")
_OF_A_RUN = ("config.json", "environment.json", "metrics.jsonl")  # a folder is no run any more without the first
_WEIGHTS = "checkpoint.pt"
_NAMED = 3  # of unfinished runs


def pack(folder: Path, *, together: bool = False, drop_weights: bool = False) -> list[Path]:
    """Pack every finished study at or below ``folder``; without a compare.json there, ``folder`` itself is the study.

    The packed files hold a run's settings, environment and rows. Its weights (checkpoint.pt) and all other files stay
    in the run's folder. Names of folders become plain ASCII. A study has its picture as PNG and SVG; the PNG is kept.
    If runs were added to a packed study, they are packed too.

    Args:
        folder: a study's, or one above several.
        together: make one pair of files, in ``folder``, of all studies. What ``publish`` wrote into the folders of
            studies below is deleted, and so are those that are empty then. Studies that are packed together stay so
            without it.
        drop_weights: delete the runs' checkpoint.pt too. They are needed by ``sngd diagnose`` alone.

    Returns:
        The folders of the studies, all packed now. Those of studies that are packed together need not exist any more.

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: a study has runs that have not finished, or are absent: that study is as it was, and so are those
            that would be packed together with it; the others are packed. Or a broken file; or another process is
            working in a study; or they are packed together with others in a folder above.
    """
    studies = _studies(folder)
    refused = []
    for home, parts in ({folder: studies} if together else _homes(folder, studies)).items():
        with locked(home, _WRITES, "working") as lock, turn_to_publish(home, ()), _others_locked(home, parts):
            if missing := [message for study in parts if (message := _what_is_missing(study))]:
                refused += missing
            else:
                pack_files(home, parts, lock, drop_weights=drop_weights)
    if refused:
        raise ValueError("; ".join(refused))
    return studies


def unpack(folder: Path) -> list[Path]:
    """Make the run folders of every packed study at or below ``folder`` again, byte for byte, without their weights.

    Returns:
        The folders of the studies that were unpacked.

    Raises:
        FileNotFoundError: there is no packed study.
        ValueError: a broken file; or another process is working in a study; or they are packed together with others in
            a folder above.
    """
    _check_not_packed_above(folder)
    studies = []
    for home in pack_folders(folder):
        parts = _parts(home)
        with locked(home, _WRITES, "working") as lock, turn_to_publish(home, ()), _others_locked(home, parts):
            unpack_files(home, lock)
        studies += parts
    if not studies:
        raise FileNotFoundError(f"{folder}: no packed study in it, no folder has a {STUDY}")
    return studies


@contextmanager
def unpacked(folder: Path, lock: FolderLock) -> Iterator[None]:
    """Inside, the studies that are packed in ``folder``'s own files have their run folders; the folder's lock is held.

    At the end they are packed again, and so are studies that came to those that were packed together, unless runs have
    not finished.

    Raises:
        ValueError: as ``unpack``.
    """
    _check_not_packed_above(folder)
    parts = _parts(folder) if holds_packed(folder) else []
    if parts:
        with turn_to_publish(folder, ()), _others_locked(folder, parts):
            unpack_files(folder, lock)
    yield
    if parts:
        parts = parts if parts == [folder] else study_folders(folder)
        with turn_to_publish(folder, ()), _others_locked(folder, parts):
            if not any(map(_what_is_missing, parts)):
                pack_files(folder, parts, lock)


def _check_not_packed_above(folder: Path) -> None:
    pack = pack_of(folder)
    if pack is None or pack.folder == folder:
        return
    if any(is_below(place, pack.place) for place in read_comparisons(pack.folder)):
        advice = f"sngd pack {pack.folder} --unpack makes its folders again"
        raise ValueError(f"{folder}: packed together with others in {pack.folder}; {advice}")


# ---- which studies -------------------------------------------------------------------------------------------


def _studies(folder: Path) -> list[Path]:
    _check_not_packed_above(folder)
    if studies := study_folders(folder):
        return studies
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not all_runs(folder):
        raise FileNotFoundError(f"{folder}: no runs in it, no folder has a config.json")
    return [folder]


def _homes(folder: Path, studies: Sequence[Path]) -> dict[Path, list[Path]]:
    """The folders of the packed files, each with its studies: where they are packed, otherwise a study's own."""
    homes = {home: _parts(home) for home in pack_folders(folder)}
    packed = {study for parts in homes.values() for study in parts}
    return homes | {study: [study] for study in studies if study not in packed}


def _parts(home: Path) -> list[Path]:
    """The studies that ``home``'s own packed files hold."""
    places = read_comparisons(home)
    return [study for study in study_folders(home) if _place(study, home) in places]


def _place(path: Path, home: Path) -> str:
    return ascii_place(path.relative_to(home).as_posix())


def _runs(study: Path) -> list[Run]:
    """The study's own runs, without those of studies below it."""
    others = [_place(other, study) for other in study_folders(study) if other != study]
    return [run for run in all_runs(study) if not any(is_below(_place(run.path, study), other) for other in others)]


def _what_is_missing(study: Path) -> str:
    """Says which runs have not finished, and which of those that compare.json lists are absent; "" if none."""
    comparison, finished = comparison_of(study), {_place(run.path, study): run.finished for run in _runs(study)}
    listed = comparison.get("runs", []) if comparison else []
    missing = [place for place, ended in finished.items() if not ended]
    missing += [place for place in map(ascii_place, listed) if place not in finished]
    if not missing:
        return ""
    shown = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    return f"{study}: {len(missing)} runs have not finished ({shown}), it is not packed"


@contextmanager
def _others_locked(home: Path, studies: Sequence[Path]) -> Iterator[None]:
    """Keep other processes out of the folders below ``home`` too; those that are empty at the end are deleted."""
    others = _between(home, studies)
    with ExitStack() as stack:
        for path in filter(Path.is_dir, others):
            stack.enter_context(locked(path, _WRITES, "working"))
            stack.enter_context(turn_to_publish(path, ()))
        yield
    for path in filter(Path.is_dir, reversed(others)):
        if {entry.name for entry in path.iterdir()} <= set(_LOCKS):
            for name in _LOCKS:
                (path / name).unlink(missing_ok=True)
            path.rmdir()


def _between(home: Path, studies: Sequence[Path]) -> list[Path]:
    """The folders of the studies and those that hold them, below ``home``: ``sngd reproduce`` works in these too."""
    folders = {path for study in studies for path in (study, *study.parents)}
    return sorted(path for path in folders if path != home and path.is_relative_to(home))


# ---- the files, under the locks ------------------------------------------------------------------------------


def pack_files(home: Path, studies: Sequence[Path], lock: FolderLock, *, drop_weights: bool = False) -> None:
    """Pack studies, all of whose runs have finished, into two files in ``home``.

    Raises:
        RuntimeError: the packed files do not hold what the folders hold; nothing has been deleted then.
    """
    for folder in _between(home, studies):
        unpack_files(folder, lock)
    wanted = _content(home, studies)
    if not (holds_packed(home) and _equal(read_packed(home), wanted)):
        unpack_files(home, lock)
        lock.check()
        write_packed(home, wanted)
        if not _equal(read_packed(home), wanted):
            (home / STUDY).unlink()
            raise RuntimeError(f"{home / STUDY}: reads back as something else than the runs; they are kept")
    _remove_folders(home, wanted, lock, drop_weights)
    for folder in _between(home, studies):
        _remove_rows(folder)  # of an unpacking that was interrupted
        if folder in studies:
            _remove_published(folder)
    for study in studies:
        (study / "compare.json").unlink(missing_ok=True)
    if (home / "figures" / "curves.png").exists():
        (home / "figures" / "curves.svg").unlink(missing_ok=True)


def _content(home: Path, studies: Sequence[Path]) -> Packed:
    runs = {_place(run.path, home): run for study in studies for run in _runs(study)}
    return Packed(
        {_place(study, home): _comparison(study) for study in studies},
        [PackedRun(place, run.config, run.environment, run.rows) for place, run in runs.items()],
    )


def _comparison(study: Path) -> dict[str, Any] | None:  # Any: as packed
    comparison = cast("dict[str, Any] | None", comparison_of(study))
    if comparison and "runs" in comparison:
        return {**comparison, "runs": [ascii_place(run) for run in comparison["runs"]]}
    return comparison


def _equal(one: Packed, other: Packed) -> bool:
    """Whether they hold the same, whatever the order of studies, runs and settings."""

    def by_place(packed: Packed) -> list[object]:
        runs = {run.place: [dict(sorted(run.config.items())), run.environment, run.rows] for run in sorted(packed.runs)}
        return [dict(sorted(packed.comparisons.items())), runs]

    return same(by_place(one), by_place(other))


def _remove_published(study: Path) -> None:
    for name in PUBLISHED:
        (study / name).unlink(missing_ok=True)
    if (study / "figures").is_dir():
        _remove_empty(study / "figures", study)


def _remove_folders(home: Path, packed: Packed, lock: FolderLock, drop_weights: bool) -> None:
    """Delete what is packed of the runs' folders, and those that are empty then."""
    runs = {run.place: run for run in packed.runs}
    for folder in [*_folders_below(home), home]:
        place = _place(folder, home)
        if place not in runs:
            continue
        if place in packed.comparisons:  # a run that is a study too: its folder is locked already
            _remove_files(folder, runs[place], drop_weights)
            continue
        with locked(folder, _OF_A_RUN, "training"):  # no other process goes on with the run, or overwrites it
            lock.check()
            _remove_files(folder, runs[place], drop_weights)
        (folder / ".lock").unlink(missing_ok=True)
        _remove_empty(folder, home)


def _remove_files(folder: Path, run: PackedRun, drop_weights: bool) -> None:
    if (folder / "config.json").exists():
        there = read_run(folder)
        if not same([there.environment, there.rows], [run.environment, run.rows]) or there.config != run.config:
            return  # written anew meanwhile: it is another run
    for name in (*_OF_A_RUN, *([_WEIGHTS] if drop_weights else [])):
        (folder / name).unlink(missing_ok=True)


def _folders_below(home: Path) -> list[Path]:
    """Innermost first."""
    return sorted((path for path in home.rglob("*") if path.is_dir()), reverse=True)


def _remove_empty(folder: Path, home: Path) -> None:
    while folder != home and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def unpack_files(home: Path, lock: FolderLock) -> None:
    """Make the run folders again of what ``home``'s packed files hold, if it has any. A run with a folder keeps it."""
    if not holds_packed(home):
        return
    packed = read_packed(home)
    _remove_folders(home, packed, lock, drop_weights=False)  # of a packing that was interrupted
    for run in packed.runs:
        lock.check()
        if not (home / run.place / "config.json").exists():
            _write_run(home / run.place, run)
    for place, comparison in packed.comparisons.items():
        if comparison is not None:
            make_folder(home / place)
            write_json(home / place / "compare.json", comparison)
    (home / STUDY).unlink()
    _remove_rows(home)


def _remove_rows(folder: Path) -> None:
    for name in (ROWS, EARLIER_ROWS):
        (folder / name).unlink(missing_ok=True)


def _write_run(folder: Path, run: PackedRun) -> None:
    make_folder(folder)
    replace_file(folder / "metrics.jsonl", as_lines(run.rows))
    if run.environment:
        write_json(folder / "environment.json", run.environment)
    write_json(folder / "config.json", run.config)
