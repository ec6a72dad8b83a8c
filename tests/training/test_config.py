"""A run's settings: defaults, checks, and the way to a file and a command line and back."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from sngd.training import RunConfig
from sngd.training.config import SETTINGS, read_config
from sngd.training.schema import parse


def test_defaults_are_the_methods():
    config = RunConfig("digits-mlp", "s-sngd").resolved()
    assert (config.lr, config.plan, config.label) == (0.5, "poly", "s-sngd")
    assert config.threads >= 1


def test_survives_json():
    config = RunConfig("digits-mlp", "sgd", lr=0.3, plan="poly:power=2", seed=4).resolved()
    assert RunConfig(**json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sngdd"}, "unknown method 'sngdd', did you mean 'sngd'? must be one of gd, ngd, sgd"),
        ({"method": "qqq"}, "unknown method 'qqq'; must be one of gd, ngd, sgd"),
        ({"lr": 0.0}, "lr must be finite and greater than 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be finite and greater than 0, got nan"),
        ({"epochs": -1.0}, "epochs must be finite and greater than 0 and at most 1e+09, got -1.0"),
        ({"epochs": 1e308}, "epochs must be finite and greater than 0 and at most 1e+09, got 1e+308"),
        ({"eval_every": 0.0}, "eval_every must be finite and greater than 0, got 0.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"threads": -2}, "threads must be a whole number of at least 1, got -2"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0, got -0.1"),
        ({"sampling": "sorted"}, "sampling must be 'shuffled' or 'independent', got 'sorted'"),
        ({"label": "a\nb"}, "label must be one line of at most 1000 characters, without control characters, got 'a"),
        ({"label": "\ud800"}, "label must be one line of at most 1000 characters, without control characters, got '"),
        ({"device": "x" * 5000}, "device must be one line of at most 1000 characters"),
        ({"problem": "x" * 1001}, "problem must be one line of at most 1000 characters"),
        ({"plan": "x" * 5000}, "unknown plan 'xxx"),
        ({"track": "noise,curvatur"}, "track: unknown quantity 'curvatur', did you mean 'curvature'? must be some of"),
        ({"output": "best"}, "output must be 'last' or 'random', got 'best'"),
        ({"device": "tpu9"}, "device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu9'"),
        ({"lr": "x"}, "lr must be finite and greater than 0, got 'x'"),
        ({"lr": 10**400}, "lr must be finite and greater than 0, got 1000"),
        ({"seed": True}, "seed must be a whole number of at least 0, got True"),
        ({"seed": 2**70}, "seed must be a whole number of at least 0 below 2**63, got 1180591620717411303424"),
        ({"grad_norm": 1}, "grad_norm must be True or False, got 1"),
        ({"method": "adamw", "params": {"beta1": "x"}}, "beta1 must be a finite number, got 'x'"),
        ({"plan": "polly"}, "unknown plan 'polly', did you mean 'poly'?"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        RunConfig(**{"problem": "digits-mlp", "method": "sngd", **settings}).resolved()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"method": "sgd"}', "object missing required field `problem`"),
        (
            '{"problem": "p", "method": "sgd", "epoch": 1}',
            "object contains unknown field `epoch`, did you mean 'epochs'?",
        ),
        ('{"problem": "p", "method": "sgd", "lr": "x"}', "expected `float | null`, got `str` - at `$.lr`"),
        ('{"problem": "p", "method": "sgd", "lr": 0}', "expected `float` > 0.0 - at `$.lr`"),
        ('{"problem": "p", "method": "sgd", "lr": true}', "expected `float | null`, got `bool` - at `$.lr`"),
        ('{"problem": "p", "method": "sgd", "seed": 1.0}', "expected `int`, got `float` - at `$.seed`"),
        ('{"problem": "p", "method": "sgd", "seed": 1%s}' % ("0" * 400), "expected `int` <= 9223372036854775807"),
        ('{"problem": "p", "method": "sgd", "lr": 1%s}' % ("0" * 400), "number out of range - at `$.lr`"),
        ('{"problem": "p", "method": "sgd", "lr": NaN}', "not JSON (invalid character (byte "),
        ('{"problem": "p", "method": "sgd", "params": "x"}', "expected `object`, got `str` - at `$.params`"),
        (
            '{"problem": "p", "method": "sgd", "params": {"period": 1}}',
            "'period' is no parameter of sgd, which takes none",
        ),
        ('{"problem": "p", "method": "sgd", "plan": []}', "expected `str | null`, got `array` - at `$.plan`"),
        ("[" * 100_000, "expected `object`, got `array`"),
        ("", "not JSON (Input data was truncated)"),
        ("\ufeff{}", "not JSON (invalid character (byte 0))"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_named(tmp_path, content, reason):
    (path := tmp_path / "config.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {reason}')}"):
        read_config(path)


@pytest.mark.slow
def test_a_new_run_needs_no_msgspec(tmp_path):
    code = f"""
