"""Training with normalized gradients: SNGD, stagewise SNGD, and the parts of the methods they are compared with."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sngd import estimators, norms, stages, theory
    from sngd.iterates import RandomIterate
    from sngd.optim import SNGD, Perturbed, StagewiseLR
    from sngd.param_groups import groups

__version__ = "0.1.0"  # pyproject.toml takes it from here

__all__ = ["SNGD", "Perturbed", "RandomIterate", "StagewiseLR", "estimators", "groups", "norms", "stages", "theory"]

_HOMES = {
    "SNGD": "sngd.optim",
    "Perturbed": "sngd.optim",
    "RandomIterate": "sngd.iterates",
    "StagewiseLR": "sngd.optim",
    "groups": "sngd.param_groups",
}

if not TYPE_CHECKING:  # a type checker would take any name then

    def __getattr__(name: str) -> object:
        """Import what is asked for, once. Torch takes a second, in which the command line starts its workers."""
        found = getattr(import_module(_HOMES[name]), name) if name in _HOMES else _module(name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _module(name: str) -> object:
    """A module of this package, such as ``sngd.norms``; others than those in ``__all__`` are there too."""
    unknown = AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("_"):
        raise unknown
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise unknown from None
