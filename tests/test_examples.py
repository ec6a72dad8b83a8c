"""Every example runs as it stands and does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {  # what a script prints last, and what must hold of its first number
    "spider_with_adam.py": (r"accuracy ([\d.]+) % after 40000 gradient evaluations", lambda percent: percent > 90),
    "accelerate_digits.py": (r"accuracy ([\d.]+) %", lambda percent: percent > 90),
    "hugging_face_trainer.py": (
        r"optimizer_cls_and_kwargs: accuracy ([\d.]+) % after 145 steps",
        lambda percent: percent > 90,
    ),
    "lightning_digits.py": (r"accuracy ([\d.]+) % after 290 steps", lambda percent: percent > 90),
    "optuna_digits.py": (r"loss ([\d.]+) with lr [\d.]+, momentum [\d.]+", lambda loss: loss < 0.3),
    "ray_tune_digits.py": (r"loss ([\d.]+) with lr 0\.3", lambda loss: loss < 0.5),
    "svrg_in_your_loop.py": (r"loss ([\d.]+) after 5280 gradient evaluations", lambda loss: loss < 0.02),
}
NEEDS = {  # packages that the tests' own environment need not have
    "optuna_digits.py": ["optuna"],
    "ray_tune_digits.py": ["ray", "pandas", "pyarrow", "tensorboardX"],
}
PROBLEMS = {"my_problem.py"}  # a user's problem: tests/problems trains it


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTS.keys() | PROBLEMS


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_example(name):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, check=True, timeout=120
    )
    pattern, holds = PRINTS[name]
    match = re.fullmatch(pattern, result.stdout.strip().splitlines()[-1])
    assert match, result.stdout
    assert holds(float(match[1]))
