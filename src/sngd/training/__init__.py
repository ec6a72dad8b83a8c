"""One run: the registry of methods, the engine, the run folder."""

from sngd.training.config import RunConfig
from sngd.training.engine import Interrupted, Progress, train
from sngd.training.methods import METHODS, Method

__all__ = ["METHODS", "Interrupted", "Method", "Progress", "RunConfig", "train"]
