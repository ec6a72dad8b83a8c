"""Shakespeare: the text and where it is looked for, its windows, the model's sizes, and runs on it."""

import hashlib
import http.server
import json
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

from sngd.problems import DataError, load_problem, shakespeare
from sngd.problems.problem import classifies
from sngd.problems.shakespeare import LARGE, SMALL, long_windows, moved_on, resized, tinyshakespeare, windows
from sngd.training import RunConfig, engine, train

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
DIGITS = "run the embedded digits, which need none: sngd train digits-mlp --method sngd"
PUT = f"put input.txt under DIR/tinyshakespeare and pass --data DIR or set SNGD_DATA=DIR, or {DIGITS}"
TEXT = b"to be, or not to be: that is the question. " * 100  # 4300 characters


def message_of(data: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        tinyshakespeare(data)
    return str(caught.value)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short text in place of the official one."""
    path = tmp_path / "data" / "tinyshakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(TEXT)
    monkeypatch.setattr(shakespeare, "_BYTES", len(TEXT))
    monkeypatch.setattr(shakespeare, "_SHA256", hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setenv("SNGD_DATA", str(tmp_path / "data"))
    return path


# --- what is read


@pytest.mark.usefixtures("text")
def test_characters_are_ranks_and_the_last_tenth_is_the_test_text() -> None:
    (train, test), count = tinyshakespeare()
    alphabet = sorted(set(TEXT))
    assert count == len(alphabet)
    assert bytes(alphabet[rank] for rank in torch.cat([train, test]).tolist()) == TEXT
    assert (len(train), len(test)) == (3870, 430)
    assert train.dtype == torch.int64


def test_the_real_text() -> None:
    data = os.environ.get("SNGD_DATA")
    if not data or not Path(data, "tinyshakespeare").is_dir():
        pytest.skip(f"needs tinyshakespeare/input.txt in the folder SNGD_DATA names, now {data!r}")
    (train, test), count = tinyshakespeare()
    assert (len(train), len(test), count) == (1_003_854, 111_540, 65)  # as nanoGPT's prepare.py prints
    alphabet = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert "".join(alphabet[rank] for rank in train[:14].tolist()) == "First Citizen:"
    problem = load_problem("shakespeare-gpt")
    assert (problem.n, len(problem.test[0])) == (15_685, 1742)
    torch.manual_seed(0)
    inputs, targets = problem.augmented(tuple(part[:12] for part in problem.train), torch.Generator().manual_seed(0))
    loss = problem.loss(problem.build_model()(problem.prepare(inputs)), targets)
    assert loss.item() == pytest.approx(4.17, abs=0.1)  # log 65


# --- what is refused


def test_a_truncated_file(text: Path) -> None:
    text.write_bytes(TEXT[:-1])
    assert message_of() == f"{text}: 4299 bytes, must be 4300, those of {URL}"


def test_a_changed_file(text: Path) -> None:
    text.write_bytes(TEXT.replace(b"q", b"Q", 1))
    found, right = (hashlib.sha256(content).hexdigest() for content in (text.read_bytes(), TEXT))
    assert message_of() == f"{text}: has the sha256 checksum {found}, must be {right}, that of {URL}"


def test_folder_given_without_the_file(tmp_path: Path) -> None:
    assert message_of(tmp_path) == (
        f"{tmp_path}/tinyshakespeare (given by --data): no input.txt; put the text of {URL} there, "
        f"or give no folder to have it downloaded, or {DIGITS}"
    )


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", unreachable)
    assert message_of() == f"{cache}/tinyshakespeare: cannot download {URL} (ConnectionError); {PUT}"


# --- what is downloaded


@pytest.fixture
def mirror(text: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A server on this machine in place of the official one, and no SNGD_DATA; yields what it serves."""
    text.unlink()
    monkeypatch.delenv("SNGD_DATA")
    served = [TEXT]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(served[0])))
            self.end_headers()
            self.wfile.write(served[0])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(shakespeare, "_URL", f"http://127.0.0.1:{server.server_port}/input.txt")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served
        server.shutdown()


def test_downloaded_once_then_read_from_the_cache(mirror: list[bytes], cache: Path) -> None:
    assert tinyshakespeare()[1] == len(set(TEXT))
    assert os.listdir(cache / "tinyshakespeare") == ["input.txt"]
    mirror[0] = b""
    assert tinyshakespeare()[1] == len(set(TEXT))


def test_a_download_with_a_wrong_checksum_leaves_nothing(mirror: list[bytes], cache: Path) -> None:
    mirror[0] = TEXT + b"!"
    assert message_of() == f"{cache}/tinyshakespeare: {shakespeare._URL} has the wrong checksum; {PUT}"
    assert os.listdir(cache / "tinyshakespeare") == []


# --- windows


def test_windows_lie_side_by_side_and_each_character_has_its_next() -> None:
    inputs, targets = windows(torch.arange(11), 5)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert targets.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert len(windows(torch.arange(10), 5)[0]) == 1  # of the second window's last character, the next is missing


