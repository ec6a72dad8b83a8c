"""A packed study is read as its run folders were, whatever interrupts the packing."""

import gzip
import json
import lzma
import os
import shutil
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from fake_runs import write_comparison, write_run, write_study

from sngd.studies import pack as packing
from sngd.studies.certify import certify
from sngd.studies.compare import compare
from sngd.studies.execution.execution import Execution
from sngd.studies.pack import pack, unpack
from sngd.studies.packed import ROWS, STUDY, holds_packed, is_packed, read_packed
from sngd.studies.publish import publish
from sngd.studies.runs import Run, all_runs, read_run, read_study, seconds_spent, study_folders
from sngd.training import RunConfig
from sngd.training.folder_lock import locked


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def contents(folder: Path) -> tuple:
    """All that readers get of a study, but the places of its runs."""
    study = read_study(folder)
    asked = {name: value for name, value in (study.comparison or {}).items() if name != "runs"}
    arms = {label: [whole(run) for run in arm] for label, arm in study.arms.items()}
    return study.problem, arms, asked, [whole(run) for run in all_runs(folder)], seconds_spent(folder)


def whole(run: Run) -> tuple:
    return run.config, run.environment, run.rows


@pytest.fixture
def study(tmp_path):
    return as_compare_leaves_it(tmp_path / "study")


def as_compare_leaves_it(folder: Path, epochs: int = 3) -> Path:
    """Tuned, and listing its runs; files as the engine writes them."""
    write_study(folder, seeds=2, epochs=epochs)
    comparison = json.loads((folder / "compare.json").read_text())
    listed = [f"runs/{label}/seed-{seed}" for label in comparison["methods"] for seed in range(2)]
    write_comparison(folder, **{**comparison, "runs": listed})
    settings = [field.name for field in fields(RunConfig)]
    for path in [*folder.rglob("config.json"), *folder.rglob("environment.json"), folder / "compare.json"]:
        content = json.loads(path.read_text())
        ordered = {name: content[name] for name in settings if name in content} | content
        path.write_text(json.dumps(ordered if path.name == "config.json" else content, indent=2) + "\n")
    return folder


def test_a_packed_study_is_read_as_its_folders(study):
    before, paths = contents(study), [run.path for run in all_runs(study)]
    assert pack(study) == [study]
    assert sorted(tree(study)) == [ROWS, STUDY]
    assert contents(study) == before
    assert [run.path for run in all_runs(study)] == paths
    run = study / "runs" / "sngd" / "seed-1"
    assert read_run(run).seed == 1
    assert [found.seed for found in read_study(study / "runs" / "sngd").runs] == [0, 1]
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        read_run(study / "runs" / "sngd" / "seed-2")


def test_unpacking_gives_the_same_bytes(study):
    before = tree(study)
    pack(study)
    unpack(study)
    assert tree(study) == before


@pytest.mark.slow
def test_what_a_run_wrote_comes_back_byte_for_byte(tmp_path):
    arms = [RunConfig("digits-mlp", m, epochs=1, threads=1).resolved() for m in ("sgd", "sngd")]
    compare(arms, [0, 1], tmp_path, Execution(jobs=1), grid=[0.1])
    before = tree(tmp_path)
    pack(tmp_path)
    assert {name for name in tree(tmp_path) if "checkpoint.pt" not in name} == {
        ROWS, STUDY, "table.md", "report.html", "figures/curves.png"
    }  # fmt: skip
    unpack(tmp_path)
    assert tree(tmp_path) == {name: content for name, content in before.items() if name != "figures/curves.svg"}


def test_the_same_runs_make_the_same_files(study, tmp_path):
    shutil.copytree(study, tmp_path / "other")
    pack(study)
    packed = tree(study)
    assert pack(study) == [study]
    assert tree(study) == packed
    pack(tmp_path / "other")
    assert tree(tmp_path / "other") == packed


@pytest.mark.slow
def test_report_table_and_certificates_are_those_of_the_folders(study):
    publish(study)
    certify(study)
    publish(study)
    before = tree(study)
    pack(study)
    certify(study)
    publish(study)
    after = tree(study)
    shown = ("table.md", "report.html", "figures/curves.png", "figures/curves.svg", "certificate.json")
    assert {name: after[name] for name in shown} == {name: before[name] for name in shown}


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """``kill(n)``: the n-th change of the disk from now on, and every later one, does not happen; None: all do."""
    left: list[int | None] = [None]

    def mortal(function):
        def change(*args, **kwargs):
            if left[0] is not None:
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed
            return function(*args, **kwargs)

        return change

    for name in ("replace", "unlink", "rmdir", "mkdir", "rename"):
        monkeypatch.setattr(os, name, mortal(getattr(os, name)))

    def arm(n):
        left[0] = n

    return arm


