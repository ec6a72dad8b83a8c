"""Training with normalized gradients: SNGD, stagewise SNGD, and the parts of the methods they are compared with."""

from sngd import estimators, norms, stages, theory
from sngd.iterates import RandomIterate
from sngd.optim import SNGD, Perturbed, StagewiseLR
from sngd.param_groups import groups

__version__ = "0.1.0"  # pyproject.toml takes it from here

__all__ = ["SNGD", "Perturbed", "RandomIterate", "StagewiseLR", "estimators", "groups", "norms", "stages", "theory"]
