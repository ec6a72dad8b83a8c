"""Settings shared by all tests."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can say `from reference.… import …`

torch.set_num_threads(1)
settings.register_profile("sngd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("sngd")
