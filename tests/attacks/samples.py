"""Valid files to begin with: runs and studies made small, once, and data sets of a few images."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import struct
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks import problem
from sngd import SNGD
from sngd.problems import Problem
from sngd.theory import Smooth, plan
from sngd.training import Interrupted, RunConfig, train

RESULTS = Path(__file__).parents[2] / "results" / "small"
CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=4, eval_every=1, threads=1)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one, so that a disk does not set the pace."""
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="sngd-attack-", dir=shared if shared.is_dir() else None)


@cache
def tiny() -> Problem:
    """The problem of ``problem.py``, made once: a run changes nothing of it."""
    return problem.tiny()


def config_of(method: str, **changes: Any) -> RunConfig:
    """A small run of any method, with weight decay where it has any."""
    decay = 0.0 if method == "natasha2" else 0.01
    return replace(CONFIG, method=method, weight_decay=decay, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def put(files: dict[str, bytes], folder: Path) -> None:
    """Make ``folder`` hold these files and nothing else."""
    remove(folder)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def run_files(folder: Path, config: RunConfig, stop_after: int | None = None) -> dict[str, bytes]:
    """The files of a run, stopped after so many steps or not."""
    steps = count(1)
    stop = (lambda: next(steps) >= stop_after) if stop_after is not None else (lambda: False)
    with suppress(Interrupted):
        train(config, folder, problem=tiny, overwrite=True, should_stop=stop)
    return files_of(folder)


def study_files(folder: Path) -> dict[str, dict[str, bytes]]:
    """A tuned comparison: its compare.json under "", and its runs' files by their folders."""
    runs = [f"runs/{label}/seed-{seed}" for label in ("sgd", "sngd") for seed in (0, 1)]
    files = {}
    for run in runs:
        label, seed = run.split("/")[1], int(run[-1])
        config = config_of(label, label=label, seed=seed, problem="tiny")
        files[run] = run_files(folder / run, config)
        files[run].pop("checkpoint.pt")
    comparison = {
        "command": "sngd compare tiny --methods sgd,sngd --seeds 2 --grid 0.05,0.1",
        "problem": "tiny",
        "methods": ["sgd", "sngd"],
        "seeds": [0, 1],
        "epochs": 4,
        "runs": runs,
        "tuning": {
            "grid": [0.05, 0.1],
            "seed": 1_000_000,
            "outcomes": [
                {"label": label, "lr": lr, "train_loss": 0.6} for label in ("sgd", "sngd") for lr in (0.05, 0.1)
            ],
            "chosen": {"sgd": 0.05, "sngd": 0.05},
        },
    }
    files[""] = {"compare.json": json.dumps(comparison).encode()}
    return files


def plans() -> list[dict[str, Any]]:
    """What ``sngd plan METHOD --json`` prints."""
    names = ("sngd", "sgd", "spider-sfo", "s-sngd:harmonic", "s-sngd:geometric", "nsgd-momentum")
    made = [plan(name, Smooth(1.0), sigma=0.1, gap=0.41, target=0.5).as_json() for name in names]
    return [json.loads(json.dumps(one)) for one in made]


def idx(shape: tuple[int, ...]) -> bytes:
    """An IDX file of unsigned bytes."""
    head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + bytes(k % 10 for k in range(math.prod(shape)))


def idx_files() -> dict[str, bytes]:
    """MNIST of four images to learn from, and of two."""
    parts = {"train": 4, "t10k": 2}
    images = {f"{part}-images-idx3-ubyte": idx((count, 28, 28)) for part, count in parts.items()}
    return images | {f"{part}-labels-idx1-ubyte": idx((count,)) for part, count in parts.items()}


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def cifar_binary(images: int = 2) -> bytes:
    return b"".join(bytes([k]) + bytes(p % 256 for p in range(3072)) for k in range(images))


def cifar_pickle(images: int = 2, extra: bytes = b"") -> bytes:
    """A batch in the Python layout as Python 2 wrote it, protocol 2; ``extra``: opcodes of one more key and value."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    pixels = bytes(p % 256 for p in range(images * 3072))
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    array += b"M" + struct.pack("<H", images) + b"M\x00\x0c\x86" + dtype + b"\x89" + _python2_text(pixels) + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([k]) for k in range(images)) + b"e"
    pairs = {b"batch_label": _python2_text(b"training batch"), b"labels": labels, b"data": array}
    body = b"".join(_python2_text(key) + value for key, value in pairs.items())
    return b"\x80\x02}q\x01(" + body + extra + b"u."


def _python2_text(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def warm_up() -> None:
    """Import here, before any fork, what torch's optimizers import at their first step."""
    for kind in (torch.optim.SGD, torch.optim.AdamW, SNGD):
        weight = nn.Parameter(torch.ones(2))
        weight.grad = torch.ones(2)
        kind([weight], lr=0.1).step()