def small_study(folder: Path, arm: str, epochs: int = 2) -> None:
    for seed in range(2):
        write_run(folder / "runs" / arm / f"seed-{seed}", "sngd", seed, epochs=epochs)
    write_run(folder / "tuning" / arm / "lr-0.1", "sngd", 7, epochs=epochs)
    listed = [f"runs/{arm}/seed-{seed}" for seed in range(2)]
    write_comparison(folder, methods=["sngd"], seeds=[0, 1], runs=listed)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["plain", "not ASCII"])
@pytest.mark.parametrize("way", [pack, unpack])
def test_a_kill_at_any_moment_loses_nothing(tmp_path, kill, way, names):
    origin = tmp_path / "origin"
    small_study(origin, "sngd" if names == "plain" else "α=0.1")
    assert_no_kill_loses(origin, tmp_path / "study", kill, way, pack)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["folders", "packed by themselves", "one is packed", "names not ASCII"])
@pytest.mark.parametrize("way", ["pack", "unpack"])
def test_a_kill_at_any_moment_loses_nothing_of_several_studies(tmp_path, kill, way, before):
    origin, places = tmp_path / "origin", ["a/b", "c" if before != "names not ASCII" else "γ"]
    for epochs, place in enumerate(places, 2):
        small_study(origin / place, "sngd" if before != "names not ASCII" else "α=0.1", epochs)
        (origin / place / "table.md").write_text("a table")
    if before == "packed by themselves":
        pack(origin)
    if before == "one is packed":
        pack(origin / "a", together=True)
    together = partial(pack, together=True)
    assert_no_kill_loses(origin, tmp_path / "study", kill, unpack if way == "unpack" else together, together)


def assert_no_kill_loses(origin, study, kill, way, pack):
    shutil.copytree(origin, study)
    pack(study)
    wanted, packed = list(map(contents, [study, *study_folders(study)])), tree(study)
    if way is unpack:
        origin = origin.with_name("packed")
        shutil.copytree(study, origin)
    moments = 0
    while True:
        shutil.rmtree(study)
        shutil.copytree(origin, study)
        kill(moments + 1)
        try:
            way(study)
            break
        except Killed:
            moments += 1
        finally:
            kill(None)
        assert list(map(contents, [study, *study_folders(study)])) == wanted
        pack(study)
        assert tree(study) == packed
    assert moments > 8


def test_unfinished_and_absent_runs_are_named_and_kept(study, tmp_path):
    good = write_study(tmp_path / "good", seeds=2, epochs=3)
    shutil.rmtree(study / "runs" / "sgd" / "seed-0")
    shutil.rmtree(study / "runs" / "sngd" / "seed-1")
    write_run(study / "runs" / "sngd" / "seed-1", "sngd", 1, epochs=3, stop=1)
    before = tree(study)
    with pytest.raises(ValueError, match=r"study: 2 runs have not finished \(runs/sngd/seed-1, runs/sgd/seed-0\)"):
        pack(tmp_path)
    assert tree(study) == before
    assert is_packed(good)


