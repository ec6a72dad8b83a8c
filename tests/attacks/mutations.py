"""Every file that the library reads, damaged: it is read, or refused in one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from attacks import mutate, samples
from attacks.target import Chance, Target, refused
from sngd.paper import claims
from sngd.problems.cifar10_batch import read_binary, read_pickle
from sngd.problems.datasets import mnist
from sngd.studies.report import write_report
from sngd.studies.runs import read_study
from sngd.studies.table import as_markdown
from sngd.training import Interrupted, RunConfig, train
from sngd.training.plan_words import build_plan, inline
from sngd.training.planned import planned_settings, read_plan
from sngd.training.run_folder import RunFolder

METHODS = ("sngd", "sngm", "nsgd-momentum", "spider-sfo", "svrg", "scsg", "natasha2", "saddle-ngd", "adamw")
MOST_STEPS = 20  # of a run that is gone on with
REPORT_EVERY = 40  # a page takes longer than the rest


def targets(where: Path) -> dict[str, Target]:
    """Each reader, by the file it reads."""
    files = where / "mutations"
    return {
        "config.json": _run_file(files / "config", "config.json"),
        "metrics.jsonl": _run_file(files / "metrics", "metrics.jsonl"),
        "checkpoint.pt:values": _checkpoint(files / "state", _changed_state),
        "checkpoint.pt:bytes": _checkpoint(files / "bytes", _changed_bytes),
        "study:config.json": _study_file(files / "study-config", "runs/sngd/seed-1", "config.json"),
        "study:environment.json": _study_file(files / "study-environment", "runs/sngd/seed-1", "environment.json"),
        "study:metrics.jsonl": _study_file(files / "study-metrics", "runs/sngd/seed-1", "metrics.jsonl"),
        "study:compare.json": _study_file(files / "study", "", "compare.json"),
        "plan.json": _plan(files / "plan"),
        "stages.json": _stages(files / "stages"),
        "measurements.json": _measurements(files / "measurements"),
        "idx": _idx(files / "idx", lambda content: content),
        "idx:gzip": _idx(files / "gzip", samples.zipped),
        "cifar10:binary": _data(files / "binary" / "data_batch_1.bin", samples.cifar_binary(), read_binary),
        "cifar10:python": _data(files / "pickle" / "data_batch_1", samples.cifar_pickle(), read_pickle),
    }


def _changed_json(chance: Chance, content: bytes) -> bytes:
    return mutate.content(chance, content) if chance.random() < 0.4 else mutate.json_text(chance, json.loads(content))


def _changed_lines(chance: Chance, content: bytes) -> bytes:
    """Of a file with a JSON object a line, one line's values or any bytes."""
    if chance.random() < 0.4:
        return mutate.content(chance, content)
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = mutate.json_text(chance, json.loads(lines[at])) + b"\n"
    return b"".join(lines)


# ---- a run ---------------------------------------------------------------------------------------------------


def _run_file(where: Path, name: str) -> Target:
    """A run gone on with, finished or not, one of whose files is damaged."""
    runs: dict[str, dict[str, bytes]] = {}
    change = _changed_lines if name.endswith(".jsonl") else _changed_json

    def prepare() -> None:
        runs["half"] = samples.run_files(where / "half", samples.CONFIG, stop_after=30)
        runs["whole"] = samples.run_files(where / "whole", samples.CONFIG)
        runs["rows alone"] = {file: text for file, text in runs["whole"].items() if file != "checkpoint.pt"}
        _resume(samples.CONFIG, where / "whole")

    def attempt(chance: Chance) -> dict[str, int]:
        folder = where / "run"
        files = runs[chance.choices(list(runs), weights=[1, 4, 15])[0]]
        samples.put({**files, name: change(chance, files[name])}, folder)
        return _resume(samples.CONFIG, folder)

    return Target(attempt, prepare)


def _resume(config: RunConfig, folder: Path) -> dict[str, int]:
    steps = count()
    try:
        train(config, folder, problem=samples.tiny, resume=True, should_stop=lambda: next(steps) >= MOST_STEPS)
    except Interrupted:
        pass
    except Exception as error:
        return refused(error, folder)
    return {"read": 1}


def _checkpoint(where: Path, change: Callable[[Chance, RunFolder, dict[str, Any], bytes], None]) -> Target:
    """A run of any kind of method gone on with, whose checkpoint is damaged."""
    runs: dict[str, dict[str, bytes]] = {}
    states: dict[str, dict[str, Any]] = {}

    def config(method: str) -> RunConfig:
        return samples.config_of(method, output="random" if method in ("sngd", "natasha2") else "last")

    def prepare() -> None:
        for method in METHODS:
            runs[method] = samples.run_files(where / method, config(method), stop_after=30)
            states[method] = RunFolder(where / method).load_checkpoint() or {}
            _resume(config(method), where / method)

    def attempt(chance: Chance) -> dict[str, int]:
        method, folder = chance.choice(METHODS), where / "run"
        samples.put(runs[method], folder)
        change(chance, RunFolder(folder), states[method], runs[method]["checkpoint.pt"])
        chance.note = f"{method}: {chance.note}"
        return _resume(config(method), folder)

    return Target(attempt, prepare)


