"""The command line as a user meets it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from typer.main import get_command

from sngd import __version__, training
from sngd.cli import app, console, main, many
from sngd.cli.bench import Measurements
from sngd.cli.options import file_name
from sngd.training import METHODS, RunConfig
from sngd.training.config import SETTINGS
from sngd.training.folder_lock import locked
from sngd.training.plan_words import SPELLINGS

FAST = ["--epochs", "2", "--threads", "1"]


@pytest.fixture
def sngd(monkeypatch, capsys, tmp_path):
    """Calls the command line in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNGD_DATA", raising=False)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["sngd", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return call


def process(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "sngd", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digits(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("checkpoint.pt")}


# --- what there is


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["train", "--help"], ["compare", "-h"], ["report", "--help"], []]
)
def test_help(sngd, words):
    code, out, err = sngd(*words)
    assert "Usage: sngd" in out + err
    assert code == (0 if words else 2)


def test_methods_and_problems(sngd):
    code, out, _ = sngd("methods", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == list(METHODS)
    assert json.loads(sngd("methods", "s-sngd", "--json")[1])["paper"] == "Algorithm 2"
    out = sngd("methods", "spider-sfo")[1]
    assert "period = M (B/(2b)): steps between anchors" in out
    assert "B at an anchor, else 2b oracle calls a step" in out
    code, _, err = sngd("methods", "sngdd")
    assert (code, err.startswith("sngd: unknown method 'sngdd', did you mean 'sngd'?")) == (2, True)
    assert "mnist-mlp" in [row["name"] for row in json.loads(sngd("problems", "--json")[1])]


def test_the_list_of_methods_fits_a_screen(sngd):
    lines = sngd("methods")[1].splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[:-1]] == list(METHODS)


