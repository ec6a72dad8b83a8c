"""Packed studies: two files with the content of a study's run folders, or of those of all studies below a folder.

``study.json`` has the compare.json of each study by the study's place, which is its folder below that of the file:
``.`` if that folder itself is the study. What runs share, it has once: environments, the settings of all of them, and
those of an arm. For each run it has its place, the settings that are its own, and the indices of its environment and
its arm. ``rows.jsonl.xz`` has the rows of metrics.jsonl of all runs, one after the other, each with its run's index in
front.

``study.json`` is written last and deleted first: while it is there, both files are whole.
"""

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar, cast

from sngd.slug import slug
from sngd.training.config import RunConfig, StoredConfig, check_config
from sngd.training.metrics import Row, as_lines
from sngd.training.run_folder import replace_file, write_json
from sngd.training.schema import Count, Malformed, check, content_of, decode, read

STUDY, ROWS, EARLIER_ROWS = "study.json", "rows.jsonl.xz", "rows.jsonl.gz"

# Of study.json; a later one is refused. Formats 1 and 2 had no arms, and gzip for the rows. Format 1 had
# ``comparison``, that of the study at ``.``.
FORMAT = 3
OWN = ("lr", "seed")  # settings of a run that are not its arm's
_MEMORY = 2**27  # bytes that taking xz apart may need beside the content; what this package writes needs 2**24

Environment = dict[str, str | int | float | None]
_Dict = TypeVar("_Dict", bound=dict[str, Any])  # Any: read once more when it is checked

Comparisons = dict[str, dict[str, Any] | None]  # Any: ``runs`` checks each as compare.json


class PackedRun(NamedTuple):
    """A run: its place, a path with ``/`` below the folder of the packed files, and what its own three files held."""

    place: str
    config: StoredConfig
    environment: Environment
    rows: list[Row]


class Packed(NamedTuple):
    """Studies: what compare.json of each holds, None without one, and all their runs, those of the tuning too."""

    comparisons: Comparisons  # by the studies' places
    runs: list[PackedRun]


class Pack(NamedTuple):
    """Where a folder is packed: the folder of the packed files, at it or above it, and its place below that."""

    folder: Path
    place: str


class _RunEntry(TypedDict):
    place: str
    environment: Count  # an index of ``environments``
    arm: NotRequired[Count]  # an index of ``arms``
    settings: dict[str, Any]  # Any: checked as config.json is, once those of the file and of its arm are added


class _StudyFile(TypedDict):
    """study.json; a run's settings are those of the file, those of its arm and its own."""

    format: Count
    comparisons: Comparisons
    environments: list[Environment]
    settings: dict[str, Any]  # Any: checked as config.json is, once a run's own are added
    arms: NotRequired[list[dict[str, Any]]]  # Any: as for ``settings``
    runs: list[_RunEntry]


class _NumberedRow(Row):
    """A line of rows.jsonl.xz."""

    run: Count  # an index of ``runs``


def holds_packed(folder: Path) -> bool:
    """Whether the two files are in ``folder`` itself."""
    return (folder / STUDY).exists()


def pack_folders(folder: Path) -> list[Path]:
    """The folders at or below ``folder`` that hold packed files, in order."""
    return sorted(path.parent for path in folder.rglob(STUDY))


def pack_of(folder: Path) -> Pack | None:
    """The nearest packed files at or above ``folder``, whether or not they hold something of it; None: there are none.

    ``folder`` need not exist: packing deletes the folders below that of the packed files.
    """
    whole = Path(os.path.abspath(folder))
    for above in (folder, *whole.parents):
        if holds_packed(above):
            return Pack(above, ascii_place(whole.relative_to(os.path.abspath(above)).as_posix()))
    return None


def is_packed(study: Path) -> bool:
    """Whether the study whose folder is, or was, ``study`` is packed: by itself, or together with others.

    Raises:
        ValueError: study.json is damaged, or of a later version.
    """
    pack = pack_of(study)
    return pack is not None and pack.place in read_comparisons(pack.folder)


def is_below(place: str, other: str) -> bool:
    """Whether a place is ``other``, or below it."""
    return PurePosixPath(place).is_relative_to(other)


def ascii_place(place: str | PurePosixPath) -> str:
    """``place`` with the slug of every part that is not plain ASCII: git quotes other names, and tools skip them."""
    return str(PurePosixPath(*(part if part.isascii() else slug(part) for part in PurePosixPath(place).parts)))


# ---- reading -------------------------------------------------------------------------------------------------


def read_packed(folder: Path) -> Packed:
    """The studies that are packed in ``folder``'s own files.

    Raises:
        FileNotFoundError: a file is not there.
        Malformed: (a ValueError) a file is damaged, or the two do not belong together.
        ValueError: it has a name or a setting that is unknown, or is of a later version.
    """
    path = folder / STUDY
    content = _read_study_file(path)
    rows = _read_rows(folder / (ROWS if content["format"] >= 3 else EARLIER_ROWS), len(content["runs"]))
    runs = [_run(content, index, rows[index], path) for index in range(len(rows))]
    if len({run.place for run in runs}) < len(runs):
        raise Malformed(f"{path}: two runs have the same place")
    return Packed(content["comparisons"], runs)


