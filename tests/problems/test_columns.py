"""Problems whose samples come from a Dataset or a DataLoader: the runs are those of the same samples in tensors."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from sngd.problems import Problem, load_problem
from sngd.problems.columns import materialized
from sngd.training import METHODS, Interrupted, RunConfig, train
from sngd.training.run_folder import RunFolder


def samples(n, seed):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long()


class Counting(Dataset):
    """Pairs one by one; counts what was read, and the most samples that were asked for at once."""

    def __init__(self, x, y):
        self.x, self.y, self.read, self.most = x, y, 0, 0

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        self.most = max(self.most, len(indices))
        self.read += len(indices)
        return [(self.x[i], int(self.y[i])) for i in indices]

    def __getitem__(self, index):
        return self.__getitems__([index])[0]


def build_model():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def in_tensors():
    return Problem(build_model, nn.functional.cross_entropy, samples(60, 0), samples(20, 1), "tiny")


def in_datasets():
    return replace(in_tensors(), train=Counting(*samples(60, 0)), test=TensorDataset(*samples(20, 1)))


def in_loaders():
    """What a user's own loop has: shuffled, with a batch size of its own."""
    train_loader = DataLoader(Counting(*samples(60, 0)), batch_size=13, shuffle=True, drop_last=True)
    return replace(in_tensors(), train=train_loader, test=DataLoader(TensorDataset(*samples(20, 1)), batch_size=3))


def outcome(folder):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in RunFolder(folder).rows()]
    return rows, RunFolder(folder).load_checkpoint()["model"]


def assert_same(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(one[1][key], other[1][key]) for key in other[1])


@pytest.mark.parametrize("problem", [in_datasets, in_loaders])
@pytest.mark.parametrize("method", ["sngd", "spider-sfo", "svrg", "gd", "natasha2"])
def test_runs_are_those_of_tensors_bit_for_bit(tmp_path, problem, method):
    assert method in METHODS
    config = RunConfig("tiny", method, batch_size=7, epochs=5, threads=1, params={})
    for name, make in (("tensors", in_tensors), ("other", problem)):
        train(config, tmp_path / name, problem=make)
    assert_same(outcome(tmp_path / "other"), outcome(tmp_path / "tensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": "independent", "output": "random"},
        {"eval_samples": 17},
        {"track": "smoothness,noise,curvature", "epochs": 2},
    ],
    ids=str,
)
def test_so_is_whatever_a_run_measures(tmp_path, changes):
    config = replace(RunConfig("tiny", "sngd", batch_size=7, epochs=4, threads=1), **changes)
    for name, make in (("tensors", in_tensors), ("dataset", in_datasets)):
        train(config, tmp_path / name, problem=make)
    assert_same(outcome(tmp_path / "dataset"), outcome(tmp_path / "tensors"))


def test_a_run_on_a_dataset_resumes_bit_for_bit(tmp_path):
    config = RunConfig("tiny", "s-sngd", batch_size=7, epochs=4, output="random", threads=1)
    train(config, tmp_path / "whole", problem=in_datasets)
    steps = iter(range(100))
    with pytest.raises(Interrupted):  # in the middle of a pass
        train(config, tmp_path / "cut", problem=in_loaders, should_stop=lambda: next(steps) == 12)
    train(config, tmp_path / "cut", problem=in_datasets, resume=True)
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize(("method", "chunk"), [("sngd", 7), ("gd", 16), ("svrg", 16)])
def test_never_more_is_read_at_once_than_a_batch_or_a_chunk(tmp_path, monkeypatch, method, chunk):
    monkeypatch.setattr("sngd.training.evaluate.CHUNK", 1)
    data = Counting(*samples(400, 0))
    problem = replace(in_tensors(), train=data)
    params = {} if method == "sngd" else {"chunk_size": float(chunk)}
    config = RunConfig("tiny", method, batch_size=7, epochs=4, threads=1, params=params)
    row = train(config, tmp_path, problem=lambda: problem)
    assert data.most == 64  # the least chunk of an evaluation
    assert row["oracle_calls"] <= 1600
    before = data.read
    data.most = 0
    monkeypatch.setattr("sngd.training.run_state.evaluate", lambda *_, **__: {**row})
    train(config, tmp_path, problem=lambda: problem, overwrite=True)
    assert data.most == chunk
    read = data.read - before
    assert read == row["oracle_calls"] if method != "svrg" else read < row["oracle_calls"]  # a difference reads once


def test_what_a_datasets_augmentation_can_be():
    problem = replace(in_datasets(), augment=lambda x, generator: x + torch.randn(x.shape, generator=generator))
    x, _ = problem.augmented(materialized((problem.train[0][:5], problem.train[1][:5])), torch.Generator())
    assert x.shape == (5, 6)
    with pytest.raises(ValueError, match="augment varies mini-batches of a Dataset, and all its samples were asked"):
        problem.augmented(problem.train, torch.Generator())


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(3), index


WEIGHTED = DataLoader(TensorDataset(*samples(60, 0)), sampler=WeightedRandomSampler([0.1] * 60, 60))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Stream(), ValueError, "train is an IterableDataset, whose samples have no index: F(w) = (1/n) Σ f(w; a_i)"),
        (DataLoader(Stream()), ValueError, "train is an IterableDataset, whose samples have no index"),
        (Endless(), ValueError, "train is a Dataset without __len__, which says how many samples there are"),
        (WEIGHTED, ValueError, "train is a DataLoader with a WeightedRandomSampler, which a run would not use"),
        (TensorDataset(torch.zeros(5, 2)), TypeError, "must collate to two tensors (inputs, targets), got Tensor"),
        (DataLoader([("a", 1)] * 3), TypeError, "must collate to two tensors (inputs, targets), got tuple, Tensor"),
        (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), ValueError, "train has no samples, must have at least 1"),
    ],
    ids=["stream", "loader-of-a-stream", "no-length", "weighted", "no-pairs", "strings", "empty"],
)
def test_what_a_problem_cannot_be_made_of(data, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Problem(build_model, nn.functional.cross_entropy, data)


def test_a_users_file_may_give_one(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\nfrom sngd.problems import Problem\n"
        "def factory():\n    x = torch.randn(50, 3)\n"
        "    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=5, shuffle=True)\n"
        "    return Problem(lambda: torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, loader)\n"
    )
    problem = load_problem(f"{tmp_path}/mine.py:factory")
    assert problem.n == 50
    row = train(RunConfig(f"{tmp_path}/mine.py:factory", "sngd", batch_size=5, threads=1), tmp_path / "run")
    assert row["train_accuracy"] > 0.9