def test_version(sngd):
    assert sngd("--version") == (0, f"sngd {__version__}\n", "")
    root = Path(__file__).parents[1]
    assert f"\nversion: {__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_help_cuts_no_word_at_80_columns(sngd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pages = {command: sngd(command, "--help")[1] for command in get_command(app).commands}
    assert len(pages) == 11
    assert {command: cut for command, page in pages.items() if (cut := re.findall(r"\S+…", page))} == {}


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_ends_with_the_plans_in_full(sngd, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    page = sngd(command, "--help")[1].partition("A stage plan (--plan) is one of")[2]
    assert [line for line in SPELLINGS if line in page] == list(SPELLINGS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("tra", "train"),
        ("train cifar10-resnet5", "cifar10-resnet56"),
        ("train digits-mlp --method spid", "spider-sfo"),
        ("train digits-mlp --plan multi", "multistep"),
        ("compare digits-mlp --methods sgd,spid", "sgd,spider-sfo"),
        ("methods natash", "natasha2"),
    ],
)
def test_a_shell_completes(words, completed):
    environment = {**os.environ, "_SNGD_COMPLETE": "complete_bash", "COMP_WORDS": f"sngd {words}"}
    environment["COMP_CWORD"] = str(len(words.split()))
    done = subprocess.run([sys.executable, "-m", "sngd"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [completed]


BROKEN_PROBLEM = """import torch
from sngd.problems import Problem
class Model(torch.nn.Linear):
    def forward(self, x):
        return self.wieght
def factory():
    x = torch.randn(50, 3)
    return Problem(lambda: Model(3, 1), torch.nn.functional.mse_loss, (x, x[:, :1]))
"""


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_where_in_the_users_code_it_arose(sngd, tmp_path, place):
    (tmp_path / "mine.py").write_text(BROKEN_PROBLEM)
    words = ["train", "mine.py:factory", "--batch-size", "5"]
    _, _, plain = sngd(*words)
    assert plain.count("\n") == 1
    words.insert(place, "--debug")
    code, out, err = sngd(*words)
    assert (code, out) == (2, "")
    assert 'mine.py", line 5, in forward\n    return self.wieght' in err
    assert err.endswith(plain)


# --- tables


@pytest.fixture
def narrow(monkeypatch, capsys):
    """Prints a table in a terminal of so many columns."""

    def show(width, *arguments, **options):
        monkeypatch.setattr(console, "out", Console(emoji=False, markup=False, width=width))
        console.print_table(*arguments, **options)
        return capsys.readouterr().out

    return show


def test_a_narrow_terminal_loses_columns_never_names_or_digits(narrow):
    header = ["method", "lr", "#grad/n", "seeds", "training loss", "test accuracy (%)"]
    rows = [["spider-sfo lr=0.3", "0.3", "20", "3", "0.05123 ± 0.00041", "97.11 ± 0.10 *"]]
    drop = ("#grad/n", "seeds", "lr", "training loss")
    for width, gone in ((100, 0), (80, 0), (70, 1), (60, 2), (55, 3), (40, 4)):
        page = narrow(width, header, rows, drop=drop)
        assert max(map(len, page.splitlines()[:-1])) <= width
        cells = re.sub(r"[│┃\s]", "", page)
        assert "spider-sfo" in page
        assert "lr=0.3" in page
        assert "97.11±0.10*" in cells
        said = "left out, because the terminal is narrow: " + ", ".join(drop[:gone])
        assert (said in " ".join(page.split())) == (gone > 0), width
        assert ("0.05123±0.00041" in cells) == (gone < 4)


def test_the_tables_of_commands_fit_any_terminal(sngd, monkeypatch):
    for width in (100, 70, 50):
        monkeypatch.setattr(console, "out", Console(emoji=False, markup=False, width=width))
        for module in ("plan", "train"):
            monkeypatch.setattr(sys.modules[f"sngd.cli.{module}"], "out", console.out)
        out = sngd("plan", "sngd,spider-sfo", "--L", 4, "--sigma", 1, "--gap", 2.3, "--epsilon", 0.1)[1]
        table = [line for line in out.splitlines() if line[0] in "│┃"]
        assert max(map(len, table)) <= width
        assert "spider-sfo" in "".join(table)
        assert "0.4" in table[1]


def test_accuracy_is_in_percent_wherever_people_read_it(sngd):
    out = sngd("train", "digits-mlp", *FAST)[1]
    shown = float(re.findall(r"[\d.]+", next(line for line in out.splitlines() if "│" in line))[-1])
    row = json.loads(sngd("train", "digits-mlp", *FAST, "--resume", "--json")[1])
    assert "test accuracy (%)" in out
    assert shown == pytest.approx(100 * row["test_accuracy"], abs=0.005)


# --- progress


def test_the_overview_names_the_tried_rate():
    bars = Progress(disable=True)
    title = "fig2, study 1 of 2, batch-32, tuning"
    overview = many.RunsOverview(bars, title, [RunConfig("saddle", "sgd", "sgd", 0.3)])
    overview(0, training.Progress(5, 10, 0.5))
    together, run = bars.tasks
    assert together.description == f"{title}: 0 done, 1 running, 0 queued"
    assert run.description == "  sgd, lr 0.3, seed 0"
    assert (together.percentage, run.percentage) == (50, 50)
    assert "seconds_left" in together.fields


# --- bench


def test_bench_prints_a_table_and_writes_one_file(sngd):
    code, out, err = sngd("bench", "step", "--quick", "--json", "bench.json")
    assert (code, out.splitlines()[0]) == (0, "tiny: 4 tensors, 2,410 parameters")
    told = err.splitlines()
    assert told[0] == f"measuring 1 of {len(told)}: tiny, SNGD"
    assert all(re.fullmatch(rf"measuring \d+ of {len(told)}: .*, 0:0\d:\d\d left", line) for line in told[1:])
    assert sngd("bench", "train", "--quick", "--json", "bench.json")[0] == 0
    found = json.loads(Path("bench.json").read_text())
    assert [part["command"] for part in found.values()] == [
        f"sngd bench {what} --quick --json bench.json" for what in ("step", "train")
    ]


def test_bench_shows_which_measurement_of_how_many_and_the_time_left():
    seconds = iter([0.0, 20.0, 60.0])
    screen = StringIO()
    bars = Progress(console=Console(file=screen, force_terminal=True))
    tell = Measurements(bars, clock=lambda: next(seconds))
    shown = []
    for done, name in enumerate(["mlp, SNGD", "mlp, SNGD momentum", "gpt2, SNGD"]):
        tell(name, done, 5)
        (bar,) = bars.tasks
        shown.append((bar.description, bar.percentage, bar.fields["seconds_left"]))
    assert shown == [
        ("measuring 1 of 5: mlp, SNGD", 0, None),
        ("measuring 2 of 5: mlp, SNGD momentum", 20, 80),
        ("measuring 3 of 5: gpt2, SNGD", 40, 90),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["walk"], "walk"),
        (["step", "--json", "mine.txt"], "sngd: mine.txt: must be JSON that sngd bench wrote"),
        (["step", "--seconds", "0"], "sngd: --seconds must be > 0 and finite, got 0"),
        (["step", "--json", "absent/bench.json"], "sngd: absent/bench.json: the folder must exist"),
        (["train", "--json", "."], "sngd: .: is a folder, must be a file"),
        (["step", "--device", "tpu"], "tpu"),
        (["train", "--device", "cuda"], "cuda"),
    ],
)
def test_bench_refuses_words_and_files_before_it_measures(sngd, words, message):
    Path("mine.txt").write_text("mine")
    code, out, err = sngd("bench", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "measuring" not in err
    assert Path("mine.txt").read_text() == "mine"


# --- train


def test_train_resume_and_overwrite(sngd):
    code, out, err = sngd("train", "digits-mlp", *FAST)
    assert (code, err) == (0, "")
    assert "run folder: runs/digits-mlp/sngd/seed-0" in out
    code, out, err = sngd("train", "digits-mlp", *FAST)
    assert (code, out) == (2, "")
    assert err == (
        "sngd: runs/digits-mlp/sngd/seed-0: holds a run already; --resume goes on with it, --overwrite throws it away\n"
    )
    code, out, _ = sngd("train", "digits-mlp", *FAST, "--resume", "--json")
    row = json.loads(out)
    assert code == 0
    assert row["final"]
    assert 0 < row["train_loss"] < 2.3
    assert sngd("train", "digits-mlp", *FAST, "--overwrite")[0] == 0


def test_more_epochs_extend_a_run(sngd):
    assert sngd("train", "digits-mlp", *FAST)[0] == 0
    longer = ["train", "digits-mlp", "--epochs", 4, "--threads", 1]
    row = json.loads(sngd(*longer, "--resume", "--json")[1])
    assert 3.9 < row["grads_over_n"] <= 4
    assert sngd(*longer, "--resume")[0] == 0
    stages = ["train", "digits-mlp", "--method", "s-sngd", "--threads", 1]
    assert sngd(*stages, "--epochs", 1)[0] == 0
    assert sngd(*stages, "--epochs", 2, "--resume") == (
        2,
        "",
        "sngd: runs/digits-mlp/s-sngd/seed-0: cannot go on to 2 epochs: it was begun with 1 epochs, and its plan "
        "'poly' is laid over all of them: a run of 2 has other stages from the start. Only the plan 'constant' "
        "goes on\n",
    )


def test_the_users_own_problem(sngd, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom sngd.problems import Problem\n"
        "def factory():\n    x = torch.randn(50, 3)\n"
        "    return Problem(lambda: torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (x, x.sum(1, keepdim=True)))\n"
    )
    code, out, _ = sngd("train", "mine.py:factory", "--batch-size", 5, "--json")
    assert code == 0
    row = json.loads(out)
    assert row["folder"] == "runs/mine-factory/sngd/seed-0"
    assert row["test_loss"] is row["test_accuracy"] is row["train_accuracy"] is None


def test_a_loss_that_is_not_finite_from_the_start_is_no_matter_of_the_lr(sngd, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom sngd.problems import Problem\n"
        "def factory():\n    x = torch.randn(50, 4)\n    x[10:, 0] = torch.nan\n"
        "    return Problem(lambda: torch.nn.Linear(4, 1), torch.nn.functional.mse_loss, (x, x[:, 1:2]))\n"
    )
    _, _, err = sngd("train", "mine.py:factory", "--batch-size", 5)
    assert " ".join(err.split()) == (
        "The training loss is not finite at the initial weights: 20% of the numbers in train's inputs are not finite."
    )
    _, _, err = sngd("train", "digits-mlp", "--method", "sgd", "--lr", 1e30, *FAST)
    assert (
        " ".join(err.split())
        == "The run diverged: its training loss is no longer finite, and it stopped. Try a smaller --lr."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digits"], "unknown problem 'digits', did you mean 'digits-mlp'?"),
        (
            ["train", "digits-mlp:100:unaugmented"],
            "problem 'digits-mlp:100:unaugmented': has no augmentation to leave out",
        ),
        (["train", "nowhere.py:f"], "nowhere.py: no such file"),
        (["train", "digits-mlp", "--method", "sngdd"], "unknown method 'sngdd', did you mean 'sngd'?"),
        (["train", "digits-mlp", "--lr", "-1"], "lr must be finite and greater than 0, got -1.0"),
        (["train", "digits-mlp", "--plan", "polly"], "unknown plan 'polly', did you mean 'poly'?"),
        (["train", "digits-mlp", "--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["train", "digits-mlp", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["train", "mnist-mlp", "--data", "empty"], "empty/mnist (given by --data): no train-images-idx3-ubyte, "),
        (["train", "digits-mlp", "--out", "/proc/run"], "/proc/run: "),
        (["compare", "digits-mlp", "--methods", "sgd,sgd"], "methods 'sgd,sgd': 'sgd' is there twice"),
        (["compare", "digits-mlp", "--methods", "sgd@lr"], "method 'sgd@lr': 'lr' is no setting=value, settings are"),
        (["compare", "digits-mlp", "--methods", "sgd@lr=x"], "method 'sgd@lr=x': lr must be a number, got 'x'"),
        (["compare", "digits-mlp", "--seeds", "0"], "seeds must be a whole number of at least 1 or a list"),
        (["compare", "digits-mlp", "--seeds", "1,1"], "seeds must be different whole numbers, got '1,1'"),
        (["compare", "digits-mlp", "--jobs", "0"], "jobs must be at least 1, got 0"),
        (["reproduce", "fig1", "--precision", "half"], "precision must be 'float32' or 'bfloat16', got 'half'"),
        (["compare", "digits-mlp", "--grid", "a"], "grid must be numbers joined by commas, got 'a'"),
        (
            ["compare", "digits-mlp", "--tune", "--lr", "1"],
            "--tune chooses the learning rates: leave out --lr and @lr=",
        ),
        (["compare", "digits-mlp", "--tune-epochs", "1"], "--tune-epochs is the budget of the search that --tune or "),
        (["compare", "digits-mlp", "--tune", "--tune-epochs", "0"], "--tune-epochs must be a finite number greater "),
        (["compare", "digits-mlp", "--grid", "0.1,.1"], "grid must hold different learning rates, got [0.1, 0.1]"),
        (["compare", "digits-mlp", "--ray-cpus", "1"], "--ray-cpus and --ray-gpus are shares of a cluster: give --ray"),
        (["report", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(sngd, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    code, out, err = sngd(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"sngd: {message}")
    assert err.count("\n") == 1


def test_unknown_options_too(sngd):
    code, _, err = sngd("train", "digits-mlp", "--learning-rate", "1")
    assert code == 2
    assert "No such option: --learning-rate" in err


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on(sngd, tmp_path):
    words = ["train", "digits-mlp", "--threads", 1, "--epochs", 150, "--out", "run"]
    run = process(*words, cwd=tmp_path)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate()
    assert (run.returncode, out) == (130, "")
    assert re.search(r"sngd: run: stopped after \d+ steps; --resume goes on", err)
    assert "Traceback" not in err
    resumed = json.loads(sngd(*words, "--resume", "--json")[1])
    whole = json.loads(sngd(*words[:-1], "whole", "--json")[1])
    del resumed["seconds"], resumed["folder"], whole["seconds"], whole["folder"]
    assert resumed == whole


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_run_that_diverges_says_so_and_has_an_exit_code_of_its_own(sngd, json_too):
    words = ["train", "digits-mlp", "--method", "sgd", "--lr", "1e30", *FAST, *json_too]
    said = "The run diverged: its training loss is no longer finite, and it stopped. Try a smaller --lr.\n"
    for words_now in (words, [*words, "--resume"]):
        code, out, err = sngd(*words_now)
        assert (code, err) == (3, said)
        if json_too:
            row = json.loads(out, parse_constant=pytest.fail)  # NaN is no JSON
            assert (row["diverged"], row["train_loss"]) == (True, None)
        else:
            assert "run folder: runs/digits-mlp/sgd/seed-0" in out
    assert "exit code 3" in " ".join(sngd("train", "--help")[1].split())


EVERY_SETTING = {
    "problem": "saddle",
    "method": "spider-sfo",
    "lr": 1 / 3,
    "batch_size": 7,
    "epochs": 2.5,
    "seed": 3,
    "weight_decay": 1e-4,
    "plan": "[[0.5, 3]]",
    "params": {"period": 12345678.0, "max_scale": 1 / 3},
    "sampling": "independent",
    "output": "random",
    "eval_every": 2 / 3,
    "eval_samples": 5,
    "curve_samples": 4,
    "grad_norm": False,
    "track": "noise",
    "device": "cuda:1",
    "threads": 2,
    "compile": True,
    "precision": "bfloat16",
}


def test_every_setting_has_a_value_that_is_not_its_default():
    assert EVERY_SETTING.keys() == SETTINGS.keys() - {"label"}
    assert all(value != SETTINGS[name].default for name, value in EVERY_SETTING.items())


@pytest.mark.parametrize(
    "config", [RunConfig("saddle", "sngd"), RunConfig(**EVERY_SETTING)], ids=["defaults", "everything"]
)
def test_the_command_of_a_run_gives_its_settings_back(sngd, monkeypatch, config):
    given = []
    monkeypatch.setattr("sngd.training.train", lambda config, *_, **__: given.append(config) or {}["stop"])
    with pytest.raises(KeyError, match="stop"):
        sngd(*shlex.split(config.command())[1:])
    assert given == [config]


def test_the_options_are_the_settings_and_their_help(sngd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    pages = {command: sngd(command, "--help")[1] for command in ("train", "compare")}
    unfolded = {command: re.sub(r"[│\s]", "", page) for command, page in pages.items()}
    for name, setting in SETTINGS.items():
        assert set(setting.options) <= set(pages["train"].split())
        words = "".join(setting.help.split())
        assert (words in unfolded["train"]) == (name != "label")
        assert (words in unfolded["compare"]) == (name not in ("method", "seed", "params", "label"))


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "file: must be a folder, is a file"),
        ("link", "link: must be a folder, is a symbolic link to nowhere"),
        ("link/run", "link: must be a folder, is a symbolic link to nowhere"),
        ("file/run", "file/run: Not a directory"),
        ("odd", "odd/.lock: must be a regular file, is a symbolic link"),
    ],
)
@pytest.mark.parametrize("words", [("train", "saddle"), ("compare", "saddle", "--seeds", 1), ("reproduce", "fig1")])
def test_what_cannot_be_the_folder_is_one_line(sngd, tmp_path, words, folder, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".lock").symlink_to(tmp_path / "file")
    code, out, err = sngd(*words, "--out", folder)
    assert (code, out, err) == (2, "", f"sngd: {message}\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_diagnose_says_it_before_it_measures(sngd, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("sngd.studies.diagnosis.diagnose", lambda *_, **__: pytest.fail("measured"))
    code, out, err = sngd("diagnose", "saddle", "--out", "file")
    assert (code, out, err) == (2, "", "sngd: file: must be a folder, is a file\n")


def test_a_folder_that_may_not_be_written_into_is_named(sngd, monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()

    def forbidden(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # a real one stops everybody but root
        patch.setattr("sngd.training.folder_lock.os.open", forbidden)
        code, out, err = sngd("train", "saddle", "--out", "run")
    assert (code, out, err) == (2, "", "sngd: run/.lock: Permission denied\n")


def test_a_run_whose_folder_is_moved_ends_with_exit_code_2(sngd, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, torch\nfrom sngd.problems import Problem\n"
        "def loss(outputs, targets):\n"
        "    if os.path.exists('run/checkpoint.pt'):\n        os.rename('run', 'moved')\n"
        "    return torch.nn.functional.mse_loss(outputs, targets)\n"
        "def factory():\n    x = torch.randn(50, 3)\n"
        "    return Problem(lambda: torch.nn.Linear(3, 1), loss, (x, x.sum(1, keepdim=True)))\n"
    )
    code, out, err = sngd("train", "mine.py:factory", "--batch-size", 5, "--out", "run")
    assert (code, out) == (2, "")
    assert err == (
        "sngd: run: deleted, moved or replaced while its files were being written; what was to come is lost\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("problem", "folder"),
    [
        ("digits-mlp", "digits-mlp"),
        ("mine.py:factory", "mine-factory"),
        ("lib/mine.py:factory", "lib-mine.py-factory~"),
        ("../mine.py:factory", "-mine.py-factory~"),
        ("digits.py:mlp", "digits.py-mlp~"),  # digits-mlp is a problem of its own
        ("Mine.py:factory", "Mine.py-factory~"),
        ("digits-mlp:100", "digits-mlp-100~"),
    ],
)
def test_problems_have_folders_of_their_own(problem, folder):
    assert re.fullmatch(re.escape(folder.lstrip("-")) + r"([0-9a-f]{12})?", file_name(problem))
    assert ("~" in folder) == ("~" in file_name(problem))


# --- compare and report


@pytest.mark.slow
def test_labels_and_paths_are_printed_as_they_are(sngd):
    labels = ["a[/b]", "[bold]x", ":smile: [link=y]z[/link]"]
    methods = ",".join(
        f"{method}@label={label}" for method, label in zip(("sgd", "sngd", "s-sngd"), labels, strict=True)
    )
    folder = "out[old][/]"
    words = ["compare", "digits-mlp", "--methods", methods, "--seeds", 2, "--epochs", 1, "--threads", 1]
    code, out, err = sngd(*words, "--out", folder)
    assert code == 0
    assert re.fullmatch(r"6 runs: \d+ process(es)?, each training .*\n", err)
    assert f"report: {folder}/report.html" in out
    assert sum(label in out for label in labels) == 3
    assert sngd("report", folder)[:2] == (0, out)
    runs = sorted(path.parent for path in Path(folder).rglob("checkpoint.pt"))
    code, out, err = sngd("diagnose", runs[0], "--only", "noise", "--samples", 50)
    assert (code, err) == (0, "")
    assert f"written: {runs[0]}/diagnosis.json" in "".join(out.split("\n"))
    assert sum(f"{label}, seed 0" in out for label in labels) == 1
    code, out, err = sngd("certify", folder)
    assert (code, err) == (0, "")
    assert all(f"{label}: " in out for label in labels)
    assert f"written: {folder}/certificate.json" in out
    code, out, _ = sngd("train", "saddle", "--epochs", 0.5, "--out", "run[old]")
    assert (code, out.splitlines()[-1]) == (0, "run folder: run[old]")
    code, _, err = sngd("train", "saddle", "--out", "run[old][/]", "--method", "a[/b]")
    assert (code, err.startswith("sngd: unknown method 'a[/b]'")) == (2, True)
    code, _, err = sngd("train", "saddle", "--a[/b]")
    assert code == 2
    assert "No such option: --a[/b]" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], (None, None, None)),
        (["--compile"], (None, None, True)),
        (["--no-compile", "--device", "cuda", "--precision", "bfloat16"], ("cuda", "bfloat16", False)),
    ],
)
def test_reproduce_trains_where_and_how_it_is_told(sngd, monkeypatch, words, told):
    given = []
    monkeypatch.setattr(
        "sngd.paper.reproduce.reproduce", lambda *arguments: given.append(arguments[-1]) or [Path("picture")]
    )
    sngd("reproduce", "relaxed", *words)
    assert [(execution.device, execution.precision, execution.compile) for execution in given] == [told]


def test_a_warning_is_told_once(sngd, monkeypatch):
    def warning(*arguments):
        for text in ("the same", "the same", "another"):
            arguments[-1].on_warning(text)
        return [Path("picture")]

    monkeypatch.setattr("sngd.paper.reproduce.reproduce", warning)
    assert sngd("reproduce", "relaxed")[2].splitlines() == ["the same", "another"]


def test_reproduce_prints_paths_as_they_are(sngd, monkeypatch):
    folder = "out[old][/]"
    monkeypatch.setattr("sngd.paper.claims.reproduce_claims", lambda *_, **__: [])
    monkeypatch.setattr("sngd.paper.reproduce.reproduce", lambda *_, **__: [Path(folder, "relaxed.png")])
    assert f"written: {folder}/verdicts.md" in sngd("reproduce", "claims", "--out", folder)[1]
    assert f"picture: {folder}/relaxed.png" in sngd("reproduce", "relaxed", "--out", folder)[1]


@pytest.mark.slow
def test_a_study_has_one_writer_and_can_be_looked_at_meanwhile(sngd, tmp_path):
    words = ["compare", "digits-mlp", "--methods", "sgd", "--seeds", 1, "--epochs", 1, "--threads", 1, "--out", "study"]
    assert sngd(*words)[0] == 0
    with locked(tmp_path / "study", ()):
        for other in (words, ["reproduce", "fig1", "--out", "study"], ["reproduce", "claims", "--out", "study"]):
            code, out, err = sngd(*other)
            assert (code, out, err) == (2, "", "sngd: study: another process is working in this folder\n")
        code, _, err = sngd("train", "saddle", "--out", "study")
        assert (code, err) == (2, "sngd: study: another process is training in this folder\n")
        assert sngd("report", "study")[0] == 0


@pytest.mark.slow
def test_arms_that_diverge_are_named_and_the_exit_code_says_whether_all_did(sngd):
    words = ["compare", "digits-mlp", "--seeds", 2, "--epochs", 1, "--threads", 1]
    code, out, _ = sngd(*words, "--methods", "sgd@lr=1e30@label=a[/b],sngd", "--out", "some")
    assert code == 0
    assert "a[/b]: 2 of 2 runs diverged" in out
    assert "sngd: " not in out
    for _ in ("at first", "and again"):
        code, out, _ = sngd(*words, "--methods", "sgd@lr=1e30@label=a[/b]", "--out", "all", "--json")
        assert (code, json.loads(out)["methods"][0]["diverged"]) == (3, 2)
    assert sngd("report", "all")[0] == 0
    assert "Exit code 3" in sngd("compare", "--help")[1]


@pytest.mark.slow
def test_compare_then_report(sngd, monkeypatch, tmp_path):
    words = ["compare", "digits-mlp", "--methods", "sgd,s-sngd@lr=0.3", "--seeds", 2, "--jobs", 2, *FAST]
    code, out, _ = sngd(*words, "--json")
    assert code == 0
    table = json.loads(out)
    assert [row["label"] for row in table["methods"]] == ["sgd", "s-sngd lr=0.3"]
    assert {row["finished"] for row in table["methods"]} == {2}
    folder = tmp_path / "runs" / "compare-digits-mlp"
    assert 20_000 < (folder / "report.html").stat().st_size < 2_000_000
    assert (folder / "figures" / "curves.png").exists()
    assert "| sgd | 0.1 |" in (folder / "table.md").read_text()

    before = digits(folder)
    assert len(before) == 4
    with monkeypatch.context() as patch:  # a machine without the data can make table and report anew
        patch.setattr("sngd.studies.compare.load_problem", lambda *_: pytest.fail("nothing is left to train"))
        code, out, _ = sngd(*words, "--resume")  # as without
    assert code == 0
    assert digits(folder) == before  # finished runs are not repeated
    assert "over 2 seeds at equal oracle calls, untuned" in out
    assert "Differences: mean over paired seeds ± half of its 95 % interval\n" in out
    assert "report: runs/compare-digits-mlp/report.html" in out

    (folder / "report.html").unlink()
    assert sngd("report", folder)[0] == 0
    assert (folder / "report.html").exists()

    # fewer methods in the same folder: only what was asked for is compared
    table = json.loads(sngd("compare", "digits-mlp", "--methods", "sgd", "--seeds", 1, *FAST, "--json")[1])
    assert [(row["label"], row["runs"]) for row in table["methods"]] == [("sgd", 1)]


@pytest.mark.slow
def test_pack_and_unpack(sngd, tmp_path):
    words = ["compare", "digits-mlp", "--methods", "sgd,sngd", "--seeds", 1, "--jobs", 1, *FAST]
    assert sngd(*words)[0] == 0
    folder = tmp_path / "runs" / "compare-digits-mlp"
    table, before = (folder / "table.md").read_bytes(), digits(folder)
    assert sngd("pack", "runs") == (0, "packed: runs/compare-digits-mlp\n", "")
    assert not list(folder.rglob("config.json"))
    assert digits(folder) == before  # weights are kept
    assert sngd("report", folder)[0] == 0
    assert (folder / "table.md").read_bytes() == table

    code, out, _ = sngd(*words, "--json")  # goes on from the packed study, repeats nothing, and packs it again
    assert code == 0
    assert [row["finished"] for row in json.loads(out)["methods"]] == [1, 1]
    assert digits(folder) == before
    assert not list(folder.rglob("config.json"))

    code, out, _ = sngd("pack", "--unpack", folder, "--json")
    assert (code, json.loads(out)["studies"]) == (0, [str(folder)])
    assert len(list(folder.rglob("config.json"))) == 2
    assert sngd("pack", folder, "--drop-weights")[0] == 0
    assert not (folder / "runs").exists()
    assert sngd("pack", folder, "--unpack", "--drop-weights")[2] == (
        "sngd: --drop-weights is for packing, --unpack is not that: give one of them\n"
    )
    assert sngd("pack", "nowhere")[0] == 2

    assert sngd("pack", "runs", "--together")[:2] == (0, "packed: runs/compare-digits-mlp\n")
    assert {"study.json", "rows.jsonl.xz"} == {path.name for path in (tmp_path / "runs").glob("[!.]*")}
    assert sngd(*words)[2].startswith("sngd: runs/compare-digits-mlp: packed together with others in ")
    assert sngd("report", folder)[0] == 0
    assert (folder / "table.md").read_bytes() == table
    assert sngd("pack", "runs", "--unpack", "--together")[2].startswith("sngd: --together is for packing")
    assert sngd("pack", "runs", "--unpack")[:2] == (0, "unpacked: runs/compare-digits-mlp\n")
    assert len(list(folder.rglob("config.json"))) == 2


@pytest.mark.slow
def test_compare_tunes_every_method_on_the_same_grid(sngd, tmp_path):
    words = ["compare", "digits-mlp", "--methods", "sgd,sngd", "--seeds", "7,9", "--grid", "0.001,0.3", *FAST]
    code, out, _ = sngd(*words, "--json")
    assert code == 0
    table = json.loads(out)
    assert [(o["label"], o["lr"]) for o in table["tuning"]["outcomes"]] == [
        (label, lr) for label in ("sgd", "sngd") for lr in (0.001, 0.3)
    ]
    assert table["tuning"]["chosen"] == {"sgd": 0.3, "sngd": 0.3}
    assert [row["lr"] for row in table["methods"]] == [0.3, 0.3]
    runs = tmp_path / "runs" / "compare-digits-mlp" / "runs" / "sgd"
    assert sorted(os.listdir(runs)) == ["seed-7", "seed-9"]
    shown = sngd("report", "runs/compare-digits-mlp")[1]
    assert "sgd: the chosen learning rate 0.3 is the largest of the grid; a larger one may be better.\n" in shown
    assert json.loads((runs / "seed-7" / "config.json").read_text())["lr"] == 0.3


@pytest.mark.slow
def test_compare_tunes_with_a_budget_of_its_own(sngd, tmp_path):
    words = ["compare", "digits-mlp", "--methods", "sngd", "--seeds", "1", "--grid", "0.1", *FAST]
    code, out, _ = sngd(*words, "--tune-epochs", "0.5")
    assert code == 0
    assert "every method tried lr 0.1 for 0.5 epochs on a seed of its own" in " ".join(out.split())
    study = tmp_path / "runs" / "compare-digits-mlp"
    assert json.loads((study / "tuning/sngd/lr-0.1/config.json").read_text())["epochs"] == 0.5
    assert json.loads((study / "runs/sngd/seed-0/config.json").read_text())["epochs"] == 2
    assert json.loads((study / "compare.json").read_text())["tuning"]["epochs"] == 0.5
    assert "a budget of 0.5 #grad/n" in (study / "report.html").read_text()


@pytest.mark.slow
def test_compare_stopped_goes_on_where_it_was(sngd, tmp_path):
    words = [
        "compare",
        "digits-mlp",
        "--methods",
        "sgd,sngd",
        "--seeds",
        2,
        "--epochs",
        100,
        "--jobs",
        1,
        "--threads",
        1,
    ]
    run = process(*words, cwd=tmp_path)
    runs = tmp_path / "runs" / "compare-digits-mlp" / "runs"
    while not any(runs.rglob("checkpoint.pt")):
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130
    assert re.search(r"sngd: stopped with \d of 4 runs finished; the same command goes on", err)
    assert "Traceback" not in err
    assert json.loads(sngd(*words, "--json")[1])["methods"][1]["finished"] == 2


@pytest.mark.slow
def test_a_failing_run_stops_the_comparison_with_its_message(sngd):
    code, _, err = sngd("compare", "digits-mlp", "--batch-size", 100_000, "--seeds", 1)
    assert code == 2
    assert "batch_size must be at most n = 1437, got 100000" in err


# --- plan


def test_plan_gives_the_papers_numbers(sngd):
    constants = ["--L", 4, "--sigma", 1, "--gap", 2.3, "--epsilon", 0.1]
    code, out, _ = sngd("plan", "sngd", *constants, "--json")
    assert code == 0
    best = json.loads(out)
    assert (best["lr"], best["batch_size"], best["steps"], best["oracle_calls"]) == (0.05, 100, 460, 46_000)
    assert (best["epsilon"], best["guarantee"]) == (0.1, 0.4)
    code, out, _ = sngd("plan", "sngd,s-sngd:harmonic,sgd", *constants, "--json")
    plans = json.loads(out)
    assert [p["target"] for p in plans] == [0.4] * 3
    assert [p.get("epsilon") for p in plans] == [0.1, None, None]
    assert all(p["guarantee"] <= 0.4 for p in plans)
    out = sngd("plan", "sngd,s-sngd", *constants)[1]
    assert "46,000" in out
    assert "what stages gain is empirical" in out
    out = sngd("plan", "sngd", "--L0", 1, "--L1", 100, "--epsilon", 0.1)[1]
    assert "αL1 ≤ ½ binds: lr ≤ 0.005" in out


def test_plan_says_what_epsilon_means(sngd):
    out = sngd("plan", "sngd,sgd", "--L", 4, "--sigma", 1, "--gap", 2.3, "--epsilon", 0.1)[1]
    assert "ε = 0.1 stands for the guarantee E‖∇F(w̄)‖* ≤ 4ε = 0.4 (sngd, Theorem 1)" in out
    out = sngd("plan", "sngd", "--L0", 4, "--L1", 1, "--sigma", 1, "--epsilon", 0.1)[1]
    assert "E‖∇F(w̄)‖* ≤ 8ε = 0.8 (sngd, Theorem 2)" in out
    assert "stands for" not in sngd("plan", "sngd", "--L", 4, "--target", 0.4)[1]


def test_plan_says_for_which_constants_also_those_not_given(sngd):
    assert "\nfor L = 4, σ = 0, Δ = 1\n" in sngd("plan", "sngd", "--L", 4, "--target", 0.4)[1]
    relaxed = sngd("plan", "sngd", "--L0", 4, "--L1", 1, "--sigma", 0.5, "--gap", 2, "--target", 0.4)[1]
    assert "\nfor L0 = 4, L1 = 1, σ = 0.5, Δ = 2\n" in relaxed


def test_plan_in_another_norm_and_with_momentum(sngd):
    words = ["--L", 4, "--sigma", 1, "--gap", 2.3, "--target", 0.4, "--kappa", 2]
    plans = json.loads(sngd("plan", "sngd,nsgd-momentum", *words, "--json")[1])
    assert [p["kappa"] for p in plans] == [2, 2]
    assert (plans[0]["batch_size"], plans[0]["oracle_calls"]) == (400, 184_000)
    assert plans[1]["batch_size"] == 1
    assert f"; momentum {plans[1]['momentum']:.10g}" in sngd("plan", "nsgd-momentum", *words)[1]


def test_plan_takes_kappa_from_the_problems_weights(sngd):
    words = ["plan", "nsgd-momentum", "--L", 4, "--sigma", 0.1, "--gap", 2.3, "--target", 0.4]

    def kappa(norm, problem="saddle"):
        return json.loads(sngd(*words, "--norm", norm, "--problem", problem, "--json")[1])["kappa"]

    assert kappa("sign(scaled=False)") == pytest.approx(10**0.5)  # ten entries
    assert kappa("l2") == kappa("layer(scaled=False)") == 1
    # digits-mlp: Linear(64, 100) and Linear(100, 10), with Scion's norms and 16 as the radius of the output's
    in_kinds = [10, 10, 10**0.5, 16 / 100 * 1000**0.5]
    assert kappa("groups", "digits-mlp") == pytest.approx(sum(k**2 for k in in_kinds) ** 0.5)
    same = json.loads(sngd(*words, "--kappa", 10**0.5, "--json")[1])
    in_norm = json.loads(sngd(*words, "--norm", "sign(scaled=False)", "--problem", "saddle", "--json")[1])
    assert in_norm == {**same, "kappa": in_norm["kappa"], "norm": "sign(scaled=False)"}
    shown = sngd(*words, "--norm", "sign(scaled=False)", "--problem", "saddle")[1]
    assert "κ = 3.162: the norm sign(scaled=False) over saddle's weights, 1 tensor" in shown


@pytest.mark.parametrize(("norm", "method"), [("sign( scaled=False )", "signum"), ("layer", "sngd-layer")])
def test_a_plan_in_a_norm_is_trained_in_it(sngd, tmp_path, norm, method):
    constants = ["--L", 10, "--sigma", 0.1, "--gap", 0.5, "--target", 3]
    planned = sngd("plan", "nsgd-momentum", *constants, "--norm", norm, "--problem", "saddle", "--json")[1]
    (tmp_path / "plan.json").write_text(planned)
    row = json.loads(sngd("train", "saddle", "--planned", "plan.json", "--json")[1])
    assert row["folder"] == f"runs/saddle/{method}/seed-0"


def test_a_plan_in_a_norm_that_no_method_takes(sngd, tmp_path):
    for words, message in (
        (["--norm", "spectral", "--problem", "saddle"], "plan is for sngd in norm spectral, which no method takes"),
        (["--kappa", 2], "plan has kappa 2.0 and no norm: make it by sngd plan --norm … --problem …"),
    ):
        planned = sngd("plan", "sngd", "--L", 1, "--sigma", 0.1, "--target", 3, *words, "--json")[1]
        (tmp_path / "plan.json").write_text(planned)
        code, _, err = sngd("train", "saddle", "--planned", "plan.json")
        assert code == 2
        assert message in err


def test_a_plan_with_momentum_can_be_trained(sngd, tmp_path):
    planned = sngd("plan", "nsgd-momentum", "--L", 1, "--sigma", 0.5, "--gap", 0.5, "--target", 0.9, "--json")[1]
    (tmp_path / "plan.json").write_text(planned)
    row = json.loads(sngd("train", "saddle", "--planned", "plan.json", "--json")[1])
    assert (row["folder"], row["oracle_calls"]) == (
        "runs/saddle/nsgd-momentum/seed-0",
        json.loads(planned)["oracle_calls"],
    )


def test_the_agnostic_plan_is_for_methods_with_momentum(sngd):
    words = ["train", "digits-mlp", "--plan", "agnostic", "--epochs", 1, "--batch-size", 64, "--json"]
    assert json.loads(sngd(*words, "--method", "nsgd-momentum")[1])["epoch"] > 0.9
    code, _, err = sngd(*words, "--method", "sngd")
    assert code == 2
    assert "optimizer must be made with a momentum above 0 in every param group" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "sngd", "--epsilon", "1"], "give either --L, or --L0 and --L1"),
        (["plan", "sngd", "--L", "1", "--L0", "1", "--epsilon", "1"], "give either --L, or --L0 and --L1"),
        (["plan", "sngd", "--L", "-1", "--epsilon", "1"], "L must be"),
        (["plan", "sngd", "--L", "1"], "give either --target, the guarantee wanted, or --epsilon"),
        (["plan", "sngd", "--L", "1", "--target", "1", "--epsilon", "1"], "give either --target"),
        (["plan", "adam", "--L", "1", "--epsilon", "1"], "method must be one of sngd, s-sngd:harmonic"),
        (["plan", "sngd", "--L", "1", "--sigma", "-1", "--epsilon", "1"], "sigma must be"),
        (["plan", "sngd", "--L", "1", "--kappa", "0", "--epsilon", "1"], "kappa must be"),
        (["plan", "sgd", "--L", "1", "--kappa", "2", "--epsilon", "1"], "kappa must be 1 for sgd"),
        (
            ["plan", "sngd", "--L", "1", "--epsilon", "1", "--norm", "sign", "--problem", "saddle", "--kappa", "2"],
            "give either --kappa, or --norm and --problem",
        ),
        (
            ["plan", "sngd", "--L", "1", "--epsilon", "1", "--norm", "sign"],
            "give --norm and --problem together: κ depends on the weights",
        ),
        (
            ["plan", "sngd", "--L", "1", "--epsilon", "1", "--norm", "sing", "--problem", "saddle"],
            "unknown norm 'sing', did you mean 'sign'?",
        ),
    ],
)
def test_meaningless_constants_are_named(sngd, words, message):
    code, out, err = sngd(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"sngd: {message}")


