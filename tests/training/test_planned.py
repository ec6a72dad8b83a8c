"""A plan of the theory becomes exactly the run it describes."""

import json
import re

import pytest

from sngd.problems import load_problem
from sngd.theory import Smooth, plan
from sngd.training import RunConfig, train
from sngd.training.planned import planned_settings, read_plan


@pytest.mark.parametrize(
    "method",
    ["sngd", "s-sngd:harmonic", "s-sngd:harmonic-even", "s-sngd:geometric", "sgd", "spider-sfo", "nsgd-momentum"],
)
def test_the_run_takes_the_planned_steps_at_the_planned_cost(tmp_path, method):
    made = plan(method, Smooth(1.0), sigma=0.3, gap=1.0, target=1.0)
    settings = planned_settings(json.loads(json.dumps(made.as_json())), load_problem("saddle").n)
    row = train(RunConfig("saddle", **settings, eval_every=1e6), tmp_path)
    assert (row["step"], row["oracle_calls"]) == (made.steps, made.oracle_calls)
    assert row["iterate"] == "random"
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["lr"], config["batch_size"], config["sampling"]) == (made.lr, made.batch_size, "independent")
    assert config["params"].items() >= made.options.items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"method": "sngd", "lr": 1}', "object missing required field `batch_size`"),
        ("[]", "expected `object`, got `array`"),
        (
            '{"method": "sngd", "lr": 1, "batch_size": 1, "oracle_calls": 9, "stages": []}',
            "expected `array` of length >= 1",
        ),
        ('{"method": "sngd", "lr": 1, "batch_size": 0, "oracle_calls": 9}', "expected `int` >= 1 - at `$.batch_size`"),
        (
            '{"method": "sngd", "lr": 1, "batch_size": 1, "oracle_calls": 9, "stages": [[0.1, 2.5, 1]]}',
            "expected `int`, got `float` - at `$.stages[0][1]`",
        ),
        ("{", "not JSON"),
    ],
)
def test_what_is_no_plan_is_named(tmp_path, content, message):
    (path := tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        read_plan(path)
