"""Every file that is read is read by its schema: what the project wrote passes, what is mutated is named."""

import json
import random
from functools import cache
from pathlib import Path

import pytest
from fake_runs import write_run, write_study

from sngd.paper.reproduce import FIGURES, stored
from sngd.studies.certify import Certificates
from sngd.studies.pack import pack
from sngd.studies.packed import read_packed
from sngd.studies.runs import all_runs, read_comparison, read_study, study_folders
from sngd.theory import Smooth, plan
from sngd.training.config import read_config
from sngd.training.metrics import read_rows
from sngd.training.plan_words import inline
from sngd.training.planned import read_plan
from sngd.training.schema import Malformed, read

RESULTS = Path(__file__).parents[2] / "results"
MEASURED = FIGURES.keys()
WRONG = ["x", "", -1, 0, 0.5, 1e300, 10**400, True, None, [], {}, [[]], {"x": 1}]


def test_all_committed_results_are_read():
    runs = all_runs(RESULTS)
    assert len(runs) > 400
    assert all(run.finished for run in runs)
    for folder in study_folders(RESULTS):
        assert read_study(folder).runs
    figures = [path.parent for path in RESULTS.rglob("measurements.json")]
    assert sorted(folder.name for folder in figures if folder.parent.name == "small") == sorted(MEASURED)
    for folder in figures:
        assert stored(folder.name, folder)
    for path in RESULTS.rglob("certificate.json"):
        assert read(path, Certificates)["certificates"]


def documents(folder):
    """A valid document of each kind, and its reader."""
    write_study(folder / "study")
    run = write_run(folder / "run", "spider-sfo", tracked=True, config={"params": {"period": 4}})
    yield run / "config.json", read_config
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])
    yield run / "metrics.jsonl", read_rows
    yield folder / "study" / "compare.json", read_comparison
    pack(write_study(folder / "packed", seeds=2, epochs=2))
    yield folder / "packed" / "study.json", lambda path: (read_study(path.parent), read_packed(path.parent))
    for name in ("one", "other"):
        write_study(folder / "together" / name, seeds=1, epochs=2)
    pack(folder / "together", together=True)
    yield folder / "together" / "study.json", read_together
    (folder / "plan.json").write_text(json.dumps(plan("s-sngd", Smooth(1.0), 0.3, 1.0, target=1.0).as_json()))
    yield folder / "plan.json", read_plan
    (folder / "stages.json").write_text("[[0.5, 3], [0.1, 4, 2.0]]")
    yield folder / "stages.json", lambda path: inline(str(path))
    for figure in sorted(MEASURED):
        path = folder / figure / "measurements.json"
        path.parent.mkdir()
        path.write_text(measured(figure))
        yield path, lambda path: stored(path.parent.name, path.parent)
    path = folder / "certificate.json"
    path.write_bytes((RESULTS / "mnist-tracked" / "certificate.json").read_bytes())
    yield path, lambda path: read(path, Certificates)


def read_together(path):
    """All that the file holds, if it lists both studies; ValueError otherwise."""
    read_packed(path.parent)
    try:
        return [read_study(path.parent / name) for name in ("one", "other")]
    except FileNotFoundError:  # the mutated file is sound, and its studies or runs have other places
        return None


@cache
def measured(figure):
    kept = RESULTS / "small" / figure / "measurements.json"
    return json.dumps(shortened(json.loads(kept.read_text("utf-8"))))


def shortened(value):
    """The first two entries of every list: mutations then meet every kind of place."""
    if isinstance(value, list):
        return [shortened(entry) for entry in value[:2]]
    return {key: shortened(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def places(value, place=()):
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*place, key))


def mutated(document, chance):
    """The document with a value replaced, a key renamed, or an entry lost, at a random place."""
    document = json.loads(json.dumps(document))
    *way, last = chance.choice(list(places(document))[1:])
    owner = document
    for key in way:
        owner = owner[key]
    change = chance.choice(["value", "value", "key", "loss"])
    if change == "value":
        owner[last] = chance.choice(WRONG)
    elif change == "key" and isinstance(owner, dict):
        owner[f"{last}x"] = owner.pop(last)
    else:
        del owner[last]
    return document


def complaint(path, reader):
    """What the reader says of the file, None if it takes it; any error but a ValueError comes through."""
    try:
        reader(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_a_mutated_file_is_read_or_named(tmp_path):
    for path, reader in documents(tmp_path):
        chance = random.Random(path.relative_to(tmp_path).as_posix())  # a new file does not change the others'
        document = json.loads(path.read_text("utf-8"))
        reader(path)
        refused = 0
        for _ in range(60):
            path.write_text(json.dumps(mutated(document, chance)) + "\n")
            if (message := complaint(path, reader)) is not None:
                assert str(path) in message
                assert "\n" not in message
                refused += 1
        assert refused > 20, path


BROKEN = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "deep inside": b'{"problem": ' + b'{"x": ' * 100_000,
    "no UTF-8": b'{"problem": "\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"problem": "p"}'.encode("utf-16"),
    "binary": bytes(range(256)),
    "NaN": b'{"problem": NaN}',
    "lone surrogate": b'{"problem": "\\ud800"}',
    "wrong kind": b"3",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_broken_as_a_whole_is_named(tmp_path, content):
    for path, reader in documents(tmp_path):
        path.write_bytes(content + b"\n")
        message = complaint(path, reader)
        assert str(path) in message
        assert "\n" not in message


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    for path, reader in documents(tmp_path):
        path.unlink()
        path.mkdir()
        assert f"{path}: is a folder, must be a file" in complaint(path, reader)


def test_deep_nesting_where_anything_may_be_is_named(tmp_path):
    (path := tmp_path / "file.json").write_bytes(b'{"x": ' * 100_000)
    with pytest.raises(Malformed, match=r"file\.json: not JSON \(nested too deep\)$"):
        read(path, dict)