# --- diagnose


def test_diagnose_a_tracked_run(sngd, tmp_path):
    assert sngd("train", "saddle", "--epochs", 0.5, "--track", "smoothness", "--out", "run")[0] == 0
    code, out, _ = sngd("diagnose", "run", "--only", "noise,curvature")
    assert code == 0
    assert "λ_max of ∇²F" in out
    assert "Intervals: 95 %, of the eigenvalues λ 99 %\n" in out
    assert "written: run/diagnosis.json" in out
    found = json.loads(sngd("diagnose", "saddle", "--only", "noise", "--samples", 100, "--json")[1])
    assert found["oracle_calls"] == 100
    assert found["files"] == ["runs/diagnose-saddle/diagnosis.json"]
    assert (tmp_path / found["files"][0]).exists()
    code, _, err = sngd("diagnose", "saddle", "--only", "noize")
    assert (code, err) == (
        2,
        "sngd: only: unknown quantity 'noize', did you mean 'noise'? must be some of smoothness,noise,curvature\n",
    )


# --- certify and reproduce


def test_certify_a_planned_run(sngd, tmp_path):
    planned = sngd("plan", "sngd", "--L", 1, "--sigma", 0.1, "--gap", 2, "--epsilon", 0.1, "--json")[1]
    (tmp_path / "plan.json").write_text(planned)
    words = ["train", "saddle", "--planned", "plan.json", "--eval-every", 0.002, "--out", "run"]
    assert sngd(*words)[0] == 0
    code, out, _ = sngd("certify", "run", "--json")
    (certificate,) = json.loads(out)["certificates"]
    assert (code, certificate["verdict"], certificate["theorem"]) == (0, "holds", "Theorem 1")
    assert certificate["measured"]["high"] <= certificate["bound"]
    assert (tmp_path / "run" / "certificate.json").exists()
    code, out, _ = sngd("certify", "run", "--gap", 0.01)
    assert "In brackets: the 95 % interval\n" in out
    assert "--track" not in out
    assert sngd("train", "digits-mlp", *FAST, "--out", "other")[0] == 0
    shown = sngd("certify", "other")[1]
    assert "noise unchecked: give --sigma, or train with --track noise\n" in shown
    assert "batches violated: train with --sampling independent\n" in shown
    assert code == 0
    assert "sngd: not certified" in out
    assert "gap violated" in out
    assert sngd("certify", "run", "--L", 1, "--L0", 1)[2] == "sngd: give either --L, or --L0 and --L1\n"
    assert sngd("certify", "nowhere")[2] == "sngd: nowhere: no such folder\n"


