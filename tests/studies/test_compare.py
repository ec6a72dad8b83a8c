import json
import re
from dataclasses import replace

import pytest

from sngd.slug import slug
from sngd.studies.compare import compare, parse_arms
from sngd.studies.execution.execution import Execution, RayCluster
from sngd.training import RunConfig
from sngd.training.config import SETTINGS
from sngd.training.folder_lock import locked
from sngd.training.run_folder import RunFolder


@pytest.mark.parametrize(("ray", "met"), [(None, True), (RayCluster(gpus=0.5), False)])
def test_a_device_is_looked_for_on_the_machine_that_runs(monkeypatch, tmp_path, ray, met):
    arms = parse_arms("sngd,sgd", RunConfig("digits-mlp", "", device="cuda:77"))
    monkeypatch.setattr("sngd.studies.compare.run_all", lambda *_: pytest.fail("started"))
    with pytest.raises(ValueError if met else pytest.fail.Exception, match="is not there" if met else "started"):
        compare(arms, [0], tmp_path, Execution(ray=ray))


@pytest.fixture
def done(monkeypatch):
    """The tasks that ``compare`` was to do; none is done."""
    done = []

    def all_run(tasks, *_):
        done.extend(tasks)
        return [{"diverged": False, "train_loss": 1.0} for _ in tasks]

    monkeypatch.setattr("sngd.studies.compare.run_all", all_run)
    monkeypatch.setattr("sngd.studies.compare.publish", lambda _: None)
    return done


@pytest.mark.parametrize(
    ("seeds", "grid", "message"),
    [
        ([4, 4], None, r"seeds must be different, got \[4, 4\]"),
        ([0], [0.1, 0.2, 0.1], r"grid must hold different learning rates, got \[0.1, 0.2, 0.1\]"),
    ],
)
def test_no_run_is_asked_for_twice(done, tmp_path, seeds, grid, message):
    with pytest.raises(ValueError, match=message):
        compare(parse_arms("sgd", RunConfig("digits-mlp", "")), seeds, tmp_path, grid=grid)
    assert not done


def test_trials_of_learning_rates_measure_losses_alone_and_go_on_as_they_were_begun(done, tmp_path):
    arms = parse_arms("sgd,sngd", RunConfig("digits-mlp", "", epochs=4, track="noise"))

    def tuned(**how):
        done.clear()
        compare(arms, [0], tmp_path, Execution(**how), grid=[0.1, 0.2], tuning_epochs=2)
        return [(c.epochs, c.eval_every, c.curve_samples, c.grad_norm, c.track) for c, _ in done]

    runs = [(4, 1, None, None, "noise")] * 2
    assert tuned() == [(2, 1, 2000, False, None)] * 4 + runs
    config, folder = done[3]  # as earlier versions began it:
    folder.mkdir(parents=True)
    settings = replace(config, grad_norm=True, track="noise").to_json()
    del settings["curve_samples"]
    RunFolder(folder).begin(settings)
    assert tuned() == [(2, 1, 0, True, "noise")] * 4 + runs
    assert tuned(overwrite=True) == [(2, 1, 2000, False, None)] * 4 + runs


def test_runs_that_are_added_to_an_arm_measure_what_the_others_do(done, tmp_path):
    def measured(seeds, settings=None, **how):
        done.clear()
        arms = parse_arms("sngd,sgd", RunConfig("digits-mlp", "", epochs=4, **(settings or {})))
        compare(arms, seeds, tmp_path, Execution(**how))
        return [(c.method, c.curve_samples, c.grad_norm) for c, _ in done]

    new = [("sngd", None, None), ("sgd", None, None)]
    assert measured([0]) == new
    config, folder = done[0]  # as an earlier version began it:
    settings = replace(config, grad_norm=True).to_json()
    del settings["curve_samples"]
    folder.mkdir(parents=True)
    RunFolder(folder).begin(settings)
    assert measured([0, 1]) == [("sngd", 0, True), ("sgd", None, None)] * 2
    assert measured([0, 1], overwrite=True) == new * 2
    asked = {"curve_samples": 7, "grad_norm": False}
    assert measured([1], settings=asked) == [("sngd", 7, False), ("sgd", 7, False)]


PROBLEM = """
import shutil
from contextlib import suppress
from pathlib import Path
import torch
from sngd.problems import Problem

trash = Path(__file__).with_name("trash")

def loss(outputs, targets):
    lost = Path({lost!r})
    saved = [Path({study!r}, "runs", "sngd", f"seed-{{seed}}", "checkpoint.pt") for seed in (0, 1)]
    with suppress(OSError):  # the other process may be first
        if all(path.exists() for path in saved):
            lost.rename(trash)  # at once: a file that a run writes meanwhile would keep rmtree from ending
            shutil.rmtree(trash, ignore_errors=True)
    return torch.nn.functional.cross_entropy(outputs, targets)

def factory():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return Problem(lambda: torch.nn.Linear(3, 2), loss, (x, (x[:, 0] > 0).long()))
"""


def arms_of(tmp_path, methods, lost="/nowhere", **settings):
    """``lost`` is deleted by the loss as soon as both runs of sngd in tmp_path/study have been saved."""
    (tmp_path / "mine.py").write_text(PROBLEM.format(lost=str(lost), study=str(tmp_path / "study")))
    settings = {"lr": 0.1, "batch_size": 8, "epochs": 2, "threads": 1, **settings}
    return parse_arms(methods, RunConfig(f"{tmp_path}/mine.py:factory", "", **settings))


