"""Settings shared by all tests, and their order: those marked slow come last."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
SLOW = [TESTS / "distributed", TESTS / "ecosystem"]  # what is tested there takes seconds to import

sys.path.insert(0, str(TESTS))  # so that tests can say `from reference.… import …`

settings.register_profile("sngd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("sngd")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For torch in this process and in those that tests start, because as many tests run at once as there are cores."""
    import torch  # here, because xdist's first process, which waits for its workers, tests nothing

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def one_server() -> Iterator[None]:
    """The processes of tests and the workers of studies are forked from one server, whichever comes first."""
    from forked import PRELOADED
    from sngd.studies.execution import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "PRELOADED", PRELOADED)
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whoever wants the fast tests alone does not wait for the imports of the slow ones either."""
    return (collection_path in SLOW and config.option.markexpr == "not slow") or None


def pytest_itemcollected(item: pytest.Item) -> None:
    if not set(SLOW).isdisjoint(item.path.parents):
        item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    if "muon-adamw" in [value for value in _parameters(item).values() if isinstance(value, str)]:
        import torch

        if not hasattr(torch.optim, "Muon"):
            pytest.skip("torch has Muon from 2.9 on")


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


@pytest.hookimpl(trylast=True)  # after hooks that add marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last, so that a mistake shows early; xdist's workers are handed tests in this order too."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
