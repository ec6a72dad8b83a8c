"""One process pays nothing for what is distributed."""

import subprocess
import sys

_LOADED = """
import sys, torch
before = set(sys.modules)
import sngd
from sngd.norms.global_norm import global_norm
w = torch.nn.Parameter(torch.ones(3))
sngd.RandomIterate([w]).update()
sngd.estimators.Full(torch.nn.Linear(2, 1), 3).estimate(lambda x: x.mean() * 0 + w.sum(), torch.ones(3, 2))
assert global_norm([w.grad]) > 1
print([name for name in set(sys.modules) - before if name.startswith("torch.")])
"""


def test_nothing_of_it_is_imported():
    run = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
