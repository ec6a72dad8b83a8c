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

_MODULES = ("estimators", "iterates", "norms", "optim", "param_groups", "stages", "theory")
_HOMES = {
    "SNGD": "optim",
    "Perturbed": "optim",
    "RandomIterate": "iterates",
    "StagewiseLR": "optim",
    "groups": "param_groups",
}

if not TYPE_CHECKING:  # a type checker would take any name then

    def __getattr__(name: str) -> object:
        """Import what is asked for, once. Torch takes a second, in which the command line starts its workers."""
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
