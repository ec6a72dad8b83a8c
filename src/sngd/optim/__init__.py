"""Step rules: ``torch.optim.Optimizer`` classes, one file each, and the scheduler that plays a stage plan."""

from sngd.optim.perturbed import Perturbed
from sngd.optim.sngd import SNGD
from sngd.optim.stagewise import StagewiseLR

__all__ = ["SNGD", "Perturbed", "StagewiseLR"]