def read_comparisons(folder: Path) -> Comparisons:
    """What ``read_packed`` gives, without the runs; only study.json is read.

    Raises:
        FileNotFoundError, ValueError: as ``read_packed``.
    """
    return _read_study_file(folder / STUDY)["comparisons"]


def _read_study_file(path: Path) -> _StudyFile:
    read_content = read(path, dict[str, Any])
    if read_content.get("format") == 1 and "comparison" in read_content:
        read_content["comparisons"] = {".": read_content.pop("comparison")}
    content = check(cast(_StudyFile, read_content), _StudyFile, str(path))
    if content["format"] not in range(1, FORMAT + 1):
        raise ValueError(f"{path}: format must be 1 to {FORMAT}, is {content['format']}: another version wrote it")
    for place in content["comparisons"]:
        _check_place(place, path, "comparisons")
    return content


def _check_place(place: str, path: Path, at: str) -> None:
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts or str(parts) != place or "\0" in place:
        raise Malformed(f"{path}: place must be a path below the file's folder, got {place!r} - at `$.{at}`")


def _run(content: _StudyFile, index: int, rows: list[Row], path: Path) -> PackedRun:
    entry, at = content["runs"][index], f"runs[{index}]"
    place, environments = entry["place"], content["environments"]
    _check_place(place, path, f"{at}.place")
    if not any(is_below(place, study) for study in content["comparisons"]):
        raise Malformed(f"{path}: the run {place!r} is in none of the studies - at `$.{at}.place`")
    if entry["environment"] >= len(environments):
        raise Malformed(f"{path}: no environment {entry['environment']} - at `$.{at}.environment`")
    arm = entry.get("arm")
    if arm is not None and arm >= len(content.get("arms", ())):
        raise Malformed(f"{path}: no arm {arm} - at `$.{at}.arm`")
    of_arm = {} if arm is None else content["arms"][arm]
    config = {**content["settings"], **of_arm, **entry["settings"]}
    checked = check_config(config, str(path), f"{at}.settings")
    return PackedRun(place, _in_order(checked), environments[entry["environment"]], rows)


def _in_order(config: StoredConfig) -> StoredConfig:
    """The settings as config.json has them."""
    names = [field.name for field in fields(RunConfig)]
    return cast(StoredConfig, dict(sorted(config.items(), key=lambda setting: names.index(setting[0]))))


def _read_rows(path: Path, runs: int) -> list[list[Row]]:
    rows: list[list[Row]] = [[] for _ in range(runs)]
    for number, line in enumerate(_uncompressed(path).splitlines(), 1):
        row = cast(dict[str, Any], decode(line, _NumberedRow, f"{path}, line {number}"))
        index = row.pop("run")
        if index >= runs:
            raise Malformed(f"{path}, line {number}: {path.with_name(STUDY)} has no run {index} - at `$.run`")
        rows[index].append(cast(Row, row))
    return rows


def _uncompressed(path: Path) -> bytes:
    gzipped = path.name == EARLIER_ROWS
    try:
        content = content_of(path)
        return gzip.decompress(content) if gzipped else lzma.decompress(content, lzma.FORMAT_XZ, memlimit=_MEMORY)
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Malformed(f"{path}: not {'gzip' if gzipped else 'xz'} ({str(error).splitlines()[0]})") from None


# ---- writing -------------------------------------------------------------------------------------------------


def write_packed(folder: Path, packed: Packed) -> None:
    """Write the two files; ``folder`` must not hold any, so that never one of two is new."""
    lines = as_lines({"run": index, **row} for index, run in enumerate(packed.runs) for row in run.rows)
    environments = _distinct(run.environment for run in packed.runs)
    configs = [dict(_in_order(run.config)) for run in packed.runs]
    common = _common(configs)
    own = [{name: config.pop(name) for name in OWN if name in config and name not in common} for config in configs]
    of_arms = [{name: value for name, value in config.items() if name not in common} for config in configs]
    arms = _distinct(of_arms)
    content = _StudyFile(
        format=FORMAT,
        comparisons=packed.comparisons,
        environments=environments,
        settings=common,
        arms=arms,
        runs=[
            _RunEntry(
                place=run.place,
                environment=_index(environments, run.environment),
                arm=_index(arms, of_arm),
                settings=settings,
            )
            for run, of_arm, settings in zip(packed.runs, of_arms, own, strict=True)
        ],
    )
    smallest = lzma.PRESET_DEFAULT | lzma.PRESET_EXTREME  # a twentieth less, for seconds at most
    replace_file(folder / ROWS, lzma.compress(lines, lzma.FORMAT_XZ, preset=smallest))
    write_json(folder / STUDY, content, compact=True)  # too many settings for a reader


def _distinct(found: Iterable[_Dict]) -> list[_Dict]:
    return list({json.dumps(one): one for one in found}.values())


def _index(found: Sequence[Mapping[str, object]], one: Mapping[str, object]) -> int:
    return next(index for index, other in enumerate(found) if same(other, one))


def _common(configs: Sequence[Mapping[str, object]]) -> dict[str, object]:
    first = configs[0] if configs else {}
    return {
        name: value
        for name, value in first.items()
        if all(name in config and same(config[name], value) for config in configs)
    }


def same(one: object, other: object) -> bool:
    """Whether two values are the same JSON; ``1``, ``1.0`` and ``true`` are three."""
    return json.dumps(one) == json.dumps(other)
