"""A run's settings: defaults, checks, and the way to a file and a command line and back."""

import re
import shlex

import pytest

from sngd.training import RunConfig


def test_defaults_are_the_methods():
    config = RunConfig("digits-mlp", "s-sngd").resolved()
    assert (config.lr, config.plan, config.label) == (0.5, "poly", "s-sngd")
    assert config.threads >= 1


def test_survives_json():
    config = RunConfig("digits-mlp", "sgd", lr=0.3, plan="poly:power=2", seed=4).resolved()
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sngdd"}, "unknown method 'sngdd', did you mean 'sngd'? must be one of gd, ngd, sgd"),
        ({"method": "qqq"}, "unknown method 'qqq'; must be one of gd, ngd, sgd"),
        ({"lr": 0.0}, "lr must be finite and greater than 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be finite and greater than 0, got nan"),
        ({"epochs": -1.0}, "epochs must be finite and greater than 0, got -1.0"),
        ({"eval_every": 0.0}, "eval_every must be finite and greater than 0, got 0.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"threads": -2}, "threads must be a whole number of at least 1, got -2"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0, got -0.1"),
        ({"sampling": "sorted"}, "sampling must be 'shuffled' or 'independent', got 'sorted'"),
        ({"track": "noise,curvatur"}, "track: unknown quantity 'curvatur', did you mean 'curvature'? must be some of"),
        ({"output": "best"}, "output must be 'last' or 'random', got 'best'"),
        ({"device": "tpu9"}, "device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu9'"),
        ({"plan": "polly"}, "unknown plan 'polly', did you mean 'poly'?"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        RunConfig(**{"problem": "digits-mlp", "method": "sngd", **settings}).resolved()


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ValueError, match="unknown settings momentun; known are batch_size"):
        RunConfig.from_json({"problem": "p", "method": "sgd", "momentun": 1})
    with pytest.raises(ValueError, match="settings lack method"):
        RunConfig.from_json({"problem": "p"})


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