def test_nothing_to_pack_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pack(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no runs in it"):
        pack(tmp_path)
    with pytest.raises(FileNotFoundError, match="no packed study in it"):
        unpack(tmp_path)


def test_a_folder_of_runs_without_a_comparison_is_one_study(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "α" / str(seed), "sngd", seed, epochs=2)
    before = [run.rows for run in read_study(tmp_path).runs]
    pack(tmp_path)
    assert [run.rows for run in read_study(tmp_path).runs] == before
    assert all(run.place.isascii() for run in read_packed(tmp_path).runs)


def test_one_run_is_a_study_too(tmp_path):
    write_run(tmp_path / "run", "sngd", epochs=2)
    before = read_run(tmp_path / "run")
    pack(tmp_path / "run")
    assert sorted(tree(tmp_path / "run")) == [ROWS, STUDY]
    assert read_run(tmp_path / "run") == before


def test_studies_below_are_packed_each_for_itself(tmp_path):
    one, other = (write_study(tmp_path / name, seeds=1, epochs=2) for name in ("one", "other"))
    assert pack(tmp_path) == [one, other] == study_folders(tmp_path)
    assert not holds_packed(tmp_path)
    assert not is_packed(tmp_path)
    assert is_packed(one)


def test_weights_and_other_files_stay_unless_asked(study):
    run = study / "runs" / "sngd" / "seed-0"
    (run / "checkpoint.pt").write_bytes(b"weights")
    (run / "notes.txt").write_bytes(b"mine")
    pack(study)
    assert sorted(tree(run)) == ["checkpoint.pt", "notes.txt"]
    pack(study, drop_weights=True)
    assert sorted(tree(run)) == ["notes.txt"]


def test_runs_that_were_added_are_taken_in(study):
    pack(study)
    write_run(study / "extra", "sngd", 5, epochs=3)
    assert len(all_runs(study)) == 10
    pack(study)
    assert read_packed(study).runs[0].place == "extra"
    assert len(all_runs(study)) == 10
    assert sorted(tree(study)) == [ROWS, STUDY]


def test_another_process_in_the_study_is_met(study):
    before = tree(study)
    with locked(study, ()), pytest.raises(ValueError, match="another process is working"):
        pack(study)
    assert tree(study) == before


def test_folders_stay_if_what_was_written_reads_back_otherwise(study, monkeypatch):
    before = tree(study)
    monkeypatch.setattr(packing, "_equal", lambda *_: False)
    with pytest.raises(RuntimeError, match="reads back as something else"):
        pack(study)
    (study / ROWS).unlink()
    assert tree(study) == before


@pytest.mark.slow
def test_compare_goes_on_from_a_packed_study_and_packs_it_again(tmp_path):
    arms = [RunConfig("digits-mlp", "sngd", epochs=1, threads=1).resolved()]
    first = compare(arms, [0], tmp_path, Execution(jobs=1))
    pack(tmp_path, drop_weights=True)
    stored = {run.place: run.rows for run in read_packed(tmp_path).runs}
    study = compare(arms, [0, 1], tmp_path, Execution(jobs=1))
    assert [run.seed for run in study.runs] == [0, 1]
    assert is_packed(tmp_path)
    again = {run.place: run.rows for run in read_packed(tmp_path).runs}
    assert again["runs/sngd/seed-0"] == stored["runs/sngd/seed-0"] == first.runs[0].rows  # seconds too: not repeated
    assert len(again) == 2


@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_files_of_earlier_formats_are_read_and_kept(study, compared, number):
    if not compared:
        (study / "compare.json").unlink()
    before = tree(study)
    pack(study)
    wanted = contents(study)
    content = json.loads((study / STUDY).read_text())
    arms = content.pop("arms")
    for run in content["runs"]:
        run["settings"] = arms[run.pop("arm")] | run["settings"]
    if number == 1:
        content["comparison"] = content.pop("comparisons")["."]
    (study / STUDY).write_text(json.dumps(content | {"format": number}))
    (study / "rows.jsonl.gz").write_bytes(gzip.compress(lzma.decompress((study / ROWS).read_bytes())))
    (study / ROWS).unlink()
    assert contents(study) == wanted
    packed = tree(study)
    pack(study)
    assert tree(study) == packed
    unpack(study)
    assert tree(study) == before


# ---- several studies in one pair of files --------------------------------------------------------------------


@pytest.fixture
def figure(tmp_path):
    """Two studies at different depths, as ``sngd reproduce`` leaves them, below a folder that has files of its own."""
    folder = tmp_path / "figure"
    for epochs, place in enumerate(PLACES, 3):
        as_compare_leaves_it(folder / place, epochs)
        (folder / place / "table.md").write_text("a table")
        (folder / place / "figures").mkdir()
        (folder / place / "figures" / "curves.png").write_text("curves")
    (folder / "measurements.json").write_text("{}")
    return folder


PLACES = ["deep/width-64", "width-32"]
DERIVED = ("table.md", "figures/curves.png")


def test_studies_packed_together_are_read_as_their_folders(figure):
    folders = [figure / place for place in PLACES]
    before = [contents(folder) for folder in [figure, figure / "deep", *folders]]
    paths = [run.path for run in all_runs(figure)]
    assert pack(figure, together=True) == folders
    assert sorted(tree(figure)) == ["measurements.json", ROWS, STUDY]
    assert [path for path in figure.iterdir() if path.is_dir()] == []
    assert [contents(folder) for folder in [figure, figure / "deep", *folders]] == before
    assert [run.path for run in all_runs(figure)] == paths
    assert study_folders(figure) == folders
    assert study_folders(figure / "deep") == folders[:1]
    assert [is_packed(folder) for folder in [*folders, figure, figure / "width-16"]] == [True, True, False, False]
    assert read_run(figure / "width-32" / "runs" / "sngd" / "seed-1").seed == 1
    assert len(read_study(figure / "width-32" / "runs" / "sngd").runs) == 2
    for absent in ("width-16", "width"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            read_study(figure / absent)


def test_relative_paths_find_the_files_above(figure, monkeypatch):
    pack(figure, together=True)
    monkeypatch.chdir(figure)
    assert read_study("width-32").runs[0].path == Path("width-32/runs/sgd/seed-0")
    (figure / "width-32").mkdir()
    monkeypatch.chdir(figure / "width-32")
    assert len(read_study(".").runs) == 6
    assert read_study("../deep/width-64").runs[0].path == Path("../deep/width-64/runs/sgd/seed-0")


def test_unpacking_studies_that_were_packed_together_gives_the_same_bytes(figure):
    before = {name: content for name, content in tree(figure).items() if not name.endswith(DERIVED)}
    pack(figure, together=True)
    assert unpack(figure) == [figure / place for place in PLACES]
    assert tree(figure) == before


def test_packing_together_takes_packed_studies_in(figure, tmp_path):
    shutil.copytree(figure, tmp_path / "other")
    pack(figure, together=True)
    pack(tmp_path / "other" / "deep", together=True)
    pack(tmp_path / "other" / "width-32")
    pack(tmp_path / "other", together=True)
    assert tree(tmp_path / "other") == tree(figure)
    assert not [path for path in (tmp_path / "other").iterdir() if path.is_dir()]


def test_a_study_with_studies_below_is_packed_with_them(study):
    below = as_compare_leaves_it(study / "below")
    write_run(study / "one run", "sngd", epochs=2)
    pack(study / "one run")
    before = contents(study), contents(below), read_run(study / "one run")
    assert pack(study, together=True) == [study, below, study / "one run"]
    assert sorted(tree(study)) == [ROWS, STUDY]
    assert list(read_packed(study).comparisons) == [".", "below", "one run"]
    assert (contents(study), contents(below), read_run(study / "one run")) == before


def test_studies_that_are_packed_together_stay_so(figure):
    pack(figure, together=True)
    write_run(figure / "width-32" / "extra", "sngd", 5, epochs=3)
    assert pack(figure) == [figure / place for place in PLACES]
    assert sorted(tree(figure)) == ["measurements.json", ROWS, STUDY]
    assert len(all_runs(figure / "width-32")) == 10
    new = write_study(figure / "new", seeds=1, epochs=2)
    pack(figure)
    assert holds_packed(new)
    pack(figure, together=True)
    assert sorted(tree(figure)) == ["measurements.json", ROWS, STUDY]
    assert is_packed(new)


def test_a_part_of_what_is_packed_together_is_not_changed_by_itself(figure):
    pack(figure, together=True)
    before = tree(figure)
    arms = [RunConfig("digits-mlp", "sngd", epochs=1, threads=1).resolved()]
    for place, change in [
        ("width-32", pack),
        ("deep", partial(pack, together=True)),
        ("deep", unpack),
        ("width-32", lambda folder: compare(arms, [0], folder, Execution(jobs=1))),
    ]:
        with pytest.raises(ValueError, match=r"packed together with others in .*figure; sngd pack .*figure --unpack"):
            change(figure / place)
        assert tree(figure) == before


def test_one_study_that_has_not_finished_keeps_all_as_they_are(figure):
    shutil.rmtree(figure / "width-32" / "runs" / "sngd" / "seed-1")
    before = tree(figure)
    with pytest.raises(ValueError, match=r"width-32: 1 runs have not finished \(runs/sngd/seed-1\)"):
        pack(figure, together=True)
    assert tree(figure) == before


@pytest.mark.parametrize("place", [".", "deep", *PLACES])
def test_another_process_in_any_of_the_folders_is_met(figure, place):
    before = tree(figure)
    with locked(figure / place, ()), pytest.raises(ValueError, match="another process is working"):
        pack(figure, together=True)
    assert tree(figure) == before


def test_weights_of_studies_below_stay_unless_asked(figure):
    run = figure / "width-32" / "runs" / "sngd" / "seed-0"
    (run / "checkpoint.pt").write_bytes(b"weights")
    pack(figure, together=True)
    assert list(tree(figure / "width-32")) == ["runs/sngd/seed-0/checkpoint.pt"]
    assert len(read_study(figure / "width-32").runs) == 6
    pack(figure, together=True, drop_weights=True)
    assert sorted(tree(figure)) == ["measurements.json", ROWS, STUDY]
    assert not (figure / "width-32").exists()


@pytest.mark.slow
def test_report_and_certificates_are_written_where_a_folder_was(figure):
    study = figure / "width-32"
    certify(study)
    publish(study)
    shown = {name: tree(study)[name] for name in ("table.md", "report.html", "figures/curves.png", "certificate.json")}
    (study / "certificate.json").unlink()
    pack(figure, together=True)
    assert not study.exists()
    certify(study)
    publish(study)
    assert {name: content for name, content in tree(study).items() if name in shown} == shown
    pack(figure, together=True)
    assert sorted(tree(study)) == ["certificate.json"]


@pytest.mark.slow
def test_compare_goes_on_in_a_folder_with_several_packed_studies(tmp_path):
    arms = [RunConfig("digits-mlp", "sngd", epochs=1, threads=1).resolved()]
    first = compare(arms, [0], tmp_path, Execution(jobs=1))
    other = write_study(tmp_path / "other", seeds=1, epochs=2)
    pack(tmp_path, together=True)
    study = compare(arms, [0, 1], tmp_path, Execution(jobs=1))
    assert [run.rows for run in study.runs][:1] == [run.rows for run in first.runs]  # seconds too: not repeated
    assert len(study.runs) == 2
    assert list(read_packed(tmp_path).comparisons) == [".", "other"]
    assert is_packed(other)


# ---- broken files --------------------------------------------------------------------------------------------


def changed(study, change):
    content = json.loads((study / STUDY).read_text())
    change(content)
    (study / STUDY).write_text(json.dumps(content))


BROKEN = {
    "later": (lambda c: c.update(format=4), "format must be 1 to 3, is 4"),
    "arm": (lambda c: c["runs"][1].update(arm=9), r"no arm 9 - at `\$\.runs\[1\]"),
    "no arms": (lambda c: c.pop("arms"), r"no arm 0 - at `\$\.runs\[0\]"),
    "setting of an arm": (lambda c: c["arms"][0].update(method=3), r"- at `\$\.runs\[0\]\.settings\.method`"),
    "no studies": (lambda c: c.update(comparisons={}), r"the run 'runs/s-sngd/seed-0' is in none of the studies"),
    "study outside": (lambda c: c["comparisons"].update({"../x": None}), r"must be a path below .*`\$\.comparisons`"),
    "outside": (lambda c: c["runs"][0].update(place="../x"), r"place must be a path below .*runs\[0\]\.place"),
    "absolute": (lambda c: c["runs"][0].update(place="/x"), "place must be a path below"),
    "twice": (lambda c: c["runs"][0].update(place=c["runs"][1]["place"]), "two runs have the same place"),
    "environment": (lambda c: c["runs"][1].update(environment=7), r"no environment 7 - at `\$\.runs\[1\]"),
    "setting": (lambda c: c["runs"][0]["settings"].update(lr=-1), r"- at `\$\.runs\[0\]\.settings\.lr`"),
    "unknown": (lambda c: c["settings"].update(momentun=1), "unknown field `momentun`"),
    "comparison": (lambda c: c["comparisons"]["."].update(epochs="x"), r"- at `\$\.comparisons\['\.'\]\.epochs`"),
    "both formats": (lambda c: c.update(comparison=None), "unknown field `comparison`"),
    "fewer": (lambda c: c["runs"].pop(), r"rows\.jsonl\.xz, line \d+: .*study\.json has no run 8"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_study_file_is_named(study, change, message):
    pack(study)
    changed(study, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_study(study)
    assert str(study) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain", r"rows\.jsonl\.xz: not xz"),
        (lzma.compress(b'{"run": 0}\n'), r"rows\.jsonl\.xz, line 1: .*missing required field"),
        (lzma.compress(b"{}\n" * 9)[:-9], r"rows\.jsonl\.xz: not xz"),
    ],
    ids=["no xz", "no row", "cut short"],
)
def test_broken_rows_are_named(study, content, message):
    pack(study)
    (study / ROWS).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_study(study)