def test_an_arm_sets_what_a_run_has_as_what_it_is_declared():
    settings = {"label": "x", "lr": 0.25, "batch_size": 7, "epochs": 2.5, "weight_decay": 1e-4, "plan": "poly"}
    settings |= {
        "sampling": "independent",
        "output": "random",
        "eval_every": 0.5,
        "eval_samples": 3,
        "curve_samples": 2,
        "grad_norm": False,
    }
    settings |= {"track": "noise", "device": "cpu", "threads": 2, "precision": "bfloat16", "compile": True}
    assert settings.keys() == SETTINGS.keys() - {"problem", "method", "seed", "params"}
    words = [f"@{name}={int(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
    (arm,) = parse_arms("spider-sfo" + "".join(words) + "@period=3", RunConfig("digits-mlp", ""))
    assert {name: getattr(arm, name) for name in settings} == settings
    assert arm.params == {"period": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["runs/sngd/seed-0", "."], ids=["run", "study"])
def test_a_folder_that_is_lost_stops_all_runs_and_is_named(tmp_path, part):
    study = tmp_path / "study"
    arms = arms_of(tmp_path, "sngd,sgd", lost=study / part, epochs=1e5)
    with pytest.raises(FileNotFoundError, match="deleted") as error:
        compare(arms, [0, 1], study, Execution(jobs=2, replicas=1))
    assert str(error.value.filename).startswith(str(study / part))
    assert not (study / part).exists()
    if part != ".":
        assert (study / "runs/sngd/seed-1/checkpoint.pt").exists()  # stopped cleanly, and goes on


def test_one_comparison_at_a_time_is_in_a_folder(tmp_path):
    arms = arms_of(tmp_path, "sngd")
    study = tmp_path / "study"
    study.mkdir()
    message = f"^{re.escape(str(study))}: another process is working in this folder$"
    with locked(study, ()), pytest.raises(ValueError, match=message):
        compare(arms, [0], study)
    assert [path.name for path in study.iterdir()] == [".lock"]


@pytest.mark.slow
def test_labels_share_no_folder_and_stay_inside(tmp_path):
    arms = arms_of(tmp_path, "sngd@label=a/b,sngd@label=a-b,sngd@label=..,sngd@label=A-b,sngd@label=", epochs=1)
    study = compare(arms, [0], tmp_path / "study", Execution(jobs=1), grid=[0.1])
    assert study.labels == ["a/b", "a-b", "..", "A-b", "sngd"]
    for above in (tmp_path / "study" / "runs", tmp_path / "study" / "tuning"):
        names = [path.name for path in above.iterdir()]
        assert len({name.casefold() for name in names}) == 5
        assert "".join(names).isascii()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name[0] != "_") == ["study"]


@pytest.mark.slow
def test_runs_under_names_that_are_no_slugs_are_found_again(tmp_path):
    study = tmp_path / "study"
    arms = arms_of(tmp_path, "sngd@label=SNGD α=0.1,sngd", epochs=1)
    compare(arms, [0, 1], study, Execution(jobs=1))
    folder = study / "runs" / slug("SNGD α=0.1")
    folder.rename(study / "runs" / "SNGD-α=0.1")
    comparison = study / "compare.json"
    comparison.write_text(comparison.read_text().replace(folder.name, "SNGD-α=0.1"))
    before = {path: path.stat().st_mtime_ns for path in study.rglob("checkpoint.pt")}
    compare(arms, [0, 1], study, Execution(jobs=1))
    assert {path: path.stat().st_mtime_ns for path in study.rglob("checkpoint.pt")} == before


@pytest.mark.slow
@pytest.mark.parametrize("runs", [["runs/../seed-0"], ["/etc/a/seed-0"], [None], None])
def test_a_comparison_that_lists_strange_folders_is_not_followed(tmp_path, runs):
    study = tmp_path / "study"
    study.mkdir()
    (study / "compare.json").write_text(json.dumps({"methods": ["sngd"], "runs": runs}))
    assert [run.path for run in compare(arms_of(tmp_path, "sngd", epochs=1), [0], study, Execution(jobs=1)).runs] == [
        study / "runs" / "sngd" / "seed-0"
    ]


def test_learning_rates_that_look_alike_have_folders_of_their_own(monkeypatch, tmp_path):
    def run_all(tasks, *_):
        folders.append([task.folder.name for task in tasks])
        return [{"diverged": False, "train_loss": 1.0}] * len(tasks)

    folders = []
    monkeypatch.setattr("sngd.studies.compare.run_all", run_all)
    monkeypatch.setattr("sngd.studies.compare.publish", lambda _: None)
    compare(arms_of(tmp_path, "sngd"), [0], tmp_path / "study", grid=[1.0, 0.1, 0.10000001])
    assert folders == [["lr-1", "lr-0.1", "lr-0.10000001"], ["seed-0"]]


DATASET = """
import torch
from torch.utils.data import TensorDataset
from sngd.problems import Problem

def factory():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    return Problem(lambda: torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, data)
"""


@pytest.mark.slow
def test_runs_on_a_dataset_go_one_by_one(tmp_path):
    (tmp_path / "mine.py").write_text(DATASET)
    base = RunConfig(f"{tmp_path}/mine.py:factory", "", lr=0.1, batch_size=8, epochs=2, threads=1)
    told = []
    study = compare(parse_arms("sgd,sngd", base), [0, 1], tmp_path / "study", Execution(jobs=1, on_warning=told.append))
    assert len(study.runs) == 4
    assert all(run.finished and not run.diverged for run in study.runs)
    assert not any("vmap" in text for text in told)