def test_long_windows_begin_like_the_windows() -> None:
    text = torch.arange(1000)
    inputs, targets = long_windows(text, 7)
    assert inputs.shape == (142, 14)
    assert torch.equal(inputs[:, :7], windows(text, 7)[0])
    assert torch.equal(targets, windows(text, 7)[1])
    assert inputs[-1].tolist() == [*range(987, 1000), 0]  # after the end comes the beginning


def test_a_sample_starts_anywhere_and_everywhere_equally_often() -> None:
    text, generator = torch.arange(61), torch.Generator().manual_seed(0)
    inputs, _ = long_windows(text, 10)
    drawn = [moved_on(inputs, generator) for _ in range(1000)]
    for moved, targets in drawn[:20]:
        assert torch.equal(moved, (moved[:, :1] + torch.arange(10)) % 61)
        assert torch.equal(targets, (moved + 1) % 61)
    starts = torch.cat([moved[:, 0] for moved, _ in drawn]).bincount()
    assert len(starts) == 60
    assert (starts - 100).abs().max() < 50  # 5 standard deviations


# --- sizes


def test_sizes_are_those_of_nanogpt() -> None:
    assert (SMALL.layers, SMALL.heads, SMALL.width, SMALL.context, SMALL.dropout) == (4, 4, 128, 64, 0.0)
    assert (LARGE.layers, LARGE.heads, LARGE.width, LARGE.context, LARGE.dropout) == (6, 6, 384, 256, 0.2)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 2), (128, 4), (256, 8)])
def test_another_width_has_heads_of_the_same_width(width: int, heads: int) -> None:
    size = resized(SMALL, f"width-{width}")
    assert (size.width, size.heads, size.layers, size.context) == (width, heads, 4, 64)


@pytest.mark.usefixtures("text")
def test_variants_by_name() -> None:
    problem = load_problem("shakespeare-gpt:width-32:20")
    assert (problem.name, problem.n, len(problem.test[0])) == ("shakespeare-gpt:width-32:20", 20, 4)
    model = problem.build_model()
    assert (model.tokens.weight.shape[1], len(model.blocks), model.blocks[0].attention.heads) == (32, 4, 1)
    inputs, targets = problem.train
    scores = model(problem.prepare(inputs))
    assert classifies(scores, targets)
    assert problem.loss(scores, targets).item() == pytest.approx(math.log(len(set(TEXT))), abs=0.2)
    large = load_problem("shakespeare-gpt:large:width-64")
    assert large.train[1].shape == (15, 256)
    assert large.test[0].shape == (1, 256)
    assert large.build_model().blocks[0].attention.heads == 1
    assert large.build_model().dropout.p == 0.2
    assert load_problem("shakespeare-gpt:unaugmented").augment is None


WORDS = "must be a number of samples or one of unaugmented, normalized, unnormalized, large, width-N"


@pytest.mark.usefixtures("text")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tiny", f"'tiny' {WORDS}"),
        ("width-48", "width must be a multiple of a head's width, 32, as in width-64, got '48'"),
        ("width-0", "width must be a multiple of a head's width, 32, as in width-64, got '0'"),
        ("large:width-32", "width must be a multiple of a head's width, 64, as in width-128, got '32'"),
        ("width-", "width must be a multiple of a head's width, 32, as in width-64, got ''"),
        ("normalized", "has inputs that are prepared already"),
        ("unnormalized", "has inputs that are no bytes"),
        ("61", "number of samples must be in 1 … n = 60, got 61"),
    ],
)
def test_mistakes_are_named(words: str, message: str) -> None:
    spec = f"shakespeare-gpt:{words}"
    with pytest.raises(ValueError, match=f"^{re.escape(f'problem {spec!r}: {message}')}$"):
        load_problem(spec)


# --- runs

CONFIG = RunConfig("shakespeare-gpt:24:width-32", "adamw", lr=3e-3, batch_size=8, epochs=6, threads=1, eval_every=3)


def rows(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("text")
def test_a_run_learns_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(CONFIG, tmp_path / "whole")
    whole = rows(tmp_path / "whole")
    assert whole[-1]["train_loss"] < whole[0]["train_loss"] - 0.3
    assert whole[-1]["test_accuracy"] > whole[0]["test_accuracy"]
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    for _ in range(20):
        calls = iter([False, True])
        try:
            train(CONFIG, tmp_path / "parts", resume=True, should_stop=lambda calls=calls: next(calls, True))
            break
        except engine.Interrupted:
            continue
    assert rows(tmp_path / "parts") == whole
    weights = [torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)["model"] for n in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.usefixtures("text")
def test_tracked_constants(tmp_path: Path) -> None:
    config = RunConfig(**{**CONFIG.to_json(), "epochs": 1, "track": "smoothness,noise,curvature"})
    row = train(config, tmp_path)
    assert row["noise_variance"] > 0
    assert row["smoothness_along"] > 0
    assert row["hessian_max"] > row["hessian_min"]
