"""A packed study: two files with the content of a study's run folders.

``study.json`` has once what the runs share: compare.json if there is one, the environments, the settings. For each run
it has its place (its folder below the study's), the settings that differ, and the index of its environment.
``rows.jsonl.gz`` has the rows of metrics.jsonl of all runs, one after the other, each with its run's index in front.

``study.json`` is written last and deleted first: while it is there, both files are whole.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict, cast

from sngd.slug import slug
from sngd.training.config import RunConfig, StoredConfig, check_config
from sngd.training.metrics import Row, as_lines
from sngd.training.run_folder import replace_file, write_json
from sngd.training.schema import Count, Malformed, content_of, decode, read

STUDY, ROWS = "study.json", "rows.jsonl.gz"

FORMAT = 1  # of study.json; a later one is refused

Environment = dict[str, str | int | float | None]


class PackedRun(NamedTuple):
    """A run: its place, a path below the study's folder with ``/``, and what its three files hold."""

    place: str
    config: StoredConfig
    environment: Environment
    rows: list[Row]


class Packed(NamedTuple):
    """A study: what compare.json holds, None without one, and all its runs, those of the tuning too."""

    comparison: dict[str, Any] | None  # Any: ``runs`` checks it as compare.json
    runs: list[PackedRun]


class _RunEntry(TypedDict):
    place: str
    environment: Count  # an index of ``environments``
    settings: dict[str, Any]  # Any: checked as config.json is, once those of the study are added


class _StudyFile(TypedDict):
    """study.json; a run's settings are those of the file and its own."""

    format: Count
    comparison: dict[str, Any] | None  # Any: ``runs`` checks it as compare.json
    environments: list[Environment]
    settings: dict[str, Any]  # Any: checked as config.json is, once a run's own are added
    runs: list[_RunEntry]


class _NumberedRow(Row):
    """A line of rows.jsonl.gz."""

    run: Count  # an index of ``runs``


def is_packed(folder: Path) -> bool:
    """Whether ``folder`` itself holds a packed study."""
    return (folder / STUDY).exists()


def ascii_place(place: str | PurePosixPath) -> str:
    """``place`` with the slug of every part that is not plain ASCII: git quotes other names, and tools skip them."""
    return str(PurePosixPath(*(part if part.isascii() else slug(part) for part in PurePosixPath(place).parts)))


# ---- reading -------------------------------------------------------------------------------------------------


def read_packed(folder: Path) -> Packed:
    """The study that is packed in ``folder``.

    Raises:
        FileNotFoundError: a file is not there.
        Malformed: (a ValueError) a file is damaged, or the two do not belong together.
        ValueError: it has a name or a setting that is unknown, or is of a later version.
    """
    path = folder / STUDY
    content = read(path, _StudyFile)
    if content["format"] != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT}, is {content['format']}: another version wrote it")
    rows = _read_rows(folder / ROWS, len(content["runs"]))
    runs = [_run(content, index, rows[index], path) for index in range(len(rows))]
    if len({run.place for run in runs}) < len(runs):
        raise Malformed(f"{path}: two runs have the same place")
    return Packed(content["comparison"], runs)


def _run(content: _StudyFile, index: int, rows: list[Row], path: Path) -> PackedRun:
    entry, at = content["runs"][index], f"runs[{index}]"
    place, environments = PurePosixPath(entry["place"]), content["environments"]
    if place.is_absolute() or ".." in place.parts or str(place) != entry["place"] or "\0" in entry["place"]:
        raise Malformed(f"{path}: place must be a path below the study, got {entry['place']!r} - at `$.{at}.place`")
    if entry["environment"] >= len(environments):
        raise Malformed(f"{path}: no environment {entry['environment']} - at `$.{at}.environment`")
    config = {**content["settings"], **entry["settings"]}
    checked = check_config(config, str(path), f"{at}.settings")
    return PackedRun(entry["place"], _in_order(checked), environments[entry["environment"]], rows)


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
    try:
        return gzip.decompress(content_of(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Malformed(f"{path}: not gzip ({str(error).splitlines()[0]})") from None


# ---- writing -------------------------------------------------------------------------------------------------


def write_packed(folder: Path, study: Packed) -> None:
    """Write the two files; ``folder`` must not hold a packed study, so that never one of two is new."""
    lines = as_lines({"run": index, **row} for index, run in enumerate(study.runs) for row in run.rows)
    environments = _distinct(run.environment for run in study.runs)
    common = _common([_in_order(run.config) for run in study.runs])
    content = _StudyFile(
        format=FORMAT,
        comparison=study.comparison,
        environments=environments,
        settings=common,
        runs=[
            _RunEntry(
                place=run.place,
                environment=next(i for i, known in enumerate(environments) if same(known, run.environment)),
                settings={name: value for name, value in _in_order(run.config).items() if name not in common},
            )
            for run in study.runs
        ],
    )
    replace_file(folder / ROWS, gzip.compress(lines, mtime=0))  # no time: the same rows make the same file
    write_json(folder / STUDY, content)


def _distinct(environments: Iterable[Environment]) -> list[Environment]:
    return list({json.dumps(environment): environment for environment in environments}.values())


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
