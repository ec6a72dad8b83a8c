"""Constants measured on a real model: gradient noise, smoothness, curvature; and certificates of what they imply."""

from sngd.diagnose.certificate import Certificate
from sngd.diagnose.curvature import Curvature, Eigenvalue, extreme_eigenvalues
from sngd.diagnose.fit import Fit, fit_relaxed_smooth
from sngd.diagnose.interval import Interval
from sngd.diagnose.noise import Noise, gradient_noise
from sngd.diagnose.objective import Objective
from sngd.diagnose.smoothness import LocalSmoothness, local_smoothness

__all__ = [
    "Certificate",
    "Curvature",
    "Eigenvalue",
    "Fit",
    "Interval",
    "LocalSmoothness",
    "Noise",
    "Objective",
    "extreme_eigenvalues",
    "fit_relaxed_smooth",
    "gradient_noise",
    "local_smoothness",
]
