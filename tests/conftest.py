"""Settings shared by all tests, and their order: those marked slow come last."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can say `from reference.… import …`

torch.set_num_threads(1)
settings.register_profile("sngd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("sngd")


@pytest.hookimpl(trylast=True)  # after hooks that add marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last, so that a mistake shows early; xdist's workers are handed tests in this order too."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
