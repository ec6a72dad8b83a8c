"""Weights & Biases and MLflow get every row of metrics once, whatever happened to the run."""

import builtins
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from sngd.training import Interrupted, RunConfig, train
from sngd.training.observers import OBSERVERS
from sngd.training.run_folder import RunFolder
from sngd.training.tensorboard import scalars

CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=4, output="random", threads=1)


class Server:
    """What a tracker's server keeps: of each run its points, its settings and how it ended."""

    def __init__(self):
        self.runs = {}


def fake_wandb(server):
    """The part of wandb that is used; a run has the step after its last one, and takes no earlier point."""

    class Run:
        def __init__(self, identity, config):
            self.kept = server.runs.setdefault(identity, SimpleNamespace(points=[], config=config, ended=None))

        @property
        def step(self):
            return self.kept.points[-1][0] + 1 if self.kept.points else 0

        def log(self, numbers, step):
            assert step >= self.step - 1
            self.kept.points.append((step, numbers))

        def finish(self):
            self.kept.ended = "finished"

    module = ModuleType("wandb")
    module.init = lambda *, id, name, dir, config, resume: Run(id, config)  # noqa: ARG005
    return module


def fake_mlflow(server):
    """The part of mlflow that is used."""
    module, current = ModuleType("mlflow"), []

    def search_runs(filter_string, output_format):
        assert output_format == "list"
        wanted = re.fullmatch("tags.sngd = '(.*)'", filter_string)[1]
        return [SimpleNamespace(info=SimpleNamespace(run_id=name)) for name in server.runs if name == wanted]

    def start_run(run_id=None, run_name=None, tags=None):  # noqa: ARG001
        identity = run_id or tags["sngd"]
        server.runs.setdefault(identity, SimpleNamespace(points=[], config=None, ended=None))
        current[:] = [server.runs[identity]]
        return current[0]

    def history(run_id, key):
        return [SimpleNamespace(step=step) for step, numbers in server.runs[run_id].points if key in numbers]

    module.search_runs, module.start_run = search_runs, start_run
    module.MlflowClient = lambda: SimpleNamespace(get_metric_history=history)
    module.log_params = lambda params: setattr(current[0], "config", params)
    module.log_metrics = lambda numbers, step: current[0].points.append((step, numbers))
    module.end_run = lambda status: setattr(current[0], "ended", status)
    return module


@pytest.fixture(params=["wandb", "mlflow"])
def tracker(request, monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, request.param, {"wandb": fake_wandb, "mlflow": fake_mlflow}[request.param](server))
    return request.param, server


def expected(folder):
    return [(row["oracle_calls"], scalars(row)) for row in RunFolder(folder).rows()]


def test_every_row_is_there_with_oracle_calls_as_step(tmp_path, tiny, tracker):
    name, server = tracker
    train(CONFIG, tmp_path, problem=tiny, log=[name])
    (run,) = server.runs.values()
    assert run.points == expected(tmp_path)
    assert str(run.config["lr"]) == "0.05"
    assert str(run.ended).lower() == "finished"


def test_a_resumed_run_is_the_same_one_and_has_no_point_twice(tmp_path, tiny, tracker):
    name, server = tracker
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path, problem=tiny, log=[name], should_stop=lambda: next(calls) == 20)
    train(CONFIG, tmp_path, problem=tiny, resume=True, log=[name])
    train(CONFIG, tmp_path, resume=True, log=[name])  # has ended
    (run,) = server.runs.values()
    steps = [step for step, _ in run.points]
    assert steps == [step for step, _ in expected(tmp_path)]
    assert list(dict(run.points).items()) == list(dict(expected(tmp_path)).items())


def test_one_that_overwrites_it_is_another_run(tmp_path, tiny, tracker):
    name, server = tracker
    for _ in range(2):
        train(CONFIG, tmp_path, problem=tiny, log=[name], overwrite=True)
    assert len(server.runs) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_one_line(tmp_path, tiny, monkeypatch, name):
    real = builtins.__import__

    def hidden(module, *rest):
        if module == name:
            raise ImportError(name)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ValueError, match=f"log: {name} needs the package {name}: pip install {name}"):
        train(CONFIG, tmp_path / "run", problem=tiny, log=[name])


def test_an_unknown_one_is_named(tmp_path, tiny):
    message = "log: unknown 'wandbb', did you mean 'wandb'? must be some of tensorboard, wandb, mlflow"
    with pytest.raises(ValueError, match=re.escape(message)):
        train(CONFIG, tmp_path, problem=tiny, log=["wandbb"])
    assert list(OBSERVERS) == ["tensorboard", "wandb", "mlflow"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of packages that this project does not choose the versions of
def test_the_real_mlflow(tmp_path, tiny, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "run", problem=tiny, log=["mlflow"], should_stop=lambda: next(calls) == 20)
    train(CONFIG, tmp_path / "run", problem=tiny, resume=True, log=["mlflow"])
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    rows = [row for row in RunFolder(tmp_path / "run").rows() if row["iterate"] == "last"]
    assert [(p.step, p.value) for p in points] == [(row["oracle_calls"], row["train_loss"]) for row in rows]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_real_wandb(tmp_path, tiny, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, setting in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, setting)
    train(CONFIG, tmp_path / "run", problem=tiny, log=["wandb"])
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 1000
    assert wandb.run is None  # it has been ended
