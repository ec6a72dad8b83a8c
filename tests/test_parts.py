"""The parts of the package are imported when they are first asked for."""

import sys

import pytest

import sngd


def test_they_are_there_without_being_imported():
    assert set(sngd.__all__) <= set(dir(sngd))
    assert sngd.groups is sngd.param_groups.groups
    assert sngd.optim.SNGD is sngd.SNGD
    for name in ("nothing", "_nothing"):
        with pytest.raises(AttributeError, match=f"^module 'sngd' has no attribute '{name}'$"):
            getattr(sngd, name)


def test_what_a_part_lacks_is_named(monkeypatch):
    monkeypatch.delattr(sngd, "iterates", raising=False)
    monkeypatch.delitem(sys.modules, "sngd.iterates", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        sngd.iterates  # noqa: B018