@pytest.mark.slow
def test_reproduce_claims(sngd, tmp_path):
    code, out, _ = sngd("reproduce", "claims", "--only", "C9", "--json", "--out", "here")
    assert code == 0
    verdicts = {verdict["claim"]: verdict for verdict in json.loads(out)["verdicts"]}
    assert verdicts["C9"]["quantities"]
    assert (tmp_path / "here" / "relaxed" / "measurements.json").exists()
    code, out, _ = sngd("reproduce", "claims", "--only", "C9,C2", "--stored", "--out", "here")
    assert verdicts["C9"]["outcome"] in out
    assert (tmp_path / "here" / "verdicts.md").exists()


def test_verdicts_are_printed_by_how_gradients_are_counted(sngd, tmp_path):
    measured = Path(__file__).parents[1] / "results" / "small" / "fig2" / "measurements.json"
    (tmp_path / "here" / "fig2").mkdir(parents=True)
    (tmp_path / "here" / "fig2" / "measurements.json").write_bytes(measured.read_bytes())
    code, out, _ = sngd("reproduce", "claims", "--only", "C1,C2", "--stored", "--out", "here")
    assert code == 0
    verdicts, by_counting = out.split("by how SPIDER-SFO's gradients are counted")
    assert "of what it requires" in verdicts
    assert [word in by_counting for word in ("every evaluation", "differences once", "b a step")] == [True] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["claims", "--only", "C16"], "unknown claim 'C16'; must be one of C1, C2"),
        (["claims", "--profile", "huge"], "unknown profile 'huge'; claims have quick, small, paper"),
        (["fig1", "--only", "C1"], "--only chooses among claims, fig1 is not that: leave it out"),
        (["fig1", "--stored"], "--stored is for claims, fig1 is not that: leave it out"),
        (["claims", "--stored", "--overwrite"], "--stored judges what the folder holds, --overwrite throws it away: g"),
        (["fig9"], "unknown study 'fig9'; must be all, claims, or one of fig1, conformance"),
    ],
)
def test_what_cannot_be_reproduced_is_named(sngd, words, message):
    code, out, err = sngd("reproduce", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"sngd: {message}")