import sys
sys.modules["msgspec"] = None
from pathlib import Path
from sngd.training import RunConfig, train
config = RunConfig("saddle", "sngd", batch_size=1, epochs=1, plan="[[0.1, 3]]", threads=1)
train(config, Path({str(tmp_path / "run")!r}))
try:
    train(config, Path({str(tmp_path / "run")!r}), resume=True)
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    needed = f"{tmp_path / 'run' / 'config.json'}: reading it needs the package msgspec: pip install 'sngd[lab]'"
    assert (result.stdout.strip(), result.stderr) == (needed, "")


def test_what_is_declared_is_said():
    for setting in SETTINGS.values():
        assert f"\n        {setting.name}: {setting.help}" in RunConfig.__doc__
        assert all(word in setting.help for word in setting.declared.one_of)
    assert SETTINGS["batch_size"].help == "Samples a step, b. (default: the problem's own, else 128) [≥ 1]"


@pytest.mark.parametrize(
    ("problem", "given", "expected"),
    [
        ("digits-mlp", None, 128),
        ("mine.py:factory", None, 128),
        ("shakespeare-gpt", None, 12),
        ("shakespeare-gpt:600:width-64", None, 12),
        ("shakespeare-gpt:large", None, 64),
        ("shakespeare-gpt:large", 7, 7),
    ],
)
def test_a_problem_has_its_batch_size(problem, given, expected):
    config = RunConfig(problem, "sngd", batch_size=given)
    assert config.resolved().batch_size == expected
    assert config.stage_plan(3 * expected).steps == 60  # three steps an epoch, 20 epochs


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("lr", "1e-3", 1e-3), ("batch_size", "32", 32), ("grad_norm", "0", False), ("grad_norm", "1", True)],
)
def test_a_text_is_parsed_as_what_is_declared(name, text, value):
    parsed = parse(name, text, SETTINGS[name].type)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [("lr", "x", "a number"), ("threads", "1.5", "a whole number"), ("grad_norm", "2", "0 or 1")],
)
def test_a_text_that_spells_no_value_is_named(name, text, allowed):
    with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got '{text}'$"):
        parse(name, text, SETTINGS[name].type)


def test_the_command_repeats_the_run():
    params = {"max_scale": 1 / 3, "period": 12345678.0}
    spider = RunConfig("digits-mlp", "spider-sfo", params=params).resolved()
    words = shlex.split(spider.command())
    given = [words[i + 1].split("=") for i, word in enumerate(words) if word == "--param"]
    assert {name: float(value) for name, value in given} == params  # to the last bit

    config = RunConfig("digits-mlp", "s-sngd", plan="[[0.5, 3]]", seed=2, threads=1).resolved()
    words = shlex.split(config.command())
    assert words[:5] == ["sngd", "train", "digits-mlp", "--method", "s-sngd"]
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert (options["--plan"], options["--seed"], options["--threads"]) == ("[[0.5, 3]]", "2", "1")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("sampling", "x" * 100_000, "invalid enum value 'xxx"),
        ("device", "x" * 100_000, "expected `str` of length <= 1000"),
        ("label", "a\nb", "expected `str` of one line, without control characters - at `$.label`"),
        ("label", "\u2028", "expected `str` of one line, without control characters - at `$.label`"),
        ("label", "\ud800", "not JSON"),
        ("x" * 100_000, 1, "object contains unknown field `xxx"),
    ],
)
def test_a_file_is_refused_in_one_short_line(key, value, reason, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"problem": "p", "method": "sgd", key: value}))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {reason}')}") as error:
        read_config(path)
    assert len(str(error.value)) < len(str(path)) + 400
    assert len(str(error.value).splitlines()) == 1
