"""torch.hub loads the optimizer from a copy of the repository that is not installed."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    shutil.copytree(ROOT / "src" / "sngd", tmp_path / "src" / "sngd", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


USE = """
import sys
import torch

copy = sys.argv[1]
SNGD = torch.hub.load(copy, "sngd", source="local")
model = torch.nn.Linear(8, 2)
before = torch.nn.utils.parameters_to_vector(model.parameters())
optimizer = SNGD(model.parameters(), lr=0.1)
model(torch.randn(16, 8)).square().mean().backward()
optimizer.step()
after = torch.nn.utils.parameters_to_vector(model.parameters())
assert abs((after - before).norm() - 0.1) < 1e-6

groups = torch.hub.load(copy, "groups", model, lr=0.03, norms={"output": "row"}, source="local")
assert "row" in str(groups)
SNGD(groups, momentum=0.9, normalize="momentum").step()

import sngd
import sngd.monitor

assert sngd.__file__.startswith(copy), sngd.__file__
"""


def test_hub_loads_the_optimizer_from_a_folder(copy):
    done = subprocess.run([sys.executable, "-c", USE, str(copy)], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_optimizer_and_its_param_groups_are_all_that_hub_lists(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    public = {
        name for name, value in runpy.run_path(str(ROOT / "hubconf.py")).items() if callable(value) and name[0] != "_"
    }
    assert public == {"sngd", "groups"}
