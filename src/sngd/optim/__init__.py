"""Step rules, as ``torch.optim.Optimizer`` classes, and the scheduler that follows a plan of stages."""

from sngd.optim.perturbed import Perturbed
from sngd.optim.sngd import SNGD
from sngd.optim.stagewise import StagewiseLR

__all__ = ["SNGD", "Perturbed", "StagewiseLR"]