def _changed_state(chance: Chance, run: RunFolder, state: dict[str, Any], _content: bytes) -> None:
    run.save_checkpoint(mutate.state(chance, state))


def _changed_bytes(chance: Chance, run: RunFolder, _state: dict[str, Any], content: bytes) -> None:
    (run.path / "checkpoint.pt").write_bytes(mutate.content(chance, content))


# ---- studies -------------------------------------------------------------------------------------------------


def _study_file(where: Path, part: str, name: str) -> Target:
    """A comparison of four runs, one of whose files is damaged: read, tabled, and now and then made a page of."""
    files: dict[str, dict[str, bytes]] = {}
    change = _changed_lines if name.endswith(".jsonl") else _changed_json
    study = where / "study"

    def prepare() -> None:
        files.update(samples.study_files(where / "made"))
        for folder, content in files.items():
            (study / folder).mkdir(parents=True, exist_ok=True)
            for file, text in content.items():
                (study / folder / file).write_bytes(text)
        write_report(study)

    def attempt(chance: Chance) -> dict[str, int]:
        (study / part / name).write_bytes(change(chance, files[part][name]))
        try:
            as_markdown(read_study(study))
            if chance.randrange(REPORT_EVERY) == 0:
                write_report(study)
        except Exception as error:
            return refused(error, study)
        return {"read": 1}

    return Target(attempt, prepare)


def _measurements(where: Path) -> Target:
    """The measurements behind a claim, which it is judged by."""
    figures = {"C6": "fig4", "C4": "fig3", "C10": "variance", "C9": "relaxed", "C8": "fig1"}
    texts: dict[str, bytes] = {}
    parsed: dict[str, Any] = {}

    def prepare() -> None:
        for claim, figure in figures.items():
            texts[figure] = (samples.RESULTS / figure / "measurements.json").read_bytes()
            parsed[figure] = json.loads(texts[figure])
            (where / figure).mkdir(parents=True, exist_ok=True)
            (where / figure / "measurements.json").write_bytes(texts[figure])
            claims.judge(where, [claim])

    def attempt(chance: Chance) -> dict[str, int]:
        claim = chance.choices(list(figures), weights=[8, 6, 3, 1, 1])[0]
        path = where / figures[claim] / "measurements.json"
        if chance.random() < 0.3:
            path.write_bytes(mutate.content(chance, texts[figures[claim]]))
        else:
            path.write_bytes(mutate.json_text(chance, parsed[figures[claim]]))
        chance.note = f"{figures[claim]}: {chance.note}"
        try:
            claims.judge(where, [claim])
        except Exception as error:
            return refused(error, path)
        return {"read": 1}

    return Target(attempt, prepare)


# ---- plans ---------------------------------------------------------------------------------------------------


def _plan(where: Path) -> Target:
    """What ``sngd plan METHOD --json`` printed; the file is named by its reader, later errors name the setting."""
    texts: list[bytes] = []
    path = where / "plan.json"

    def prepare() -> None:
        where.mkdir(parents=True, exist_ok=True)
        texts.extend(json.dumps(plan).encode() for plan in samples.plans())
        path.write_bytes(texts[0])
        read_plan(path)

    def attempt(chance: Chance) -> dict[str, int]:
        path.write_bytes(_changed_json(chance, chance.choice(texts)))
        try:
            plan = read_plan(path)
        except Exception as error:
            return refused(error, path)
        try:
            replace(samples.CONFIG, **planned_settings(plan, 60)).resolved(60)
        except Exception as error:
            return refused(error)
        return {"read": 1}

    return Target(attempt, prepare)


def _stages(where: Path) -> Target:
    """A stage plan from ``--plan FILE.json``."""
    path = where / "stages.json"

    def prepare() -> None:
        where.mkdir(parents=True, exist_ok=True)

    def attempt(chance: Chance) -> dict[str, int]:
        path.write_bytes(_changed_json(chance, b"[[0.1, 10], [0.05, 20, 2.0], [0.01, 40]]"))
        try:
            spec = inline(str(path))
        except Exception as error:
            return refused(error, path)
        try:
            build_plan(spec, 0.1, 4.0, 9.0)
        except Exception as error:
            return refused(error)
        return {"read": 1}

    return Target(attempt, prepare)


# ---- data ----------------------------------------------------------------------------------------------------


def _idx(where: Path, packed: Callable[[bytes], bytes]) -> Target:
    """The training images of four whole files, read as one data set: a wrong count of images is the labels' as well."""
    files = {name: packed(content) for name, content in samples.idx_files().items()}
    path = where / "mnist" / "train-images-idx3-ubyte"

    def prepare() -> None:
        samples.put(files, path.parent)

    return _data(path, files[path.name], lambda _path: mnist(where), prepare)


def _data(path: Path, content: bytes, read: Callable[[Path], Any], before: Callable[[], None] = lambda: None) -> Target:
    def prepare() -> None:
        before()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        read(path)

    def attempt(chance: Chance) -> dict[str, int]:
        path.write_bytes(mutate.content(chance, content, ends=400))
        try:
            found = read(path)
        except Exception as error:
            return refused(error, path, path.name)
        assert isinstance(found, tuple)
        return {"read": 1}

    return Target(attempt, prepare)