def test_ctrl_c_stops_a_study_without_runs(sngd, monkeypatch):
    """Such a study saves nothing on the way, so it need not come to its end first."""
    from sngd.paper.closed_form.share_done import steps
    from sngd.paper.reproduce import FIGURES

    def measure(_profile):
        for step in steps(range(3)):
            assert step < 2, "it should have been stopped"
            os.kill(os.getpid(), signal.SIGINT) if step else None
        return {}

    monkeypatch.setitem(FIGURES, "fig1", FIGURES["fig1"]._replace(measure=measure))
    code, out, err = sngd("reproduce", "fig1")
    assert (code, out) == (130, "")
    assert "sngd: fig1 was stopped; the same command goes on, and begins the present study anew" in err
    assert not Path("runs/reproduce-fig1-quick/measurements.json").exists()


# --- what is needed to import


@pytest.mark.slow
def test_imports_are_few():
    """Everything but torch and numpy is hidden; the library rooms leave the laboratory's unimported."""
    hidden = ["msgspec", "typer", "rich", "pooch", "sklearn", "scipy", "matplotlib", "tqdm", "pandas"]
    code = f"""
import sys
for name in {hidden!r}: sys.modules[name] = None
import sngd
assert 'torch' not in sys.modules
from sngd import *
assert 'torch' in sys.modules and 'sngd.problems' not in sys.modules
import sngd.training
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1.0, 1.6, 2.4])
def test_ctrl_c_at_the_beginning_ends_the_command_in_a_line(tmp_path, seconds):
    """While it is imported, while the server of the workers is, and afterwards; all of its processes get the signal."""
    command = [sys.executable, "-m", "sngd", "compare", "digits-mlp", "--methods", "sgd", "--epochs", "9999"]
    run = subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE, start_new_session=True)
    time.sleep(seconds)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in error


@pytest.mark.parametrize("words", [("compare", "digits-mlp"), ("reproduce", "fig1"), ("diagnose", "digits-mlp")])
def test_what_torchrun_cannot_share_is_refused(sngd, monkeypatch, tmp_path, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, error = sngd(*words)
    assert (code, out) == (2, "")
    assert error == (
        f"sngd: {words[0]} cannot share its work among torchrun's 2 processes: start it without torchrun\n"
    )
    assert not list(tmp_path.iterdir())
